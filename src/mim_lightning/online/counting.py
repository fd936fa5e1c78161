"""Counts of an experiment, made by the database itself: no row of a user leaves it.

A connection and an experiment's name come in, `ExperimentCounts` go out; `EventLog` calls it in one transaction.
"""

from __future__ import annotations

from sqlalchemy import Connection, and_, func, select

from mim_lightning.online.counts import ArmCounts, ExperimentCounts, PositionCounts, UserSums
from mim_lightning.online.schema import clicks, impressions, shown

_of_impression = (  # (impression_id, num_clicks), where there are any
    select(clicks.c.impression_id, func.count().label("num_clicks")).group_by(clicks.c.impression_id).subquery()
)


def count_experiments(connection: Connection) -> dict[str, int]:
    """Return the number of impressions by experiment."""
    query = select(impressions.c.experiment, func.count()).group_by(impressions.c.experiment)
    rows = connection.execute(query.order_by(impressions.c.experiment)).all()
    return {name: int(number) for name, number in rows}


def count_experiment(connection: Connection, experiment: str) -> ExperimentCounts:
    """Count users, impressions and clicks of an experiment by arm, and clicks by position; without any, no arms."""
    is_in = impressions.c.experiment == experiment
    users = (
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
        connection.execute(select(func.count()).select_from(users.subquery())).scalar_one(),
        first,
        last,
    )


def _count_arms(connection: Connection, experiment: str) -> list[ArmCounts]:
    num_clicks = func.coalesce(_of_impression.c.num_clicks, 0)
    is_clicked = impressions.c.impression_id == _of_impression.c.impression_id
    users = (  # a row for each user of each arm
        select(
            impressions.c.arm,
            func.count().label("n"),
            func.count(_of_impression.c.impression_id).label("c"),
            func.sum(num_clicks).label("num_clicks"),
        )
        .select_from(impressions.outerjoin(_of_impression, is_clicked))
        .where(impressions.c.experiment == experiment)
        .group_by(impressions.c.arm, impressions.c.user_hash)
        .subquery()
    )
    n, c = users.c.n, users.c.c
    sums = (func.count(), func.sum(n), func.sum(c), func.sum(n * n), func.sum(c * c), func.sum(n * c))
    query = select(users.c.arm, *sums, func.sum(users.c.num_clicks), func.count().filter(c > 0))
    rows = connection.execute(query.group_by(users.c.arm).order_by(users.c.arm)).all()
    facts = _count_facts(connection, experiment)
    return [
        ArmCounts(arm, UserSums(*map(float, parts[:6])), int(parts[6]), int(parts[7]), *facts[arm])
        for arm, *parts in rows
    ]


def _count_facts(connection: Connection, experiment: str) -> dict[str, tuple[int, int, float]]:
    """Return by arm: impressions without results, fingerprints, mean latency in ms."""
    query = select(
        impressions.c.arm,
        func.count().filter(impressions.c.num_results == 0),
        func.count(impressions.c.fingerprint.distinct()),
        func.avg(impressions.c.latency_ms),
    )
    rows = connection.execute(query.where(impressions.c.experiment == experiment).group_by(impressions.c.arm))
    return {arm: (int(empty), int(fingerprints), float(latency)) for arm, empty, fingerprints, latency in rows}


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
