"""Turn finished shards into a finished set: markers, columns of all samples, and `index.json` last of all.

A shard is finished when its marker is in the store: beside the set, named after the size of the shard and the rows it
was made of. A resumed preparation skips the shards with a marker; when all are there, they become the columns and the
index, one shard at a time. `remove_markers` when every set is finished.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mim_lightning.data.shards.open_shards import MEMBERS
from mim_lightning.data.shards.set_index import FIRST_VERSION, FORMAT_VERSION, INDEX_FILE, index_file, parse_pointer
from mim_lightning.data.shards.shard_writer import COLUMNS, ShardFacts, read_shard
from mim_lightning.io.store import Store

MARKERS = "receipts"  # folder of the store; its name on disk does not change
NUM_READERS = 16  # markers read at once from a remote store


@dataclass(frozen=True)
class ShardMarker:
    """Completion marker of a shard; its file name has all of it."""

    shard_idx: int
    size: int  # samples
    num_bytes: int
    content_id: str  # of the rows that the shard was made of

    @property
    def name(self) -> str:
        return f"{self.shard_idx:06d}-{self.size}-{self.num_bytes}-{self.content_id}.npz"


def shard_path(set_name: str, shard_idx: int, suffix: str) -> str:
    return _join(set_name, f"{shard_idx:06d}{suffix}")


def place_shard(
    store: Store,
    set_name: str,
    shard_idx: int,
    stem: Path,
    facts: ShardFacts,
    content_id: str = "whole",
    notes: str = "",
) -> ShardMarker:
    """Move a verified shard to its place, then write its marker.

    Args:
        notes: whatever a resumed preparation is to know of the shard; see `read_notes`.
    """
    marker = ShardMarker(shard_idx, facts.size, facts.num_bytes, content_id)
    for suffix in (".npy", ".tar"):
        store.put(stem.with_suffix(suffix), shard_path(set_name, shard_idx, suffix))
    numbers = np.array([facts.crc32, facts.max_relevant], dtype=np.int64)
    packed = io.BytesIO()
    noted = {"notes": np.frombuffer(notes.encode(), np.uint8)} if notes else {}
    np.savez(packed, numbers=numbers, **noted, **facts.columns)  # type: ignore[arg-type]
    store.write(_join(MARKERS, set_name, marker.name), packed.getvalue())
    return marker


def finished_shards(store: Store, set_name: str) -> dict[int, ShardMarker]:
    """Return the markers of a set by shard, of shards whose tar file exists with the right size."""
    names = store.sizes(_join(MARKERS, set_name))
    markers = map(_parse, (name for name in names if name.endswith(".npz")))
    sizes = store.sizes(set_name)
    return {
        marker.shard_idx: marker for marker in markers if sizes.get(f"{marker.shard_idx:06d}.tar") == marker.num_bytes
    }


def find_marker(store: Store, set_name: str, shard_idx: int) -> ShardMarker | None:
    """Return the marker of one shard, None of an unfinished one; lists the markers only if there is a tar file."""
    if store.size(shard_path(set_name, shard_idx, ".tar")) < 0:
        return None
    return finished_shards(store, set_name).get(shard_idx)


def read_notes(store: Store, set_name: str, markers: Sequence[ShardMarker]) -> Iterator[str]:
    """Yield what `place_shard` was told to note of each shard."""
    for parts in _read_markers(store, set_name, list(markers)):
        yield parts["notes"].tobytes().decode() if "notes" in parts else ""


def remove_marker(store: Store, set_name: str, marker: ShardMarker) -> None:
    """Mark a shard as unfinished: it was made of other rows."""
    store.remove(_join(MARKERS, set_name, marker.name))


def remove_markers(store: Store) -> None:
    store.remove(MARKERS)


def finish_set(store: Store, set_name: str, num_shards: int) -> None:
    """Write the columns and `index.json` of a set, all of whose shards are finished; the markers stay.

    Raises:
        ValueError: a marker is missing.
    """
    markers = finished_shards(store, set_name)
    missing = [shard_idx for shard_idx in range(num_shards) if shard_idx not in markers]
    if missing:
        raise ValueError(f"{store.address}/{set_name}: {len(missing)} shards were not finished, the first {missing[0]}")
    ordered = [markers[shard_idx] for shard_idx in range(num_shards)]
    num_samples = sum(marker.size for marker in ordered)
    numbers: list[list[int]] = []
    with store.scratch() as scratch:
        with ExitStack() as stack:
            files = {name: stack.enter_context((scratch / f"{name}.npy").open("wb")) for name in COLUMNS}
            for name, kind in COLUMNS.items():
                _write_header(files[name], num_samples, np.dtype(kind))
            for parts in _read_markers(store, set_name, ordered):
                numbers.append(parts["numbers"].tolist())
                for name, file in files.items():
                    file.write(parts[name].tobytes())
        for name in COLUMNS:
            store.put(scratch / f"{name}.npy", _join(set_name, f"{name}.npy"))
    index = {
        "version": FORMAT_VERSION,
        "members": MEMBERS,
        "sizes": [marker.size for marker in ordered],
        "max_relevant": max([1, *(max_relevant for _, max_relevant in numbers)]),
        "bytes": [marker.num_bytes for marker in ordered],
        "crc32": [crc32 for crc32, _ in numbers],
    }
    store.write(_join(set_name, "index.json"), json.dumps(index).encode())


def write_columns(store: Store, set_name: str, num_shards: int, names: Sequence[str]) -> None:
    """Write columns of a finished set again, from its shards."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for shard_idx in range(num_shards):
        with store.open(shard_path(set_name, shard_idx, ".tar")) as file:
            facts = read_shard(file)
        for name, column in parts.items():
            column.append(facts.columns[name])
    for name, column in parts.items():
        packed = io.BytesIO()
        np.save(packed, np.concatenate(column))
        store.write(_join(set_name, f"{name}.npy"), packed.getvalue())


def content_id(store: Store, set_name: str) -> str:
    """Return a digest of the content of a set, in its first version: its index has the checksum of every shard."""
    content = store.read(_join(set_name, INDEX_FILE))
    if parse_pointer(content) is not None:  # of a change that was killed before it was done
        content = store.read(_join(set_name, index_file(FIRST_VERSION)))
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _read_markers(store: Store, set_name: str, markers: list[ShardMarker]) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield the arrays of the markers in order; a few are read ahead, all would not fit into memory."""

    paths = [_join(MARKERS, set_name, marker.name) for marker in markers]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for start in range(0, len(paths), NUM_READERS):
            for content in pool.map(store.read, paths[start : start + NUM_READERS]):
                with np.load(io.BytesIO(content)) as parts:  # not in a thread, see open_shards.py
                    yield dict(parts)


def _write_header(file: BinaryIO, num_samples: int, kind: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (num_samples,)}
    np.lib.format.write_array_header_1_0(file, header)


def _parse(name: str) -> ShardMarker:
    shard_idx, size, num_bytes, content_id = name.removesuffix(".npz").split("-")
    return ShardMarker(int(shard_idx), int(size), int(num_bytes), content_id)


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
