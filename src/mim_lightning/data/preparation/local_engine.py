"""Shards written by several processes of this machine, each shard by one of them.

PlannedSets come in, finished shards go out into a Store. A shard is a pure function of its task, so the bytes do not
depend on the number of processes; what an interrupted process finished is found by its markers and left as it is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.preparation.plan import RecordReader
from mim_lightning.data.preparation.planned_sets import PlannedSet, ShardTask
from mim_lightning.data.shards.damage import Damage
from mim_lightning.data.shards.files import INDEX_FILE
from mim_lightning.data.shards.set_index import IndexedShard, parse_index
from mim_lightning.data.shards.set_writer import (
    finish_set,
    finished_shards,
    place_shard,
    remove_marker,
    remove_markers,
    shard_path,
    write_columns,
)
from mim_lightning.data.shards.writer import Record, write_shard
from mim_lightning.display.progress import ProgressMeter
from mim_lightning.io.store import Store

ROWS_PER_PROCESS = 1_000  # fewer are written sooner than another process starts
MAX_PROCESSES = 16
TASKS_AHEAD = 2  # shards a process for which the rows are made ahead
POLL_S = 0.25  # seconds between two looks at the counters

OnRow = Callable[[int], None]  # is told the bytes of each sample's pictures


class StoppedError(Exception):
    """Another shard failed, or somebody pressed Ctrl-C: what this process was writing is not wanted any more."""


@dataclass(frozen=True)
class WritingSettings:
    """How rows become shards; `num_workers` processes write, None: what the machine and the rows suggest."""

    samples_per_shard: int
    max_image_side: int
    num_workers: int | None = None


class ShardWriter:
    """Writes one shard after the other; what each of the processes holds."""

    def __init__(self, store: Store, reader: ImageReader, max_image_side: int) -> None:
        self.store, self.records = store, RecordReader(reader, max_image_side)

    def write(self, task: ShardTask, on_row: OnRow) -> None:
        with self.store.scratch() as scratch:
            stem = scratch / "shard"
            facts = write_shard(stem, self._read(task, on_row), task.first)
            place_shard(self.store, task.set_name, task.shard_idx, stem, facts, task.rows_id)

    def write_again(self, task: ShardTask, known: IndexedShard) -> None:
        """Write a shard of a finished set as it was.

        Raises:
            ValueError: it would be another one than the set's index says.
        """
        with self.store.scratch() as scratch:
            stem = scratch / "shard"
            facts = write_shard(stem, self._read(task, lambda num_bytes: None), task.first)
            is_same = facts.size == known.size and known.num_bytes in (None, facts.num_bytes)
            if not is_same or known.crc32 not in (None, facts.crc32):
                raise ValueError(
                    f"{self.store.address}/{shard_path(task.set_name, task.shard_idx, '.tar')}: is missing or damaged, "
                    "and what its rows and pictures make today is another shard; prepare all anew by overwrite=true"
                )
            for suffix in (".npy", ".tar"):
                self.store.put(stem.with_suffix(suffix), shard_path(task.set_name, task.shard_idx, suffix))

    def _read(self, task: ShardTask, on_row: OnRow) -> Iterator[Record]:
        for sample in task.samples:
            record = self.records.record(sample)
            yield record
            on_row(sum(map(len, record.images.values())))


def write_sets(sets: Sequence[PlannedSet], store: Store, reader: ImageReader, settings: WritingSettings) -> None:
    """Write all sets, except for the shards that are finished already, and show the progress.

    Raises:
        ValueError: a picture cannot be read, or a process died.
    """
    finished = {planned.name: finished_shards(store, planned.name) for planned in sets}
    num_finished = sum(marker.size for markers in finished.values() for marker in markers.values())
    num_rows = sum(len(planned.items) for planned in sets) - num_finished
    tasks = _unfinished(sets, store, settings)
    num_workers = _num_workers(settings.num_workers, num_rows)
    with ProgressMeter(max(0, num_rows), num_finished) as progress:
        if num_workers <= 1:
            _write_here(tasks, ShardWriter(store, reader, settings.max_image_side), progress)
        else:
            _write_in_processes(tasks, num_workers, (store, reader, settings.max_image_side), progress)
    for planned in sets:
        finish_set(store, planned.name, -(-len(planned.items) // settings.samples_per_shard))
    remove_markers(store)


def write_again(
    sets: Sequence[PlannedSet],
    store: Store,
    reader: ImageReader,
    settings: WritingSettings,
    damages: Sequence[Damage],
) -> None:
    """Write what is damaged of finished sets as it was: single shards, and the columns that are lost.

    Raises:
        ValueError: a picture cannot be read, or a shard would be another one.
    """
    planned, writer = {part.name: part for part in sets}, ShardWriter(store, reader, settings.max_image_side)
    for damage in damages:
        index = parse_index(store.read(f"{damage.set_name}/{INDEX_FILE}"))
        wanted, part = set(damage.shard_idxs), planned.get(damage.set_name)
        tasks = part.shards(settings.samples_per_shard, settings.max_image_side) if part and wanted else iter(())
        for task in tasks:
            if task.shard_idx in wanted and task.shard_idx < len(index.sizes):
                writer.write_again(task, index.shard(task.shard_idx))
                wanted.discard(task.shard_idx)
        if wanted:
            raise ValueError(
                f"{store.address}/{damage.set_name}: shards are missing or damaged, and the rows of today make fewer; "
                "prepare all anew by overwrite=true"
            )
        if damage.columns:
            write_columns(store, damage.set_name, len(index.sizes), damage.columns)


def _unfinished(sets: Sequence[PlannedSet], store: Store, settings: WritingSettings) -> Iterator[ShardTask]:
    for planned in sets:
        markers = finished_shards(store, planned.name)
        for task in planned.shards(settings.samples_per_shard, settings.max_image_side):
            marker = markers.get(task.shard_idx)
            if marker is not None and marker.rows_id == task.rows_id:
                continue
            if marker is not None:
                remove_marker(store, planned.name, marker)
            yield task


def _write_here(tasks: Iterator[ShardTask], writer: ShardWriter, progress: ProgressMeter) -> None:
    def on_row(num_bytes: int) -> None:
        progress.update(progress.num_done + 1, progress.num_bytes + num_bytes)

    for task in tasks:
        writer.write(task, on_row)


def _write_in_processes(
    tasks: Iterator[ShardTask], num_workers: int, parts: tuple[Store, ImageReader, int], progress: ProgressMeter
) -> None:
    # Spawned, because the caller may hold threads (a trainer, a tokeniser) that a fork would not survive.
    context = multiprocessing.get_context("spawn")
    counts = context.RawArray("q", 2 * num_workers)  # rows and bytes, by process; no lock that a dead process may hold
    is_stopped = context.RawValue("b", 0)
    slots = context.SimpleQueue()
    for slot in range(num_workers):
        slots.put(slot)
    setup = (*parts, counts, is_stopped, slots)
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=setup) as pool:
        pending: set[Future[None]] = set()
        try:
            for task in tasks:
                pending.add(pool.submit(_write_one, task))
                while len(pending) >= TASKS_AHEAD * num_workers:
                    pending = _settle(pending, counts, progress)
            while pending:
                pending = _settle(pending, counts, progress)
        except BrokenProcessPool:
            raise ValueError(
                "a process that wrote shards was killed, perhaps for want of memory; run the same again: it goes on "
                "where it was, and with data.num_workers=1 it needs less"
            ) from None
        finally:
            is_stopped.value = 1
            pool.shutdown(wait=True, cancel_futures=True)


def _settle(pending: set[Future[None]], counts: Any, progress: ProgressMeter) -> set[Future[None]]:
    done, rest = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    progress.update(sum(counts[0::2]), sum(counts[1::2]))
    return rest


def _num_workers(wanted: int | None, num_rows: int) -> int:
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MAX_PROCESSES, num_rows // ROWS_PER_PROCESS))


# --- in the processes ---------------------------------------------------------------------------------

_writer: ShardWriter  # of this process, with
_count_row: OnRow  # what tells the parent about it


def _start_worker(store: Store, reader: ImageReader, max_side: int, counts: Any, is_stopped: Any, slots: Any) -> None:
    global _writer, _count_row
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent stops the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    slot = 2 * slots.get()

    def count_row(num_bytes: int) -> None:
        if is_stopped.value:
            raise StoppedError
        counts[slot] += 1
        counts[slot + 1] += num_bytes

    _writer, _count_row = ShardWriter(store, reader, max_side), count_row


def _end_with_parent() -> None:
    """Leave when the parent was killed: nobody else would tell this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_one(task: ShardTask) -> None:
    _writer.write(task, _count_row)
