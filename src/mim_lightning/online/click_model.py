"""Users who look from the top and click on what fits: a position-based click model, for experiments on a computer.

A ranking's relevance by position comes in, chances of clicks go out; the simulator draws from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Relevance = Sequence[float]  # (K,) by position, the top first: chance that a relevant product stands there
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ClickModel:
    """A click is a look at the position, and a liking of what stands there.

    Users differ in their eagerness, so that one user's impressions are alike and those of two are not.

    Source: position-based model, Richardson et al. 2007 and Craswell et al. 2008; eagerness is our choice, and so
    are all numbers: no log stands behind them.
    """

    examination: tuple[float, ...] = tuple(position**-0.7 for position in range(1, 11))  # (K,) chance of a look
    relevant_liking: float = 0.4  # chance that a relevant product is clicked, once looked at, by a middling user
    other_liking: float = 0.04
    eagerness: tuple[float, ...] = (0.2, 0.6, 1.0, 1.4, 1.8)  # factors of the liking, equally many users of each
    queries_per_user: float = 2.5  # mean of a geometric distribution: 1 or more

    def __post_init__(self) -> None:
        likings = [factor * max(self.relevant_liking, self.other_liking) for factor in self.eagerness]
        for name, chances in (("examination", self.examination), ("liking", likings)):
            if not all(0 <= chance <= 1 for chance in chances):
                raise ValueError(f"click model: {name} {chances}: chances must lie between 0 and 1")
        if self.queries_per_user < 1:
            raise ValueError(f"click model: queries_per_user={self.queries_per_user}: must be 1 or more")

    def click_chances(self, is_relevant: NDArray[np.bool_], eagerness: Array) -> Array:
        """Return the chance of a click on each product, (N, K), from what fits (N, K) and the users' factors (N,)."""
        liking_NK = np.where(is_relevant, self.relevant_liking, self.other_liking)
        return np.asarray(self.examination) * liking_NK * eagerness[:, None]

    def click_rates(self, relevance: Relevance) -> Array:
        """Return the chance that an impression is clicked at all, (L,) by level of eagerness."""
        share_K = np.asarray(relevance, dtype=float)
        if share_K.shape != (len(self.examination),) or not ((share_K >= 0) & (share_K <= 1)).all():
            raise ValueError(f"relevance: needs {len(self.examination)} chances between 0 and 1, one for each position")
        liking_K = share_K * self.relevant_liking + (1 - share_K) * self.other_liking
        chances_LK = np.asarray(self.eagerness)[:, None] * liking_K * np.asarray(self.examination)
        return 1 - np.prod(1 - chances_LK, axis=1)

    def click_rate(self, relevance: Relevance) -> float:
        """Return the click-through rate that a ranking has in the long run."""
        return float(self.click_rates(relevance).mean())


def plant_lift(model: ClickModel, relevance: Relevance, lift: float) -> tuple[float, ...]:
    """Return the relevance of a ranking whose click-through rate is exactly (1 + lift) times that of another.

    Every position is made better, or worse, by the same factor, up to certainty.

    Raises:
        ValueError: no factor reaches the lift.
    """
    wanted = (1 + lift) * model.click_rate(relevance)

    def scaled(factor: float) -> tuple[float, ...]:
        return tuple(min(1.0, factor * share) for share in relevance)

    low, high = 0.0, 1 / min(share for share in relevance if share > 0)
    if not model.click_rate(scaled(low)) <= wanted <= model.click_rate(scaled(high)):
        raise ValueError(f"lift={lift}: no ranking reaches it, from a rate of {model.click_rate(relevance):.3f}")
    for _ in range(60):  # bisection: the rate rises with the factor
        middle = (low + high) / 2
        low, high = (middle, high) if model.click_rate(scaled(middle)) < wanted else (low, middle)
    return scaled(high)
