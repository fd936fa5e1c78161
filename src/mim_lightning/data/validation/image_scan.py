"""A scan of images: inspects each once, in several processes, and resumes where an interrupted scan stopped.

The properties found are appended to a file, one image a line. A line counts as long as the file that contains the image
has the same size and modification time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.validation.image_checks import ImageProperties, inspect_image
from mim_lightning.display.progress import ProgressMeter
from mim_lightning.io.paths import to_path_or_url

CHUNK_SIZE = 64  # images given to a process at once, the most that it loses when interrupted
IMAGES_PER_PROCESS = 1_000  # fewer are inspected faster than another process starts
MAX_PROCESSES = 16  # more are faster than most disks
VERSION = 1  # of the properties in the file: lines of another version are ignored
Read = Callable[[ImageRef], bytes]


def scan_images(
    refs: Iterable[ImageRef],
    read: Read,
    path: Path | None = None,
    num_processes: int | None = None,
) -> dict[ImageRef, ImageProperties]:
    """Return the properties of all images.

    Args:
        refs: repeated ones are inspected once.
        read: returns the stored bytes; must be picklable.
        path: of the file to resume from and append to; None: no file.
        num_processes: None: by the cores and the number of images. Each computes with one thread.

    Raises:
        ValueError: a process died, for example out of memory.
    """
    wanted = list(dict.fromkeys(refs))
    file = ScanFile(path)
    found = file.find(wanted)
    missing = [ref for ref in wanted if ref not in found]
    if num_processes is None:
        num_processes = max(1, min(num_cores(), MAX_PROCESSES, len(missing) // IMAGES_PER_PROCESS))
    if not missing:
        return found
    chunks = [missing[start : start + CHUNK_SIZE] for start in range(0, len(missing), CHUNK_SIZE)]
    if num_processes == 1:
        results: Iterator[list[ImageProperties]] = ([inspect_image(ref, read) for ref in chunk] for chunk in chunks)
    else:
        results = _inspect_in_processes(chunks, read, num_processes)
    num_bytes = 0
    with ProgressMeter(len(missing), len(found), "checked", "images", "checking images") as progress:
        for number, (chunk, properties) in enumerate(zip(chunks, results, strict=True), start=1):
            new = dict(zip(chunk, properties, strict=True))
            file.append(new)
            found |= new
            num_bytes += sum(one.num_bytes for one in properties)
            progress.update(min(number * CHUNK_SIZE, len(missing)), num_bytes)
    return found


def num_cores() -> int:
    """Return the cores this process may use, which a container or scheduler may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ScanFile:
    """The file of a scan; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._stamp = lru_cache(maxsize=10_000)(_stamp)  # the cells of a table share one
        self._known = dict(_read_lines(path)) if path is not None and path.is_file() else {}

    def find(self, refs: Iterable[ImageRef]) -> dict[ImageRef, ImageProperties]:
        """Return the properties of those images that are in the file and have not changed since."""
        if not self._known:
            return {}
        return {ref: found for ref in refs if (key := self._key(ref)) and (found := self._known.get(key))}

    def append(self, images: Mapping[ImageRef, ImageProperties]) -> None:
        """Append properties; images that could not be read at all are left out, they may exist next time."""
        if self.path is None:
            return
        lines = [
            json.dumps([key, *asdict(found).values()])
            for ref, found in images.items()
            if (found.num_bytes or not found.kind) and (key := self._key(ref))
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # a killed process may have left half a line: the next one must not be appended to it
            file.write("".join(f"\n{line}" for line in lines) + ("\n" if lines else ""))

    def _key(self, ref: ImageRef) -> str | None:
        """Return a key of the image's current content, or None if there is no such file."""
        container = ref if isinstance(ref, Path | str) else to_path_or_url(ref.path)
        try:
            return f"{VERSION} {ref} {self._stamp(container) if isinstance(container, Path) else ''}"
        except OSError:
            return None


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _read_lines(path: Path) -> Iterator[tuple[str, ImageProperties]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                key, *values = json.loads(line)
                yield key, ImageProperties(*values)
            except (ValueError, TypeError):
                continue  # an empty or incomplete line


# --- in the processes -----------------------------------------------------------------------------------

_reader: list[Read] = []  # of a worker process: a reader may keep open files, so it is sent once


def _start_worker(read: Read) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    _reader[:] = [read]


def _inspect_chunk(chunk: Sequence[ImageRef]) -> list[ImageProperties]:
    return [inspect_image(ref, _reader[0]) for ref in chunk]


def _inspect_in_processes(
    chunks: Sequence[list[ImageRef]], read: Read, num_processes: int
) -> Iterator[list[ImageProperties]]:
    """Yield the properties of each chunk, in order; only a few chunks are queued, so that Ctrl-C ends it soon."""
    queued: deque[tuple[ImageRef, Future[list[ImageProperties]]]] = deque()
    # Spawned, because the caller may have threads (a trainer, a tokenizer) that a fork would not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _start_worker, (read,)) as pool:
        try:
            for chunk in chunks:
                queued.append((chunk[0], pool.submit(_inspect_chunk, chunk)))
                if len(queued) > 4 * num_processes:
                    yield _result(*queued.popleft())
            while queued:
                yield _result(*queued.popleft())
        finally:
            for _, future in queued:
                future.cancel()


def _result(first: ImageRef, future: Future[list[ImageProperties]]) -> list[ImageProperties]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"a process that checked images died near {first}, perhaps out of memory; run the same command again: it "
            "resumes, and needs less memory with data.validation.num_processes=1"
        ) from error
