"""Recorded queries of an event log, with what they showed and what was clicked, for training on clicks.

Those of photo and words are left out: which product is on the photo is not known, and what was clicked is what the
words asked for.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Select, and_, case, func, or_, select

from mim_lightning.display.numbers import format_count
from mim_lightning.ids import hash_id
from mim_lightning.io.atomic import atomic_write
from mim_lightning.online.database import clicks, has_queries, impressions, queries, shown

if TYPE_CHECKING:
    from mim_lightning.online.event_log import EventLog

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


def write_clicks(log: EventLog, experiment: str | None, folder: Path) -> None:
    """Write the tables of recorded queries; a tenth of them, by their ids, are the split val.

    Raises:
        ValueError: there is no query to write; tables of an earlier call stay.
    """
    rows = (
        (query_id, "val" if hash_id(query_id) % 10 == 0 else "train", photo, text)
        for query_id, text, photo in log.read_queries(experiment)
    )
    first, left_out = next(rows, None), log.count_left_out(experiment)
    others = "".join(f"; left out: {format_count(count, 'query')} {what}" for what, count in left_out.items())
    if first is None:
        of = f" of experiment_name={experiment}" if experiment else ""
        hint = others or "; serve with record_queries=true"
        raise ValueError(f"event_log={log.name}: has no recorded queries{of} to write{hint}")
    shown_rows = ((*row[:-1], int(row[-1])) for row in log.read_shown(experiment))
    folder.mkdir(parents=True, exist_ok=True)
    # both are complete before either replaces a former one
    with atomic_write(folder / "queries.csv") as partial, atomic_write(folder / "impressions.csv") as other_partial:
        num_queries = _write_csv(partial, ("query_id", "split", "image", "text"), chain([first], rows))
        num_rows = _write_csv(
            other_partial, ("impression_id", "query_id", "product_id", "position", "clicked"), shown_rows
        )
    print(f"{folder}: {format_count(num_queries, 'query')}, {format_count(num_rows, 'impression')}{others}")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    num_rows = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for num_rows, row in enumerate(rows, start=1):  # noqa: B007
            writer.writerow(row)
    return num_rows
