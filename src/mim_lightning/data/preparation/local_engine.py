"""Writes planned sets with several processes of this machine, one shard a process at a time.

A shard is a pure function of its task, so its bytes do not depend on the number of processes. Shards that an
interrupted process finished are found by their markers and kept.
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
from mim_lightning.data.preparation.plan import PlannedSet, RecordReader, ShardTask
from mim_lightning.data.preparation.prepared import PreparedData
from mim_lightning.data.shards.damage import Damage
from mim_lightning.data.shards.set_index import IndexedShard
from mim_lightning.data.shards.set_writer import (
    finish_set,
    finished_shards,
    place_shard,
    remove_marker,
    remove_markers,
    shard_path,
    write_columns,
)
from mim_lightning.data.shards.shard_writer import Record, write_shard
from mim_lightning.display.progress import ProgressMeter
from mim_lightning.io.machine import num_cores
from mim_lightning.io.shared_memory import validate_shared_memory
from mim_lightning.io.store import Store

ROWS_PER_PROCESS = 1_000  # fewer are written faster than another process starts
MAX_PROCESSES = 16
TASKS_AHEAD = 2  # shards a process that are planned ahead
POLL = 0.25  # seconds between two updates of the progress

OnRow = Callable[[int], None]  # is called with the bytes of each sample's images


class StoppedError(Exception):
    """Another shard failed, or Ctrl-C was pressed: this process is to stop writing."""


@dataclass(frozen=True)
class WritingSettings:
    """How rows become shards."""

    samples_per_shard: int
    max_image_side: int
    num_workers: int | None = None  # processes; None: by the cores and the number of rows


class ShardWriter:
    """Writes one shard after the other, in one process."""

    def __init__(self, store: Store, reader: ImageReader, max_image_side: int) -> None:
        self.store, self.records = store, RecordReader(reader, max_image_side)

    def write(self, task: ShardTask, on_row: OnRow) -> None:
        with self.store.scratch() as scratch:
            stem = scratch / "shard"
            facts = write_shard(stem, self._read(task, on_row), task.first)
            place_shard(self.store, task.set_name, task.shard_idx, stem, facts, task.content_id)

    def rewrite(self, task: ShardTask, known: IndexedShard) -> None:
        """Write a shard of a finished set again.

        Raises:
            ValueError: it would differ from what the set's index says.
        """
        with self.store.scratch() as scratch:
            stem = scratch / "shard"
            facts = write_shard(stem, self._read(task, lambda num_bytes: None), task.first)
            is_same = facts.size == known.size and known.num_bytes in (None, facts.num_bytes)
            if not is_same or known.crc32 not in (None, facts.crc32):
                raise ValueError(
                    f"{self.store.address}/{shard_path(task.set_name, task.shard_idx, '.tar')}: is missing or damaged, "
                    "and its rows or images have changed since; prepare everything again with overwrite=true"
                )
            for suffix in (".npy", ".tar"):
                self.store.put(stem.with_suffix(suffix), shard_path(task.set_name, task.shard_idx, suffix))

    def _read(self, task: ShardTask, on_row: OnRow) -> Iterator[Record]:
        for sample in task.samples:
            record = self.records.record(sample)
            yield record
            on_row(sum(map(len, record.images.values())))


def write_sets(sets: Sequence[PlannedSet], store: Store, reader: ImageReader, settings: WritingSettings) -> None:
    """Write the unfinished shards of all sets, and show the progress.

    Raises:
        ValueError: an image cannot be read, or a process died.
    """
    finished = {planned.name: finished_shards(store, planned.name) for planned in sets}
    num_finished = sum(marker.size for markers in finished.values() for marker in markers.values())
    num_rows = sum(planned.num_samples for planned in sets) - num_finished
    tasks = _unfinished(sets, store, settings)
    num_workers = _num_workers(settings.num_workers, num_rows)
    with ProgressMeter(max(0, num_rows), num_finished) as progress:
        if num_workers <= 1:
            _write_here(tasks, ShardWriter(store, reader, settings.max_image_side), progress)
        else:
            _write_in_processes(tasks, num_workers, (store, reader, settings.max_image_side), progress)
    for planned in sets:
        finish_set(store, planned.name, -(-planned.num_samples // settings.samples_per_shard))
    remove_markers(store)


def rewrite_damaged(
    sets: Sequence[PlannedSet],
    prepared: PreparedData,
    reader: ImageReader,
    settings: WritingSettings,
    damages: Sequence[Damage],
) -> None:
    """Write the damaged shards and columns of finished sets again.

    Raises:
        ValueError: an image cannot be read, or a shard would differ from what the set's index says.
    """
    store = Store(prepared.folder)
    planned, writer = {part.name: part for part in sets}, ShardWriter(store, reader, settings.max_image_side)
    for damage in damages:
        index = prepared.open_set(damage.set_name).index
        wanted, part = set(damage.shard_idxs), planned.get(damage.set_name)
        tasks = part.shards(settings.samples_per_shard, settings.max_image_side) if part and wanted else iter(())
        for task in tasks:
            if task.shard_idx in wanted and task.shard_idx < len(index.sizes):
                writer.rewrite(task, index.shard(task.shard_idx))
                wanted.discard(task.shard_idx)
        if wanted:
            raise ValueError(
                f"{store.address}/{damage.set_name}: shards are missing or damaged, and the source has fewer rows now; "
                "prepare everything again with overwrite=true"
            )
        if damage.columns:
            names = [name.removesuffix(".npy") for name in damage.columns]
            write_columns(store, damage.set_name, len(index.sizes), names)


def _unfinished(sets: Sequence[PlannedSet], store: Store, settings: WritingSettings) -> Iterator[ShardTask]:
    for planned in sets:
        markers = finished_shards(store, planned.name)
        for task in planned.shards(settings.samples_per_shard, settings.max_image_side):
            marker = markers.get(task.shard_idx)
            if marker is not None and marker.content_id == task.content_id:
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
    validate_shared_memory("data.num_workers=1")
    # Spawned, because the caller may have threads (a trainer, a tokenizer) that a fork would not survive.
    context = multiprocessing.get_context("spawn")
    counts = context.RawArray(
        "q", 2 * num_workers
    )  # rows and bytes, by process; without a lock, which a dead process would keep
    is_stopped = context.RawValue("b", 0)
    worker_idxs = context.SimpleQueue()
    for worker_idx in range(num_workers):
        worker_idxs.put(worker_idx)
    setup = (*parts, counts, is_stopped, worker_idxs)
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=setup) as pool:
        pending: set[Future[None]] = set()
        try:
            for task in tasks:
                pending.add(pool.submit(_write_one, task))
                while len(pending) >= TASKS_AHEAD * num_workers:
                    pending = _update(pending, counts, progress)
            while pending:
                pending = _update(pending, counts, progress)
        except BrokenProcessPool:
            raise ValueError(
                "a process that wrote shards was killed, perhaps out of memory; run the same command again: it "
                "resumes, and needs less memory with data.num_workers=1"
            ) from None
        finally:
            is_stopped.value = 1
            pool.shutdown(wait=True, cancel_futures=True)


def _update(pending: set[Future[None]], counts: Any, progress: ProgressMeter) -> set[Future[None]]:
    done, rest = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    progress.update(sum(counts[0::2]), sum(counts[1::2]))
    return rest


def _num_workers(wanted: int | None, num_rows: int) -> int:
    if wanted is not None:
        return wanted
    return max(1, min(num_cores(), MAX_PROCESSES, num_rows // ROWS_PER_PROCESS))


# --- in the processes ---------------------------------------------------------------------------------

_writer: ShardWriter  # of this process
_count_row: OnRow  # reports its progress to the parent


def _start_worker(store: Store, reader: ImageReader, max_side: int, counts: Any, is_stopped: Any, idxs: Any) -> None:
    global _writer, _count_row
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent stops the others
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    offset = 2 * idxs.get()

    def count_row(num_bytes: int) -> None:
        if is_stopped.value:
            raise StoppedError
        counts[offset] += 1
        counts[offset + 1] += num_bytes

    _writer, _count_row = ShardWriter(store, reader, max_side), count_row


def _exit_with_parent() -> None:
    """Exit when the parent is killed: no signal reaches this process then."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_one(task: ShardTask) -> None:
    _writer.write(task, _count_row)
