"""The tables of the event log, that nothing in them is ever changed, and which version of them a database has.

A connection in a transaction comes in and has the tables afterwards; `EventLog` calls it when it is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Dialect,
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
    insert,
    inspect,
    select,
)

from mim_lightning.online.events import KINDS

VERSION = 1
Row = dict[str, Any]  # values by column


class UtcTime(TypeDecorator[datetime]):
    """A time with a time zone in, the same time in UTC out, also where the database keeps no zone."""

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
version = Table("event_log_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))


def has_tables(connection: Connection) -> bool:
    """Return whether this database is an event log of this version, or, if False, may become one.

    Raises:
        ValueError: it is of another version, or holds tables of these names that are something else.
    """
    present = set(inspect(connection).get_table_names()) & set(metadata.tables)
    if not present:
        return False
    if present != set(metadata.tables):
        raise ValueError(f"has a table '{min(present)}' but is no event log; give a database of its own")
    found = connection.execute(select(version.c.version)).scalars().all()
    if found != [VERSION]:
        told = ", ".join(map(str, found)) or "none"
        raise ValueError(f"is an event log of schema version {told}; this program writes and reads version {VERSION}")
    return True


def create_tables(connection: Connection) -> None:
    """Make tables and triggers, all or nothing: the caller's transaction holds them."""
    metadata.create_all(connection, checkfirst=False)
    for statement in _triggers(connection.dialect.name):
        connection.exec_driver_sql(statement)
    connection.execute(insert(version).values(version=VERSION))


def _triggers(dialect: str) -> Iterator[str]:
    """Yield what makes every table refuse a change: not from here, where there is none, but from anywhere else."""
    if dialect == "sqlite":
        for table in metadata.sorted_tables:
            for change in ("UPDATE", "DELETE"):
                yield _sqlite_trigger(table.name, change, "1", "ABORT")
            key = " AND ".join(f"{column.name} = NEW.{column.name}" for column in table.primary_key)
            # INSERT OR REPLACE would delete without a DELETE; a click that comes again is no error
            exists = f"EXISTS (SELECT 1 FROM {table.name} WHERE {key})"
            yield _sqlite_trigger(table.name, "INSERT", exists, "IGNORE" if table is clicks else "ABORT")
        return
    yield (
        "CREATE FUNCTION event_log_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ': is append-only'; END $$"
    )
    for table in metadata.sorted_tables:
        yield (
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table.name} "
            "FOR EACH STATEMENT EXECUTE FUNCTION event_log_refuse_change()"
        )


def _sqlite_trigger(table: str, change: str, condition: str, answer: str) -> str:
    raised = "RAISE(IGNORE)" if answer == "IGNORE" else f"RAISE({answer}, '{table}: is append-only')"
    return (
        f"CREATE TRIGGER {table}_no_{'replace' if change == 'INSERT' else change.lower()} BEFORE {change} ON {table} "
        f"WHEN {condition} BEGIN SELECT {raised}; END"
    )
