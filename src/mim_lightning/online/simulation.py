"""Simulated online experiments whose true lift is known: to measure how often a report is right.

Users follow a position-based click model. `simulate_events` writes what a service would to an event log;
`simulate_sums` and `simulate_looks` draw many experiments at once as arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from mim_lightning.online.aggregates import UserSums
from mim_lightning.online.assignment import Arm, assign, hash_user
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.events import Click, Impression, Shown

Relevance = Sequence[float]  # (K,) by position, the top first: probability that its product is relevant
_Floats = NDArray[np.float64]

START = datetime(2026, 1, 1, tzinfo=UTC)
RELEVANCE = tuple(0.7 * position**-0.5 for position in range(1, 11))  # of the control, our choice
_CHUNK_USERS = 500  # in one transaction


@dataclass(frozen=True)
class ClickModel:
    """A position-based click model: a product is clicked if its position is examined and the product is liked.

    Users differ in their eagerness, which correlates the impressions of one user.

    Source: Richardson et al. 2007 and Craswell et al. 2008; eagerness and all numbers are our choice, not fitted to
    any log.
    """

    examination: tuple[float, ...] = tuple(position**-0.7 for position in range(1, 11))  # (K,) probabilities
    relevant_liking: float = 0.4  # probability that an average user clicks a relevant product, once examined
    other_liking: float = 0.04
    eagerness: tuple[float, ...] = (0.2, 0.6, 1.0, 1.4, 1.8)  # factors of the liking, equally many users of each
    queries_per_user: float = 2.5  # mean of a geometric distribution: 1 or more

    def __post_init__(self) -> None:
        likings = [factor * max(self.relevant_liking, self.other_liking) for factor in self.eagerness]
        for name, chances in (("examination", self.examination), ("liking", likings)):
            if not all(0 <= chance <= 1 for chance in chances):
                raise ValueError(f"click model: {name} {chances}: probabilities must be between 0 and 1")
        if self.queries_per_user < 1:
            raise ValueError(f"click model: queries_per_user={self.queries_per_user}: must be 1 or more")

    def click_probabilities(self, is_relevant: NDArray[np.bool_], eagerness: _Floats) -> _Floats:
        """Return the probability of a click on each product, (N, K), from relevance (N, K) and eagerness (N,)."""
        liking_NK = np.where(is_relevant, self.relevant_liking, self.other_liking)
        return np.asarray(self.examination) * liking_NK * eagerness[:, None]

    def click_rates(self, relevance: Relevance) -> _Floats:
        """Return the probability that an impression has a click, (L,) by level of eagerness."""
        relevance_K = np.asarray(relevance, dtype=float)
        if relevance_K.shape != (len(self.examination),) or not ((relevance_K >= 0) & (relevance_K <= 1)).all():
            raise ValueError(f"relevance: needs {len(self.examination)} probabilities, one for each position")
        liking_K = relevance_K * self.relevant_liking + (1 - relevance_K) * self.other_liking
        clicks_LK = np.asarray(self.eagerness)[:, None] * liking_K * np.asarray(self.examination)
        return 1 - np.prod(1 - clicks_LK, axis=1)

    def click_rate(self, relevance: Relevance) -> float:
        """Return the expected click-through rate of a ranking."""
        return float(self.click_rates(relevance).mean())


def simulate_lift(model: ClickModel, relevance: Relevance, lift: float) -> tuple[float, ...]:
    """Return the relevance of a ranking whose click-through rate is exactly (1 + lift) times that of another.

    All positions improve, or worsen, by the same factor, up to a probability of 1.

    Raises:
        ValueError: no factor reaches the lift.
    """
    target = (1 + lift) * model.click_rate(relevance)

    def scale(factor: float) -> tuple[float, ...]:
        return tuple(min(1.0, factor * chance) for chance in relevance)

    low, high = 0.0, 1 / min(chance for chance in relevance if chance > 0)
    if not model.click_rate(scale(low)) <= target <= model.click_rate(scale(high)):
        raise ValueError(f"lift={lift}: no ranking reaches it, from a rate of {model.click_rate(relevance):.3f}")
    for _ in range(60):  # bisection: the rate increases with the factor
        middle = (low + high) / 2
        low, high = (middle, high) if model.click_rate(scale(middle)) < target else (low, middle)
    return scale(high)


def simulate_sums(
    model: ClickModel, relevance: Relevance, num_repeats: int, num_users: int, rng: np.random.Generator
) -> UserSums:
    """Return the sums of one arm in many experiments, arrays (num_repeats,)."""
    rates_RU = _draw_rates(model, relevance, (num_repeats, num_users), rng)
    impressions_RU = rng.geometric(1 / model.queries_per_user, rates_RU.shape)
    return UserSums.of_users(impressions_RU, rng.binomial(impressions_RU, rates_RU))


def simulate_looks(
    model: ClickModel,
    relevance: Relevance,
    num_repeats: int,
    num_looks: int,
    num_users: int,
    rng: np.random.Generator,
    returning: bool = False,
) -> UserSums:
    """Return the sums of one arm at each of many looks, arrays (num_repeats, num_looks).

    Args:
        num_users: at the last look; equally many are new at each.
        returning: all users may come back between two looks (each a Poisson number of times) instead of new users at
            each: the rows of a user then grow from look to look.
    """
    shape = (num_repeats, num_users if returning else num_users // num_looks)
    rates, total_n, total_c, sums = None, np.zeros(shape, int), np.zeros(shape, int), []
    for _ in range(num_looks):
        if rates is None or not returning:
            rates = _draw_rates(model, relevance, shape, rng)
        if returning:
            n = rng.poisson(model.queries_per_user / num_looks, shape)
            total_n += n
            total_c += rng.binomial(n, rates)
            sums.append(UserSums.of_users(total_n, total_c))
        else:
            n = rng.geometric(1 / model.queries_per_user, shape)
            sums.append(UserSums.of_users(n, rng.binomial(n, rates)))
    stacked = {name: np.stack([np.asarray(getattr(s, name)) for s in sums], axis=1) for name in vars(sums[0])}
    return UserSums(**(stacked if returning else {name: part.cumsum(axis=1) for name, part in stacked.items()}))


def simulate_events(
    log: EventLog,
    model: ClickModel,
    relevance: Mapping[str, Relevance],
    arms: Mapping[str, Arm],
    experiment: str,
    num_users: int,
    salt: str,
    seed: int = 0,
) -> None:
    """Write an experiment to the log: users are assigned, see products, and click.

    Args:
        relevance: of the ranking of each arm, by name.
        num_users: of all arms together, called "user-0" and so on.
        salt: of the hashes.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, num_users, _CHUNK_USERS):
        impressions: list[Impression] = []
        clicks: list[Click] = []
        for number in range(start, min(start + _CHUNK_USERS, num_users)):
            key = f"user-{number}"
            arm = assign(key, arms, experiment, salt).name
            num_queries = int(rng.geometric(1 / model.queries_per_user))
            is_relevant_NK = rng.random((num_queries, len(model.examination))) < np.asarray(relevance[arm])
            eagerness_N = np.full(num_queries, rng.choice(model.eagerness))
            is_clicked_NK = rng.random(is_relevant_NK.shape) < model.click_probabilities(is_relevant_NK, eagerness_N)
            for query, (is_relevant_K, is_clicked_K) in enumerate(zip(is_relevant_NK, is_clicked_NK, strict=True)):
                time = START + timedelta(minutes=number, seconds=query)
                shown = [
                    Shown(f"{'relevant' if is_relevant else 'other'}-{position}", 1 - position / len(is_relevant_K))
                    for position, is_relevant in enumerate(is_relevant_K)
                ]
                impression = Impression(
                    experiment, arm, hash_user(key, salt), "composed", shown, 10.0, f"model-{arm}", time=time
                )
                impressions.append(impression)
                clicks += [
                    Click(impression.impression_id, product.product_id, time + timedelta(seconds=1))
                    for product, is_clicked in zip(shown, is_clicked_K, strict=True)
                    if is_clicked
                ]
        log.record_many(impressions, clicks)


def _draw_rates(model: ClickModel, relevance: Relevance, shape: tuple[int, int], rng: np.random.Generator) -> _Floats:
    """Return the click-through rate of each user, (R, U)."""
    levels_RU = rng.integers(len(model.eagerness), size=shape)
    return model.click_rates(relevance)[levels_RU]
