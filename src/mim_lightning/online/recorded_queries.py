"""Recorded queries of an event log, with what they showed and what was clicked, for training on clicks.

Those of photo and words are left out: which product is on the photo is not known, and what was clicked is what the
words asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, Select, and_, case, func, or_, select

from mim_lightning.online.database import clicks, has_queries, impressions, queries, shown

NUM_AT_ONCE = 10_000  # rows in memory
_ASKED = queries.join(impressions, impressions.c.impression_id == queries.c.impression_id)
_IS_ROW = or_(
    and_(impressions.c.kind == "image", queries.c.photo.is_not(None)),
    and_(impressions.c.kind == "text", queries.c.text.is_not(None)),
)


def select_queries(connection: Connection, experiment: str | None) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield id, text and photo of each query that a row can say, ordered by id."""
    found = select(queries.c.query_id, func.max(queries.c.text), func.max(queries.c.photo)).select_from(_ASKED)
    yield from _rows(
        connection, _of(found.where(_IS_ROW), experiment).group_by(queries.c.query_id).order_by(queries.c.query_id)
    )


def select_shown(connection: Connection, experiment: str | None) -> Iterator[tuple[str, str, str, int, bool]]:
    """Yield impression, query, product, position and whether it was clicked, of queries that a row can say."""
    columns = queries.c.impression_id, queries.c.query_id, shown.c.product_id, shown.c.position
    is_clicked = (clicks.c.impression_id == shown.c.impression_id) & (clicks.c.product_id == shown.c.product_id)
    found = select(*columns, clicks.c.product_id.is_not(None)).select_from(
        _ASKED.join(shown, shown.c.impression_id == queries.c.impression_id).outerjoin(clicks, is_clicked)
    )
    yield from _rows(connection, _of(found.where(_IS_ROW), experiment).order_by(queries.c.query_id, *columns[::3]))


def count_left_out(connection: Connection, experiment: str | None) -> dict[str, int]:
    """Return how many queries no row can say, by what is not known of them."""
    composed = func.max(case((impressions.c.kind == "composed", 1), else_=0))
    found = select(composed.label("is_composed")).select_from(_ASKED).group_by(queries.c.query_id)
    left_out = _of(found.having(func.max(case((_IS_ROW, 1), else_=0)) == 0), experiment).subquery()
    counts = select(left_out.c.is_composed, func.count()).group_by(left_out.c.is_composed)
    names = ("without a kept photo, or with parts that a row has no column for", "of photo and words")
    return {names[is_composed]: number for is_composed, number in _rows(connection, counts)}


def _of(found: Select, experiment: str | None) -> Select:
    return found if experiment is None else found.where(impressions.c.experiment == experiment)


def _rows(connection: Connection, found: Select) -> Iterator:
    if has_queries(connection):
        yield from map(tuple, connection.execution_options(yield_per=NUM_AT_ONCE).execute(found))
