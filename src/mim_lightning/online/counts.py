"""What a report needs to know of an experiment: sums over users, by arm, and clicks by position.

Counted in the database by `counting`, or made of arrays by the simulator; `lift` and its neighbours read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from numpy.typing import NDArray

Number = Any  # a float, or a float64 array (...) with an entry for each simulated repeat


@dataclass(frozen=True)
class UserSums:
    """Sums over the users of an arm, of n_u impressions and c_u of them clicked: all that the delta method needs.

    Of one experiment numbers, of many simulated ones arrays of one shape.
    """

    num_users: Number
    impressions: Number  # sum of n_u
    clicked: Number  # sum of c_u: impressions with at least one click
    impressions_sq: Number  # sum of n_u^2
    clicked_sq: Number  # sum of c_u^2
    cross: Number  # sum of n_u c_u

    @classmethod
    def of_users(cls, impressions_U: NDArray[Any], clicked_U: NDArray[Any]) -> UserSums:
        """Sum over the last axis of n_u and c_u, both (..., U); a user without an impression counts nowhere."""
        n_U, c_U = impressions_U.astype(float), clicked_U.astype(float)
        return cls(
            num_users=(n_U > 0).sum(axis=-1),
            impressions=n_U.sum(axis=-1),
            clicked=c_U.sum(axis=-1),
            impressions_sq=(n_U * n_U).sum(axis=-1),
            clicked_sq=(c_U * c_U).sum(axis=-1),
            cross=(n_U * c_U).sum(axis=-1),
        )


@dataclass(frozen=True)
class ArmCounts:
    """One arm of an experiment. A user counts where he was shown something, in two arms if that was in two."""

    arm: str
    sums: UserSums
    num_clicks: int  # several on one impression count each
    num_clicking_users: int
    num_empty: int  # impressions without any result
    num_fingerprints: int  # of the models that answered: more than one, and the arm was changed on the way
    mean_latency_ms: float

    @property
    def num_users(self) -> int:
        return int(self.sums.num_users)

    @property
    def num_impressions(self) -> int:
        return int(self.sums.impressions)

    @property
    def num_clicked(self) -> int:
        return int(self.sums.clicked)


@dataclass(frozen=True)
class PositionCounts:
    """How often an arm showed a product at a position, 1 for the top, and how often that was clicked."""

    arm: str
    position: int
    num_shown: int
    num_clicks: int

    @property
    def click_rate(self) -> float:
        return self.num_clicks / self.num_shown


@dataclass(frozen=True)
class ExperimentCounts:
    """All that was counted of an experiment, at one moment."""

    experiment: str
    arms: Mapping[str, ArmCounts]  # by name, those that were shown to somebody
    positions: Sequence[PositionCounts]
    num_crossing_users: int  # seen in more than one arm
    first: datetime | None  # impression; None without any
    last: datetime | None
