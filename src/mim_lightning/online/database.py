"""The database of the event log: SQLite or PostgreSQL, its append-only tables, and transactions on it.

Errors name the database without its password.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, TimeoutError

from mim_lightning.online.events import KINDS

BUSY_SECONDS = 30  # that a writer of SQLite waits for one in another process
VERSION = 1  # of the tables
_CREATION_LOCK = 0x6D696D  # an arbitrary number, the same in all processes


class UtcTime(TypeDecorator[datetime]):
    """A column of times with a time zone, read back in UTC, also where the database stores no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()
impressions = Table(
    "impressions",
    metadata,
    Column("impression_id", Uuid(as_uuid=False), primary_key=True),
    Column("time", UtcTime, nullable=False),
    Column("experiment", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("user_hash", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("num_results", Integer, nullable=False),
    Column("latency_ms", Float, nullable=False),
    Column("fingerprint", Text, nullable=False),
    CheckConstraint(f"kind IN {KINDS}", name="kind_is_known"),
    CheckConstraint("length(user_hash) = 32", name="user_is_hashed"),
    Index("impressions_by_user", "experiment", "arm", "user_hash"),
)
shown = Table(
    "shown",
    metadata,
    Column("impression_id", Uuid(as_uuid=False), ForeignKey(impressions.c.impression_id), primary_key=True),
    Column("product_id", Text, primary_key=True),
    Column("position", Integer, CheckConstraint("position >= 1"), nullable=False),
    Column("score", Float, nullable=False),
    sqlite_with_rowid=False,
)
clicks = Table(
    "clicks",
    metadata,
    Column("impression_id", Uuid(as_uuid=False), primary_key=True),
    Column("product_id", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("time", UtcTime, nullable=False),
    ForeignKeyConstraint(["impression_id", "product_id"], [shown.c.impression_id, shown.c.product_id]),
    sqlite_with_rowid=False,
)
# A table that exists where queries are recorded: a log without it is as it always was.
queries = Table(
    "asked_queries",
    MetaData(),
    Column("impression_id", Uuid(as_uuid=False), ForeignKey(impressions.c.impression_id), primary_key=True),
    Column("query_id", Text, nullable=False),
    Column("text", Text),
    Column("photo", Text),
)
version = Table("event_log_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))


def database_url(events: str) -> URL:
    """Return the URL of a database, from a URL or from the path of an SQLite file.

    Raises:
        ValueError: not a URL, an unsupported database, or an SQLite URL without a file.
    """
    if "://" not in events:
        return URL.create("sqlite", database=events)
    try:
        url = make_url(events)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is not a number
        raise ValueError(f"event_log={events.split('://')[0]}://...: is not a database URL") from error
    if url.get_backend_name() in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite":
        raise ValueError(
            f"event_log={display_url(url)}: '{url.get_backend_name()}' is not supported; give postgresql://... or the "
            "path of an SQLite file"
        )
    if not url.database or url.database == ":memory:":
        raise ValueError(f"event_log={display_url(url)}: names no file; a crash would lose a database in memory")
    return url


def display_url(url: URL) -> str:
    """Return a database as messages name it: the path of an SQLite file, or a URL with its password hidden."""
    if is_sqlite(url) and url.database:
        return url.database
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def open_event_log(url: URL, create: bool, wait_seconds: float | None = None, with_queries: bool = False) -> Engine:
    """Return an engine on a database that has the tables of the event log.

    Args:
        url: from `database_url`.
        create: create the tables where they are missing, and the folder of a new SQLite file.
        wait_seconds: timeout of a statement; None: none for PostgreSQL, as reports may take long, and BUSY_SECONDS
            for a writer of SQLite that waits for others.
        with_queries: create the table of queries too.

    Raises:
        ValueError: the database cannot be opened, is no event log, or has another version of the tables.
    """
    try:
        engine = _create_engine(url, create, wait_seconds)
        try:
            _ensure_tables(engine, create)
            if with_queries:
                _ensure_queries(engine)
        except BaseException:
            engine.dispose()  # its connections would stay until the garbage collector runs
            raise
    except DBAPIError as error:
        raise ValueError(f"event_log={display_url(url)}: cannot be opened: {_reason(error)}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"event_log={display_url(url)}: {error}") from error
    return engine


@contextmanager
def writing(engine: Engine, name: str) -> Iterator[Connection]:
    """Yield a connection in a transaction, which is on disk at the end, or rolled back.

    Raises:
        ValueError: a row exists already, or violates a constraint.
        OSError: the database failed.
    """
    with _database_errors(name), engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine, name: str) -> Iterator[Connection]:
    """Yield a connection whose statements all see one snapshot of the database."""
    with _database_errors(name), engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")  # the driver itself begins a transaction only before a write
        else:
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


class DatabaseFile:
    """The file of an SQLite database: if it is removed or replaced while it is open, what is written is lost."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._inode = engine, self._stat(engine)

    def check(self, name: str) -> None:
        """Open the file again if another one has replaced it.

        Raises:
            FileNotFoundError: the file is missing or empty.
        """
        inode = self._stat(self._engine)
        if inode != self._inode:
            self._engine.dispose()  # its connections write to the removed file
            self._inode = inode
        if inode is None:
            raise FileNotFoundError(f"{name}: the event log was removed or emptied")

    @staticmethod
    def _stat(engine: Engine) -> tuple[int, int] | None:
        assert engine.url.database is not None
        try:
            status = os.stat(engine.url.database)
        except OSError:
            return None
        # an empty file is not opened: SQLite would remove the journal beside it, which still has events
        return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) and status.st_size else None


def _create_engine(url: URL, create: bool, wait_seconds: float | None) -> Engine:
    if not is_sqlite(url):
        try:
            # pre-ping: a restarted server costs one round trip, not an error
            return create_engine(url, pool_pre_ping=True, **_postgresql_timeouts(wait_seconds))
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


def _postgresql_timeouts(seconds: float | None) -> dict[str, Any]:
    if seconds is None:
        return {}
    milliseconds = int(1000 * seconds)
    arguments = {
        "connect_timeout": max(2, math.ceil(seconds)),  # the driver takes 1 for 2
        "tcp_user_timeout": milliseconds,
        "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
    }
    return {"pool_timeout": seconds, "connect_args": arguments}


def _set_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")  # what is committed survives a power failure too
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _ensure_tables(engine: Engine, create: bool) -> None:
    """Create the tables if they are missing; of several processes that start at once, one does.

    Raises:
        ValueError: the database is no event log, or has another version of the tables.
    """
    with engine.connect() as connection:
        has_tables = _has_tables(connection)
        connection.rollback()
        if has_tables:
            return
        if not create:
            raise ValueError("contains no event log")
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
            connection.rollback()
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(select(func.pg_advisory_xact_lock(_CREATION_LOCK)))
        if not _has_tables(connection):
            metadata.create_all(connection, checkfirst=False)
            for statement in _triggers(connection.dialect.name, metadata.sorted_tables):
                connection.exec_driver_sql(statement)
            connection.execute(insert(version).values(version=VERSION))
        connection.commit()


def _ensure_queries(engine: Engine) -> None:
    """Create the table of queries if it is missing; of several processes that start at once, one does."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(select(func.pg_advisory_xact_lock(_CREATION_LOCK)))
        if not has_queries(connection):
            queries.create(connection, checkfirst=False)
            for statement in _triggers(connection.dialect.name, [queries], is_first=False):
                connection.exec_driver_sql(statement)
        connection.commit()


def has_queries(connection: Connection) -> bool:
    """Return whether an event log has the table of queries."""
    return queries.name in inspect(connection).get_table_names()


def _has_tables(connection: Connection) -> bool:
    """Return whether the database is an event log of this version; False: the tables can be created.

    Raises:
        ValueError: it is of another version, or has other tables of these names.
    """
    present = set(inspect(connection).get_table_names()) & set(metadata.tables)
    if not present:
        return False
    if present != set(metadata.tables):
        raise ValueError(f"has a table '{min(present)}' but is no event log; give a separate database")
    versions = connection.execute(select(version.c.version)).scalars().all()
    if versions != [VERSION]:
        found = ", ".join(map(str, versions)) or "none"
        raise ValueError(f"is an event log of schema version {found}; this program reads and writes version {VERSION}")
    return True


def _triggers(dialect: str, tables: Sequence[Table], is_first: bool = True) -> Iterator[str]:
    """Yield triggers by which tables refuse changes: no code here makes any, another program might."""
    if dialect == "sqlite":
        for table in tables:
            for change in ("UPDATE", "DELETE"):
                yield _sqlite_trigger(table.name, change, "1", "ABORT")
            key = " AND ".join(f"{column.name} = NEW.{column.name}" for column in table.primary_key)
            # INSERT OR REPLACE would delete without a DELETE; a repeated click is no error
            exists = f"EXISTS (SELECT 1 FROM {table.name} WHERE {key})"
            yield _sqlite_trigger(table.name, "INSERT", exists, "IGNORE" if table is clicks else "ABORT")
        return
    if is_first:
        yield (
            "CREATE FUNCTION event_log_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ': is append-only'; END $$"
        )
    for table in tables:
        yield (
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table.name} "
            "FOR EACH STATEMENT EXECUTE FUNCTION event_log_refuse_change()"
        )


def _sqlite_trigger(table: str, change: str, condition: str, action: str) -> str:
    raised = "RAISE(IGNORE)" if action == "IGNORE" else f"RAISE({action}, '{table}: is append-only')"
    return (
        f"CREATE TRIGGER {table}_no_{'replace' if change == 'INSERT' else change.lower()} BEFORE {change} ON {table} "
        f"WHEN {condition} BEGIN SELECT {raised}; END"
    )


@contextmanager
def _database_errors(name: str) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise ValueError(f"{name}: is already recorded, or violates a constraint: {_reason(error)}") from error
    except (DBAPIError, TimeoutError) as error:
        raise OSError(f"{name}: the event log failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", error)).split())
