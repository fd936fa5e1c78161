"""From a path or URL to a database engine: SQLite that survives a crash, or PostgreSQL.

The text of a config comes in, an SQLAlchemy engine goes out; `EventLog` calls it. What cannot be opened is told in
one line, without the password.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, TimeoutError

from mim_lightning.online.schema import create_tables, has_tables

BUSY_SECONDS = 30  # that a writer of SQLite waits for one in another process
_CREATION_LOCK = 0x6D696D  # any number that all processes agree on


def database_url(events: str) -> URL:
    """Return the URL of a database from a URL, or from the path of an SQLite file.

    Raises:
        ValueError: not a URL, of another kind of database, or an SQLite database without a file.
    """
    if "://" not in events:
        return URL.create("sqlite", database=events)
    try:
        url = make_url(events)
    except (ArgumentError, ValueError) as error:  # the latter of a port that is no number
        raise ValueError(f"events={events.split('://')[0]}://...: is no database URL") from error
    if url.get_backend_name() in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite":
        raise ValueError(
            f"events={told(url)}: is of '{url.get_backend_name()}'; give postgresql://... or the path of an SQLite file"
        )
    if not url.database or url.database == ":memory:":
        raise ValueError(f"events={told(url)}: names no file; what is in memory only, a crash would lose")
    return url


def told(url: URL) -> str:
    """Return a database as messages name it: the path of an SQLite file, or a URL with its password hidden."""
    if url.get_backend_name() == "sqlite" and url.database:
        return url.database
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def open_engine(url: URL, create: bool, wait_seconds: float | None = None) -> Engine:
    """Return an engine; the folder of a new SQLite file is made, a missing file is refused unless `create`.

    Args:
        wait_seconds: that a statement may take; None: reports may take long, and writers of SQLite wait for others.
    """
    if not is_sqlite(url):
        try:
            # a restarted server costs one round trip, not an error
            return create_engine(url, pool_pre_ping=True, **_patience(wait_seconds))
        except ImportError as error:
            raise ValueError("install the driver: pip install 'psycopg[binary]'") from error
    assert url.database is not None
    path = Path(url.database)
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.is_file():
        raise ValueError("there is no such event log")
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS if wait_seconds is None else wait_seconds})
    event.listen(engine, "connect", _set_pragmas)
    return engine


def _patience(seconds: float | None) -> dict[str, Any]:
    """Return settings of PostgreSQL's driver and of the pool, none of which waits longer."""
    if seconds is None:
        return {}
    milliseconds = int(1000 * seconds)
    arguments = {
        "connect_timeout": max(2, math.ceil(seconds)),  # the driver takes 1 for 2
        "tcp_user_timeout": milliseconds,
        "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
    }
    return {"pool_timeout": seconds, "connect_args": arguments}


class DatabaseFile:
    """An SQLite database's file, which may be removed or replaced while it is open: what is written then is lost."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._identity = engine, self._look(engine)

    def check(self, name: str) -> None:
        """Open the file anew if another one has taken its place.

        Raises:
            FileNotFoundError: there is none, or it is empty.
        """
        identity = self._look(self._engine)
        if identity != self._identity:
            self._engine.dispose()  # its connections write where nobody will ever read
            self._identity = identity
        if identity is None:
            raise FileNotFoundError(f"{name}: the event log was removed, or emptied")

    @staticmethod
    def _look(engine: Engine) -> tuple[int, int] | None:
        assert engine.url.database is not None
        try:
            found = os.stat(engine.url.database)
        except OSError:
            return None
        # an empty file is not opened: SQLite would remove the journal beside it, which still holds events
        return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) and found.st_size else None


def prepare(engine: Engine, create: bool) -> None:
    """Make the tables where there are none; of several processes that come at once, one does.

    Raises:
        ValueError: this is no event log, or one of another version.
    """
    with engine.connect() as connection:
        is_there = has_tables(connection)
        connection.rollback()
        if is_there:
            return
        if not create:
            raise ValueError("holds no event log")
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # readers do not wait for the writer, nor it for them
            connection.rollback()
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(select(func.pg_advisory_xact_lock(_CREATION_LOCK)))
        if not has_tables(connection):
            create_tables(connection)
        connection.commit()


def _set_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")  # what is committed survives a power cut too
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


@contextmanager
def opening(url: URL) -> Iterator[None]:
    """Name the database in what goes wrong while it is opened; ValueError for all of it."""
    try:
        yield
    except DBAPIError as error:
        raise ValueError(f"events={told(url)}: cannot be opened: {_reason(error)}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"events={told(url)}: {error}") from error


@contextmanager
def writing(engine: Engine, name: str) -> Iterator[Connection]:
    """Give a connection in a transaction, which is on the disk when this ends, or else undone.

    Raises:
        ValueError: a row is there already, or breaks a rule of the tables.
        OSError: the database failed.
    """
    with _telling(name), engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine, name: str) -> Iterator[Connection]:
    """Give a connection whose statements all see the database as it is at one moment."""
    with _telling(name), engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")  # the driver begins by itself only where something is written
        else:
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


@contextmanager
def _telling(name: str) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise ValueError(f"{name}: is recorded already, or breaks a rule of the log: {_reason(error)}") from error
    except (DBAPIError, TimeoutError) as error:
        raise OSError(f"{name}: the event log failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", error)).split())
