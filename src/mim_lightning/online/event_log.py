"""The event log: impressions and clicks into a database, and their counts out of it.

Impressions and clicks come in from the service, ids and counts go out. Nothing is ever changed or removed. One log a
process, made after a fork and used by all its threads; every call waits for the disk, so an async server calls it as
`await asyncio.to_thread(log.record_impression, impression)` or from a route that is no coroutine.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

try:
    import sqlalchemy  # noqa: F401
except ImportError as error:
    raise ValueError("event log: install the extra: pip install 'mim-lightning[online]'") from error

from mim_lightning.online.counting import count_experiment, count_experiments
from mim_lightning.online.counts import ArmCounts, ExperimentCounts
from mim_lightning.online.database import database_url, is_sqlite, open_engine, opening, prepare, reading, told, writing
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

    Raises:
        ValueError: cannot be opened, is no event log, or is one of another version.
    """

    def __init__(self, events: str, create: bool = True) -> None:
        url = database_url(events)
        self.name = told(url)
        # SQLite has one writer at a time: threads queue here instead of polling the file
        self._turn: AbstractContextManager[Any] = threading.Lock() if is_sqlite(url) else nullcontext()
        with opening(url):
            self._engine = open_engine(url, create)
            prepare(self._engine, create)

    def record_impression(self, impression: Impression) -> str:
        """Record an answer with the products it showed, and return its id."""
        self.record_many([impression])
        return impression.impression_id

    def record_click(self, click: Click) -> bool:
        """Record a click; return False for one that was recorded before, of which the first counts.

        Raises:
            ValueError: the impression is not known, or did not show this product.
        """
        with self._turn, writing(self._engine, self.name) as connection:
            return add_click(connection, click)

    def record_many(self, impressions: Sequence[Impression], clicks: Sequence[Click] = ()) -> None:
        """Record impressions, and clicks on these very impressions, in one transaction: all or nothing.

        Raises:
            ValueError: an impression is recorded already, or a click is on nothing that these impressions showed.
        """
        with self._turn, writing(self._engine, self.name) as connection:
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

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
