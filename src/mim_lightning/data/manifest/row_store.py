"""A database of rows that keeps on disk what exceeds its memory: there a manifest of any size is joined and sorted.

Joins, sorts and aggregates over all rows are queries of DuckDB, which spills them. Rows enter and leave in batches; a
table is read in the order in which it was written. Not for child processes.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.display.numbers import format_bytes
from mim_lightning.io.machine import memory_bytes, num_cores
from mim_lightning.io.mapped_file import map_new

MEMORY_FRACTION = 0.25  # of the machine or container: the processes that read images and write shards need the rest
MEMORY_PER_THREAD = 1 << 30  # bytes: a thread sorts 120,000 rows at once, with texts of several kilobytes
BYTES_PER_ROW = 1_000  # on disk, of a product or query with its place in every sort
BATCH_ROWS = 20_000  # written at once
READ_ROWS = 2_048  # read at once: as many as a vector of DuckDB has
SMALL = 500  # rows that are inserted faster than pyarrow is imported
NUM_AT_ONCE = 1 << 20  # ranks in memory
SCRATCH = ".scratch-rows-"  # begins the name of a database's folder, as that of other scratch files


@dataclass
class StorePlace:
    """Where databases of rows are, and how much memory each may use.

    Args:
        folder: for what exceeds the memory; None: that of temporary files.
        memory: bytes; None: a quarter of the machine's or the container's.
    """

    folder: Path | None = None
    memory: int | None = None
    stores: list[RowStore] = field(default_factory=list)


_place: ContextVar[StorePlace] = ContextVar("place of row stores")


@contextmanager
def rows_in(folder: Path, memory: int | None = None) -> Iterator[None]:
    """Keep the rows of all manifests that are read meanwhile in a folder; they are gone at the end."""
    place = StorePlace(folder, memory)
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)
        for store in place.stores:
            store.close()


def current_store() -> RowStore:
    """Return the last store made where `rows_in` says: each has the memory for itself. Elsewhere a new one."""
    place = _place.get(None)
    return place.stores[-1] if place is not None and place.stores else RowStore()


class RowStore:
    """One database of rows, where `rows_in` says."""

    def __init__(self) -> None:
        import duckdb  # takes 0.1 s, which processes that only write shards do without

        place = _place.get(None) or StorePlace()
        self._names, self._num_written, self._is_closed = count(), 0, False
        self._error: type[Exception] = duckdb.Error
        self.memory = place.memory or int(MEMORY_FRACTION * memory_bytes())
        self.folder = (place.folder or Path(tempfile.gettempdir())) / f"{SCRATCH}{uuid.uuid4().hex}"
        if place.folder is not None:
            self.folder.mkdir(parents=True)
        config: dict[str, Any] = {
            "memory_limit": f"{self.memory}B",
            "temp_directory": str(self.folder),
            "threads": max(1, min(num_cores(), self.memory // MEMORY_PER_THREAD)),
        }
        # its temporary files take what exceeds the memory; a database file would cost a sync with every statement
        self._connection = duckdb.connect(":memory:", config=config)
        place.stores.append(self)

    def create(self, noun: str, columns: str) -> str:
        """Create an empty table and return its name."""
        name = f"{noun}_{next(self._names)}"
        self.run(f"CREATE TABLE {name} ({columns})")
        return name

    def select(self, noun: str, query: str, values: Sequence[Any] = ()) -> str:
        """Create a table of the rows of a query and return its name."""
        name = f"{noun}_{next(self._names)}"
        self.run(f"CREATE TABLE {name} AS {query}", values)
        return name

    def drop(self, table: str) -> None:
        """Remove a table; a closed store has none."""
        if not self._is_closed:
            self.run(f"DROP TABLE {table}")

    def run(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and return all of its rows.

        Raises:
            ValueError: the disk is full, or memory ran out.
        """
        with self._described_errors():
            return self._connection.execute(statement, values).fetchall()

    def number(self, query: str, values: Sequence[Any] = ()) -> int:
        """Return the number that a query finds, 0 for null."""
        return self.run(query, values)[0][0] or 0

    def read(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query; other statements may run meanwhile."""
        with self._described_errors():
            cursor = self._connection.cursor()
            cursor.execute(query, values)
        while True:
            with self._described_errors():
                rows = cursor.fetchmany(READ_ROWS)
            if not rows:
                cursor.close()
                return
            yield from rows

    def read_sorted(self, query: str, order: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query in an order, from a table of their own: joins and a sort need less memory apart."""
        table = self.select("unsorted", query, values)
        try:
            yield from self.read(f"FROM {table} ORDER BY {order}")
        finally:
            self.drop(table)

    def read_with(
        self, table: str, found: str, condition: str = "false", values: Sequence[Any] = ()
    ) -> Iterator[tuple[Sequence[Any], list[Sequence[Any]]]]:
        """Yield rows in the order of their positions, each with what a table of (position, ...) has of its position.

        A join would copy a row for each of these, with all that it lists; DuckDB cannot spill the state of `list()`.

        Args:
            found: of the positions of which rows are read.
            condition: of further rows.
        """
        rows = (
            f"FROM {table} SEMI JOIN {found} USING (position) UNION ALL "
            f"FROM {table} ANTI JOIN {found} USING (position) WHERE {condition}"
        )
        groups = groupby(self.read(f"FROM {found} ORDER BY position"), key=itemgetter(0))
        position, group = next(groups, (None, iter(())))
        for row in self.read_sorted(rows, "position", values):
            own: list[Sequence[Any]] = []
            if row[0] == position:
                own = [one[1:] for one in group]
                position, group = next(groups, (None, iter(())))
            yield row, own

    def write(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Append rows to a table."""
        remaining = iter(rows)
        while batch := list(islice(remaining, BATCH_ROWS)):
            self.write_batch(table, batch)

    def write_batch(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Append a batch of rows to a table."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        self._num_written += len(rows)
        if len(rows) < SMALL:
            if rows:
                self.run(f"INSERT INTO {table} SELECT {', '.join('unnest(?)' for _ in columns)}", columns)
            return
        import pyarrow

        with self._described_errors():
            schema = self._connection.sql(f"FROM {table} LIMIT 0").to_arrow_table().schema
            arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
            self._connection.register("batch", pyarrow.Table.from_arrays(arrays, schema=schema))
            self._connection.execute(f"INSERT INTO {table} FROM batch")
            self._connection.unregister("batch")

    def shuffled_ranks(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """Return where `rng.permutation` of a list puts each of its items, in a memory-mapped file if they are many."""
        order, ranks = self._array(num), self._array(num)
        for start in range(0, num, NUM_AT_ONCE):
            order[start : start + NUM_AT_ONCE] = np.arange(start, min(num, start + NUM_AT_ONCE))
        rng.shuffle(order)
        for start in range(0, num, NUM_AT_ONCE):
            ranks[order[start : start + NUM_AT_ONCE]] = np.arange(start, min(num, start + NUM_AT_ONCE))
        return ranks

    def _array(self, num: int) -> np.ndarray:
        dtype = np.uint32 if num < 1 << 32 else np.uint64
        if num <= NUM_AT_ONCE or not self.folder.is_dir():
            return np.empty(num, dtype)
        with (self.folder / f"{uuid.uuid4().hex}.ranks").open("w+b") as file:
            # a plain array: of a memmap, numpy shuffles the items one by one in Python
            return np.asarray(map_new(file, dtype, (num,), self.folder.parent))

    def is_empty(self, table: str) -> bool:
        return not self.run(f"FROM {table} LIMIT 1")

    def close(self) -> None:
        """Remove all rows."""
        self._is_closed = True
        self._connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _described_errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            if reason := self._describe(" ".join(str(error).split())):
                raise ValueError(reason) from error
            raise

    def _describe(self, error: str) -> str:
        """Return in one line which resource the database ran out of, and how to raise it; "" for a bug of ours."""
        if "max_temp_directory_size" in error or "No space left" in error:
            folder = self.folder.parent
            needed = format_bytes(self._num_written * BYTES_PER_ROW)
            free = format_bytes(shutil.disk_usage(folder).free)
            return (
                f"{folder}: the disk is full: {self._num_written:,} rows need about {needed} until the shards are "
                f"written, {free} are free; make room, or choose a data.folder on another disk"
            )
        if "Out of Memory" in error:
            return f"data.validation.memory_limit={self.memory}: too little for these rows; give more ({error[:100]})"
        return ""


class RowWriter:
    """Appends rows to a new table of a store, one by one; `flush` after the last."""

    def __init__(self, store: RowStore, noun: str, columns: str) -> None:
        self.store, self.table = store, store.create(noun, columns)
        self._batch: list[Sequence[Any]] = []

    def add(self, row: Sequence[Any]) -> None:
        self._batch.append(row)
        if len(self._batch) == BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        self.store.write_batch(self.table, self._batch)
        self._batch = []


class RowChanges:
    """Rows to remove from a table by position, and rows that replace others.

    Args:
        columns: of the table.
    """

    def __init__(self, store: RowStore, columns: str) -> None:
        self.store = store
        self.dropped = RowWriter(store, "dropped", "position BIGINT")
        self.changed = RowWriter(store, "changed", columns)

    def drop(self, position: int) -> None:
        self.dropped.add((position,))

    def change(self, row: Sequence[Any]) -> None:
        """Replace the row that has its position."""
        self.changed.add(row)

    def apply(self, table: str) -> str:
        """Return the name of a table with the changes, which are used up; the given one stays as it is."""
        self.dropped.flush()
        self.changed.flush()
        dropped, changed = self.dropped.table, self.changed.table
        changed_rows = self._apply(table, dropped, changed)
        self.store.drop(dropped)
        self.store.drop(changed)
        return changed_rows

    def _apply(self, table: str, dropped: str, changed: str) -> str:
        if not self.store.is_empty(changed):
            kept = f"FROM {table} ANTI JOIN {dropped} USING (position) ANTI JOIN {changed} USING (position)"
            unsorted = self.store.select("unsorted", f"{kept} UNION ALL FROM {changed}")
            rows = self.store.select("rows", f"FROM {unsorted} ORDER BY position")
            self.store.drop(unsorted)
            return rows
        if self.store.is_empty(dropped):
            return table
        kept = self.store.select("rows", f"FROM {table}")  # in its order, without a sort
        self.store.run(f"DELETE FROM {kept} WHERE position IN (SELECT position FROM {dropped})")
        return kept
