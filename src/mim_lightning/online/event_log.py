"""The event log: records impressions and clicks in a database, and counts them.

No row is ever changed or removed. Open one log a process, after any fork; all threads share it. Every call waits for
the disk: an async server calls it as `await asyncio.to_thread(log.record_impression, impression)`, or from a route
that is not a coroutine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

try:
    from sqlalchemy import Connection, insert, literal, select
    from sqlalchemy.dialects import postgresql, sqlite
except ImportError as error:
    raise ValueError("event log: install the extra: pip install 'mim-lightning[online]'") from error

from mim_lightning.online.aggregates import ExperimentCounts, count_experiment, count_experiments
from mim_lightning.online.database import (
    BUSY_SECONDS,
    DatabaseFile,
    clicks,
    database_url,
    display_url,
    impressions,
    is_sqlite,
    open_event_log,
    queries,
    reading,
    shown,
    writing,
)
from mim_lightning.online.events import Click, Impression
from mim_lightning.online.recorded_queries import count_left_out, select_queries, select_shown

_Row = dict[str, Any]  # values by column


class EventLog:
    """An append-only log of impressions and clicks in SQLite or PostgreSQL.

    An impression is recorded with all its products or not at all. What a `record_*` call has returned from survives a
    crash of the process. Recording raises ValueError for what contradicts earlier records, and OSError where the
    database fails.

    Args:
        events: the path of an SQLite file, or a URL: sqlite:///path, postgresql://user:password@host/database.
        create: create the tables where they are missing; otherwise the database must be an event log already.
        wait_seconds: timeout of recording, for other writers or for a server that does not answer.
        with_queries: whether impressions may have an `AskedQuery`; the table for them is created.

    Raises:
        ValueError: the database cannot be opened, is no event log, or has another version.
    """

    def __init__(
        self, events: str, create: bool = True, wait_seconds: float | None = None, with_queries: bool = False
    ) -> None:
        url = database_url(events)
        self.name = display_url(url)
        self._write_lock, self._wait = threading.Lock(), BUSY_SECONDS if wait_seconds is None else wait_seconds
        self._engine = open_event_log(url, create, wait_seconds, with_queries)
        self._file = DatabaseFile(self._engine) if is_sqlite(url) else None

    def record_impression(self, impression: Impression) -> str:
        """Record an answer with its products, and return its id."""
        self.record_many([impression])
        return impression.impression_id

    def record_click(self, click: Click) -> bool:
        """Record a click; return False if it was recorded before: the first one counts.

        Raises:
            ValueError: the impression is unknown, or did not show this product.
        """
        is_shown = (shown.c.impression_id == click.impression_id) & (shown.c.product_id == click.product_id)
        time = literal(click.time, clicks.c.time.type)
        row = select(shown.c.impression_id, shown.c.product_id, shown.c.position, time).where(is_shown)
        with self._writing() as connection:
            # one statement: between a check and an insert another process could record the same click
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            insertion = dialect.insert(clicks).from_select(["impression_id", "product_id", "position", "time"], row)
            options = {"preserve_rowcount": True}  # PostgreSQL's would not be kept after an insert
            if connection.execute(insertion.on_conflict_do_nothing(), execution_options=options).rowcount > 0:
                return True
            if connection.execute(row).first() is not None:
                return False
            known = select(1).where(impressions.c.impression_id == click.impression_id)
            is_known = connection.execute(known).first() is not None
        raise ValueError(f"{_name(click)}: " + ("was not shown" if is_known else "there is no such impression"))

    def record_many(self, impressions: Sequence[Impression], clicks: Sequence[Click] = ()) -> None:
        """Record impressions, and clicks on these very impressions, in one transaction: all or nothing.

        Raises:
            ValueError: an impression is already recorded, or a click is on a product that these impressions lack.
        """
        rows = _rows(impressions, clicks)
        with self._writing() as connection:
            for table, values in rows:
                if values:
                    connection.execute(insert(table), values)

    def experiments(self) -> dict[str, int]:
        """Return the number of impressions by experiment."""
        with reading(self._engine, self.name) as connection:
            return count_experiments(connection)

    def counts(self, experiment: str) -> ExperimentCounts:
        """Count an experiment in one snapshot, while other processes write; an unknown experiment has no arms."""
        with reading(self._engine, self.name) as connection:
            return count_experiment(connection, experiment)

    def read_queries(self, experiment: str | None = None) -> Iterator[tuple[str, str | None, str | None]]:
        """Yield id, text and photo of each recorded query that a row can say; None: of all experiments."""
        with reading(self._engine, self.name) as connection:
            yield from select_queries(connection, experiment)

    def read_shown(self, experiment: str | None = None) -> Iterator[tuple[str, str, str, int, bool]]:
        """Yield each shown product of these queries: impression, query, product, position, and whether clicked."""
        with reading(self._engine, self.name) as connection:
            yield from select_shown(connection, experiment)

    def count_left_out(self, experiment: str | None = None) -> dict[str, int]:
        """Return how many recorded queries no row can say, by what is not known of them."""
        with reading(self._engine, self.name) as connection:
            return count_left_out(connection, experiment)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if self._file is None:
            with writing(self._engine, self.name) as connection:
                yield connection
            return
        # SQLite has one writer at a time: threads queue here instead of polling the file
        if not self._write_lock.acquire(timeout=self._wait):
            raise TimeoutError(f"{self.name}: the event log failed: its writers waited longer than {self._wait:g} s")
        try:
            self._file.check(self.name)
            with writing(self._engine, self.name) as connection:
                yield connection
        finally:
            self._write_lock.release()

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _rows(batch: Sequence[Impression], clicked: Sequence[Click]) -> list[tuple[Any, list[_Row]]]:
    """Return each table with its new rows, in an order that satisfies the foreign keys."""
    names = ("impression_id", "time", "experiment", "arm", "user_hash", "kind", "latency_ms", "fingerprint")
    impression_rows = [
        {**{name: getattr(impression, name) for name in names}, "num_results": len(impression.shown)}
        for impression in batch
    ]
    reference_rows = [
        {
            "impression_id": impression.impression_id,
            "product_id": product.product_id,
            "position": position,
            "score": product.score,
        }
        for impression in batch
        for position, product in enumerate(impression.shown, start=1)
    ]
    positions = {(row["impression_id"], row["product_id"]): row["position"] for row in reference_rows}
    query_rows = [
        {"impression_id": impression.impression_id, **vars(impression.asked)}
        for impression in batch
        if impression.asked
    ]
    click_rows: dict[tuple[str, str], _Row] = {}
    for click in clicked:
        key = click.impression_id, click.product_id
        if key not in positions:
            raise ValueError(f"{_name(click)}: the product is not in an impression recorded with the click")
        row = {"impression_id": key[0], "product_id": key[1], "position": positions[key], "time": click.time}
        click_rows.setdefault(key, row)
    rows = [(impressions, impression_rows), (shown, reference_rows), (clicks, list(click_rows.values()))]
    return [*rows, (queries, query_rows)]


def _name(click: Click) -> str:
    return f"click on product '{click.product_id[:80]}' of impression '{click.impression_id}'"
