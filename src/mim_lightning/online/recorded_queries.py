"""Recorded queries of an event log, with what they showed and what was clicked, for training on clicks."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, Select, func, select

from mim_lightning.online.database import clicks, has_queries, impressions, queries, shown

NUM_AT_ONCE = 10_000  # rows in memory


def select_queries(connection: Connection, experiment: str | None) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield id, text and photo of each query, ordered by id."""
    found = select(queries.c.query_id, func.max(queries.c.text), func.max(queries.c.photo))
    yield from _rows(connection, _of(found, experiment).group_by(queries.c.query_id).order_by(queries.c.query_id))


def select_shown(connection: Connection, experiment: str | None) -> Iterator[tuple[str, str, str, int, bool]]:
    """Yield impression, query, product, position and whether it was clicked."""
    columns = queries.c.impression_id, queries.c.query_id, shown.c.product_id, shown.c.position
    is_clicked = (clicks.c.impression_id == shown.c.impression_id) & (clicks.c.product_id == shown.c.product_id)
    found = select(*columns, clicks.c.product_id.is_not(None)).select_from(
        queries.join(shown, shown.c.impression_id == queries.c.impression_id).outerjoin(clicks, is_clicked)
    )
    yield from _rows(connection, _of(found, experiment).order_by(queries.c.query_id, *columns[::3]))


def _of(found: Select, experiment: str | None) -> Select:
    if experiment is None:
        return found
    own = select(impressions.c.impression_id).where(impressions.c.experiment == experiment)
    return found.where(queries.c.impression_id.in_(own))


def _rows(connection: Connection, found: Select) -> Iterator:
    if has_queries(connection):
        yield from map(tuple, connection.execution_options(yield_per=NUM_AT_ONCE).execute(found))
