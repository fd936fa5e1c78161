"""A scan of images: inspects each once, in several processes, and resumes where an interrupted scan stopped.

The properties found are appended to a file, one image a line. A line counts as long as the file that contains the image
has the same size and modification time.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple
from functools import lru_cache
from itertools import islice, tee
from pathlib import Path
from typing import Any

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.manifest.row_store import RowStore, RowWriter
from mim_lightning.data.manifest.stored_rows import image_key, image_of
from mim_lightning.data.validation.image_checks import ImageProperties, inspect_image
from mim_lightning.display.progress import ProgressMeter
from mim_lightning.io.atomic import write_errors_named
from mim_lightning.io.machine import num_cores
from mim_lightning.io.paths import to_path_or_url
from mim_lightning.io.shared_memory import validate_shared_memory

CHUNK_SIZE = 64  # images given to a process at once, the most that it loses when interrupted
IMAGES_PER_PROCESS = 1_000  # fewer are inspected faster than another process starts
MAX_PROCESSES = 16  # more are faster than most disks
VERSION = 1  # of the properties in the file: lines of another version are ignored
PROPERTIES = (  # of ImageProperties, as columns
    "num_bytes BIGINT, height BIGINT, width BIGINT, uniform_fraction DOUBLE, perceptual_hash UBIGINT, "
    "grid_colors VARCHAR, kind VARCHAR, reason VARCHAR"
)
Read = Callable[[ImageRef], bytes]


class StoredImages(Mapping[ImageRef, ImageProperties]):
    """The properties of all images of a scan, in a table of a store; each look-up is a query."""

    def __init__(self, store: RowStore, table: str) -> None:
        self.store, self.table = store, table

    def __getitem__(self, ref: ImageRef) -> ImageProperties:
        found = self.store.run(f"FROM {self.table} WHERE key = ?", [image_key(ref)])
        if not found:
            raise KeyError(ref)
        return ImageProperties(*found[0][2:])

    def __iter__(self) -> Iterator[ImageRef]:
        return (image_of(row[0]) for row in self.store.read(f"SELECT key FROM {self.table} ORDER BY number"))

    def __len__(self) -> int:
        return self.store.number(f"SELECT count(*) FROM {self.table}")


def scan_images(
    refs: Iterable[ImageRef],
    read: Read,
    path: Path | None = None,
    num_processes: int | None = None,
    store: RowStore | None = None,
) -> StoredImages:
    """Return the properties of all images.

    Args:
        refs: repeated ones are inspected once.
        read: returns the stored bytes; must be picklable.
        path: of the file to resume from and append to; None: no file.
        num_processes: None: by the cores and the number of images. Each computes with one thread.
        store: for the properties; None: a new one.

    Raises:
        ValueError: a process died, for example out of memory.
    """
    store, file = store or RowStore(), ScanFile(path)
    keys = store.create("keys", "key VARCHAR, number BIGINT")
    store.write(keys, ((image_key(ref), number) for number, ref in enumerate(refs)))
    wanted = store.select("wanted", f"SELECT key, min(number) AS number FROM {keys} GROUP BY key")
    found = RowWriter(store, "images", f"key VARCHAR, number BIGINT, {PROPERTIES}")
    if path is not None and path.is_file():
        file.copy_known(store, wanted, found.table)
    missing = store.select("missing", f"FROM {wanted} ANTI JOIN {found.table} USING (key)")
    num_known, num_missing = (store.number(f"SELECT count(*) FROM {table}") for table in (found.table, missing))
    store.run(f"DROP TABLE {keys}; DROP TABLE {wanted}")
    if num_missing == 0:
        return StoredImages(store, found.table)
    if num_processes is None:
        num_processes = max(1, min(num_cores(), MAX_PROCESSES, num_missing // IMAGES_PER_PROCESS))
    chunks, queued = tee(_chunks(store.read(f"FROM {missing} ORDER BY number")))
    refs_of_chunks = ([image_of(key) for key, _ in chunk] for chunk in queued)
    if num_processes == 1:
        results: Iterator[list[ImageProperties]] = (
            [inspect_image(ref, read) for ref in chunk] for chunk in refs_of_chunks
        )
    else:
        results = _inspect_in_processes(refs_of_chunks, read, num_processes)
    num_done = num_bytes = 0
    with ProgressMeter(num_missing, num_known, "checked", "images", "checking images") as progress:
        for chunk, properties in zip(chunks, results, strict=True):
            file.append({image_of(key): one for (key, _), one in zip(chunk, properties, strict=True)})
            for place, one in zip(chunk, properties, strict=True):
                found.add((*place, *astuple(one)))
            num_done, num_bytes = num_done + len(chunk), num_bytes + sum(one.num_bytes for one in properties)
            progress.update(num_done, num_bytes)
    found.flush()
    return StoredImages(store, found.table)


def _chunks(rows: Iterator[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    while chunk := list(islice(rows, CHUNK_SIZE)):
        yield chunk


class ScanFile:
    """The file of a scan; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._stamp = lru_cache(maxsize=10_000)(_stamp)  # the cells of a table share one

    def copy_known(self, store: RowStore, wanted: str, images: str) -> None:
        """Copy the properties of those wanted images that are in the file and have not changed since to a table."""
        assert self.path is not None
        lines = store.create("lines", f"stamped VARCHAR, number BIGINT, {PROPERTIES}")
        store.write(lines, ((key, n, *astuple(one)) for n, (key, one) in enumerate(_read_lines(self.path))))
        stamped = store.create("stamped", "stamped VARCHAR, key VARCHAR, number BIGINT")
        keys = ((self._key(image_of(key)), key, number) for key, number in store.read(f"FROM {wanted}"))
        store.write(stamped, (row for row in keys if row[0] is not None))
        last = store.select("last", f"SELECT stamped, max(number) AS number FROM {lines} GROUP BY stamped")
        newest = store.select("newest", f"FROM {lines} SEMI JOIN {last} USING (stamped, number)")
        known = f"SELECT key, s.number, l.* EXCLUDE (stamped, number) FROM {stamped} s JOIN {newest} l USING (stamped)"
        store.run(f"INSERT INTO {images} {known}")
        for table in (lines, stamped, last, newest):
            store.drop(table)

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
        with write_errors_named(self.path), self.path.open("a", encoding="utf-8") as file:
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
    chunks: Iterable[list[ImageRef]], read: Read, num_processes: int
) -> Iterator[list[ImageProperties]]:
    """Yield the properties of each chunk, in order; only a few chunks are queued, so that Ctrl-C ends it soon."""
    queued: deque[tuple[ImageRef, Future[list[ImageProperties]]]] = deque()
    validate_shared_memory("data.validation.num_processes=1")
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
