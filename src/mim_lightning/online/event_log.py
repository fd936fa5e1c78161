"""The event log: impressions and clicks into a database, and their counts out of it.

Impressions and clicks come in from the service, ids and counts go out. Nothing is ever changed or removed. One log a
process, made after a fork and used by all its threads; every call waits for the disk, so an async server calls it as
`await asyncio.to_thread(log.record_impression, impression)` or from a route that is no coroutine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

try:
    from sqlalchemy import Connection
except ImportError as error:
    raise ValueError("event log: install the extra: pip install 'mim-lightning[online]'") from error

from mim_lightning.online.counting import count_experiment, count_experiments
from mim_lightning.online.counts import ArmCounts, ExperimentCounts
from mim_lightning.online.database import (
    BUSY_SECONDS,
    DatabaseFile,
    database_url,
    is_sqlite,
    open_engine,
    opening,
    prepare,
    reading,
    told,
    writing,
)
from mim_lightning.online.events import Click, Impression
from mim_lightning.online.recording import add_click, add_events


class EventLog:
    """An append-only log of impressions and clicks in SQLite or PostgreSQL.

    An impression is recorded with all it showed or not at all, and what a `record_*` has returned from survives the
    end of the process, however sudden. Recording raises ValueError for what does not fit what was recorded before,
    and OSError where the database fails.

    Args:
        events: the path of an SQLite file, or a URL: sqlite:///path, postgresql://user:password@host/database.
        create: make the tables where there are none; otherwise the database must be an event log already.
        wait_seconds: that recording waits for others who write, or for a server that does not answer.

    Raises:
        ValueError: cannot be opened, is no event log, or is one of another version.
    """

    def __init__(self, events: str, create: bool = True, wait_seconds: float | None = None) -> None:
        url = database_url(events)
        self.name = told(url)
        self._turn, self._wait = threading.Lock(), BUSY_SECONDS if wait_seconds is None else wait_seconds
        with opening(url):
            self._engine = open_engine(url, create, wait_seconds)
            prepare(self._engine, create)
            self._file = DatabaseFile(self._engine) if is_sqlite(url) else None

    def record_impression(self, impression: Impression) -> str:
        """Record an answer with the products it showed, and return its id."""
        self.record_many([impression])
        return impression.impression_id

    def record_click(self, click: Click) -> bool:
        """Record a click; return False for one that was recorded before, of which the first counts.

        Raises:
            ValueError: the impression is not known, or did not show this product.
        """
        with self._writing() as connection:
            return add_click(connection, click)

    def record_many(self, impressions: Sequence[Impression], clicks: Sequence[Click] = ()) -> None:
        """Record impressions, and clicks on these very impressions, in one transaction: all or nothing.

        Raises:
            ValueError: an impression is recorded already, or a click is on nothing that these impressions showed.
        """
        with self._writing() as connection:
            add_events(connection, impressions, clicks)

    def experiments(self) -> dict[str, int]:
        """Return the number of impressions by experiment."""
        with reading(self._engine, self.name) as connection:
            return count_experiments(connection)

    def counts(self, experiment: str) -> ExperimentCounts:
        """Count an experiment as it is at one moment, while others go on writing; an unknown one has no arms."""
        with reading(self._engine, self.name) as connection:
            return count_experiment(connection, experiment)

    def arm_counts(self, experiment: str) -> Mapping[str, ArmCounts]:
        """Return the counts of each arm that was shown to somebody, by name."""
        return self.counts(experiment).arms

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if self._file is None:
            with writing(self._engine, self.name) as connection:
                yield connection
            return
        # SQLite has one writer at a time: threads queue here instead of polling the file
        if not self._turn.acquire(timeout=self._wait):
            raise TimeoutError(f"{self.name}: the event log failed: its writers waited longer than {self._wait:g} s")
        try:
            self._file.check(self.name)
            with writing(self._engine, self.name) as connection:
                yield connection
        finally:
            self._turn.release()

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
