"""Look at every picture once, in several processes, and go on where an interrupted survey stopped.

References and a reader come in, {reference: PictureFacts} goes out; `check_manifest` calls it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.validation.image_checks import PictureFacts, look_at
from mim_lightning.data.validation.scan_file import FactsFile
from mim_lightning.display.progress import ProgressMeter

CHUNK_SIZE = 64  # pictures handed to a process at once, and the most that an interruption costs a process
PICTURES_PER_PROCESS = 1_000  # fewer are looked at sooner than another process starts
MAX_PROCESSES = 16  # more are faster than most disks
Read = Callable[[ImageRef], bytes]


def survey(
    refs: Iterable[ImageRef],
    read: Read,
    facts_path: Path | None = None,
    num_processes: int | None = None,
) -> dict[ImageRef, PictureFacts]:
    """Return the facts of all pictures.

    Args:
        refs: repeated ones are looked at once.
        read: returns the stored bytes; goes to other processes, so it must be picklable.
        facts_path: file of facts to go on with, and to append to; None keeps nothing.
        num_processes: None: what machine and number of pictures suggest. Each computes with one thread.

    Raises:
        ValueError: a process died, for instance for want of memory.
    """
    wanted = list(dict.fromkeys(refs))
    file = FactsFile(facts_path)
    found = file.find(wanted)
    missing = [ref for ref in wanted if ref not in found]
    if num_processes is None:
        num_processes = max(1, min(num_cores(), MAX_PROCESSES, len(missing) // PICTURES_PER_PROCESS))
    if not missing:
        return found
    chunks = [missing[start : start + CHUNK_SIZE] for start in range(0, len(missing), CHUNK_SIZE)]
    results = _here(chunks, read) if num_processes == 1 else _in_processes(chunks, read, num_processes)
    num_bytes = 0
    with ProgressMeter(len(missing), len(found), "looked at", "pictures", "checking pictures") as progress:
        for number, (chunk, facts) in enumerate(results, start=1):
            new = dict(zip(chunk, facts, strict=True))
            file.append(new)
            found |= new
            num_bytes += sum(one.num_bytes for one in facts)
            progress.update(min(number * CHUNK_SIZE, len(missing)), num_bytes)
    return found


def num_cores() -> int:
    """Return the cores this process may use, which a container or scheduler may have cut."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _here(chunks: Iterable[list[ImageRef]], read: Read) -> Iterator[tuple[list[ImageRef], list[PictureFacts]]]:
    for chunk in chunks:
        yield chunk, [look_at(ref, read) for ref in chunk]


_reader: list[Read] = []  # of a worker process: a reader may keep open files, so it is sent once


def _start(read: Read) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    _reader[:] = [read]


def _look_at_chunk(chunk: Sequence[ImageRef]) -> list[PictureFacts]:
    return [look_at(ref, _reader[0]) for ref in chunk]


def _in_processes(
    chunks: Sequence[list[ImageRef]], read: Read, num_processes: int
) -> Iterator[tuple[list[ImageRef], list[PictureFacts]]]:
    """Yield chunks with their facts, in order; only a few wait at a time, so that Ctrl-C ends it soon."""
    waiting: deque[tuple[list[ImageRef], Future[list[PictureFacts]]]] = deque()
    # Spawned, because the caller may hold threads (a trainer, a tokeniser) that a fork would not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _start, (read,)) as pool:
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(_look_at_chunk, chunk)))
                if len(waiting) > 4 * num_processes:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def _result(chunk: list[ImageRef], future: Future[list[PictureFacts]]) -> tuple[list[ImageRef], list[PictureFacts]]:
    try:
        return chunk, future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"the check: a process died, perhaps for want of memory, near the picture {chunk[0]}; run it again, it "
            "goes on from there; fewer processes: data.validation.num_processes=1"
        ) from error
