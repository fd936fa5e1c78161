"""Counts of an experiment by arm and by position, aggregated in the database: no row of a user leaves it.

All statistics of a report are computed from these sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from numpy.typing import NDArray
from sqlalchemy import Connection, and_, func, select

from mim_lightning.online.database import clicks, impressions, shown

Number = Any  # a float, or a float64 array (...) with one entry for each simulated repeat


@dataclass(frozen=True)
class UserSums:
    """Sums over the users of an arm, of n_u impressions and c_u of them clicked: what the delta method needs.

    Numbers for one experiment, arrays of one shape for many simulated ones.
    """

    num_users: Number
    impressions: Number  # sum of n_u
    clicked: Number  # sum of c_u: impressions with at least one click
    impressions_sq: Number  # sum of n_u^2
    clicked_sq: Number  # sum of c_u^2
    cross: Number  # sum of n_u c_u

    @classmethod
    def of_users(cls, impressions_U: NDArray[Any], clicked_U: NDArray[Any]) -> UserSums:
        """Sum n_u and c_u, both (..., U), over the last axis; a user without an impression does not count."""
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
    """One arm of an experiment. A user with impressions in two arms counts in both."""

    arm: str
    sums: UserSums
    num_clicks: int  # several on one impression count each
    num_clicking_users: int
    num_empty: int  # impressions without any result
    num_fingerprints: int  # of the models that answered: above 1 if the arm's model was replaced
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
    """How often an arm showed a product at a position, 1 for the top, and how often it was clicked there."""

    arm: str
    position: int
    num_shown: int
    num_clicks: int

    @property
    def click_rate(self) -> float:
        return self.num_clicks / self.num_shown


@dataclass(frozen=True)
class ExperimentCounts:
    """All counts of an experiment, in one snapshot."""

    experiment: str
    arms: Mapping[str, ArmCounts]  # by name, those with impressions
    positions: Sequence[PositionCounts]
    num_crossing_users: int  # with impressions in more than one arm
    first: datetime | None  # impression; None without any
    last: datetime | None


def count_experiments(connection: Connection) -> dict[str, int]:
    """Return the number of impressions by experiment."""
    query = select(impressions.c.experiment, func.count()).group_by(impressions.c.experiment)
    rows = connection.execute(query.order_by(impressions.c.experiment)).all()
    return {name: int(number) for name, number in rows}


def count_experiment(connection: Connection, experiment: str) -> ExperimentCounts:
    """Count users, impressions and clicks of an experiment by arm, and clicks by position."""
    is_in = impressions.c.experiment == experiment
    crossing_users = (
        select(impressions.c.user_hash)
        .where(is_in)
        .group_by(impressions.c.user_hash)
        .having(func.count(impressions.c.arm.distinct()) > 1)
    )
    first, last = connection.execute(
        select(func.min(impressions.c.time), func.max(impressions.c.time)).where(is_in)
    ).one()
    return ExperimentCounts(
        experiment,
        {arm.arm: arm for arm in _count_arms(connection, experiment)},
        _count_positions(connection, experiment),
        connection.execute(select(func.count()).select_from(crossing_users.subquery())).scalar_one(),
        first,
        last,
    )


def _count_arms(connection: Connection, experiment: str) -> list[ArmCounts]:
    is_in = impressions.c.experiment == experiment
    clicked = (  # impressions with clicks
        select(clicks.c.impression_id, func.count().label("num_clicks")).group_by(clicks.c.impression_id).subquery()
    )
    users = (  # one row for each user of each arm
        select(
            impressions.c.arm,
            func.count().label("n"),
            func.count(clicked.c.impression_id).label("c"),
            func.sum(func.coalesce(clicked.c.num_clicks, 0)).label("num_clicks"),
        )
        .select_from(impressions.outerjoin(clicked, impressions.c.impression_id == clicked.c.impression_id))
        .where(is_in)
        .group_by(impressions.c.arm, impressions.c.user_hash)
        .subquery()
    )
    n, c = users.c.n, users.c.c
    sums = (func.count(), func.sum(n), func.sum(c), func.sum(n * n), func.sum(c * c), func.sum(n * c))
    by_users = select(users.c.arm, *sums, func.sum(users.c.num_clicks), func.count().filter(c > 0))
    by_impressions = select(
        impressions.c.arm,
        func.count().filter(impressions.c.num_results == 0),
        func.count(impressions.c.fingerprint.distinct()),
        func.avg(impressions.c.latency_ms),
    ).where(is_in)
    others = {arm: rest for arm, *rest in connection.execute(by_impressions.group_by(impressions.c.arm))}
    arms = []
    for arm, *parts in connection.execute(by_users.group_by(users.c.arm).order_by(users.c.arm)).all():
        num_empty, num_fingerprints, latency = others[arm]
        arms.append(
            ArmCounts(
                arm,
                UserSums(*map(float, parts[:6])),
                num_clicks=int(parts[6]),
                num_clicking_users=int(parts[7]),
                num_empty=int(num_empty),
                num_fingerprints=int(num_fingerprints),
                mean_latency_ms=float(latency),
            )
        )
    return arms


def _count_positions(connection: Connection, experiment: str) -> list[PositionCounts]:
    is_clicked = and_(clicks.c.impression_id == shown.c.impression_id, clicks.c.product_id == shown.c.product_id)
    query = (
        select(impressions.c.arm, shown.c.position, func.count(), func.count(clicks.c.product_id))
        .select_from(shown.join(impressions).outerjoin(clicks, is_clicked))
        .where(impressions.c.experiment == experiment)
        .group_by(impressions.c.arm, shown.c.position)
        .order_by(impressions.c.arm, shown.c.position)
    )
    return [
        PositionCounts(arm, position, num, num_clicked) for arm, position, num, num_clicked in connection.execute(query)
    ]
