"""Write one shard: a tar file of records with a byte index, read back and compared before it is used.

The tar file alone contains everything about a shard, so `verify` can check it when it is written and years later.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mim_lightning.data.shards.open_shards import MEMBERS
from mim_lightning.ids import NO_KEY, hash_id

TAR_HEADER = 512  # bytes before the data of a ustar member
BLOCK = 1 << 16  # bytes read at once; tarfile copies the remainder of a block with every member
COLUMNS: dict[str, type] = {  # columns of a set, one value per sample, each in a file that readers memory-map
    "keys": np.int64,  # hashed id of the query, or of the product if there is no query
    "product_keys": np.int64,  # NO_KEY where there is none
    "category_keys": np.int64,
    "weights": np.float32,
}


@dataclass(frozen=True)
class Record:
    """The content of one sample: encoded images by field, everything else in `facts`."""

    images: Mapping[str, bytes]
    facts: Mapping[str, Any]  # the values of a Sample besides its images; segments, image_sharpness, weight


@dataclass(frozen=True)
class ShardFacts:
    """Facts of a shard of S samples; all can be read from its tar file."""

    num_bytes: int
    crc32: int  # of the tar file
    max_relevant: int  # targets or references of one sample
    places: np.ndarray  # (S, members, 2) int64: byte offset and size of each member, 0 and 0 if it is absent
    columns: Mapping[str, np.ndarray]  # (S,) each, see COLUMNS

    @cached_property
    def size(self) -> int:
        return len(self.places)

    def difference(self, other: ShardFacts) -> str | None:
        """Return the first difference between two shards in a few words, or None."""
        for name in ("num_bytes", "crc32", "size", "max_relevant"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                return f"{name} {ours}, not {theirs}"
        if not np.array_equal(self.places, other.places):
            return "members are not where the byte index says"
        different = [name for name in COLUMNS if not np.array_equal(self.columns[name], other.columns[name])]
        return f"{different[0]} differ" if different else None


def write_shard(stem: Path, records: Iterable[Record], first: int) -> ShardFacts:
    """Write `<stem>.tar` and `<stem>.npy`, read both back and return the facts of the shard.

    Args:
        first: number in the names of the first sample's members; it increases with each sample.

    Raises:
        ValueError: the files do not contain what was written.
    """
    places: list[np.ndarray] = []
    facts: list[Mapping[str, Any]] = []
    tar_path, index_path = stem.with_suffix(".tar"), stem.with_suffix(".npy")
    with tar_path.open("wb") as file:
        stream = _ChecksummingFile(file)
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for number, record in enumerate(records, start=first):
                places.append(_add(tar, number, record))
                facts.append(_indexed(record.facts))
        _flush(file)
    written = ShardFacts(stream.num_bytes, stream.crc32, _max_relevant(facts), _stack_places(places), _columns(facts))
    with index_path.open("wb") as file:
        np.save(file, written.places)
        _flush(file)
    with tar_path.open("rb") as file:
        difference = read_shard(file).difference(written)
    if difference is None and not np.array_equal(np.load(index_path), written.places):
        difference = "its byte index differs"
    if difference is not None:
        raise ValueError(f"{tar_path}: reads back differently than it was written ({difference}); check the disk")
    return written


def read_shard(file: BinaryIO) -> ShardFacts:
    """Read a whole tar file and return the facts of the shard.

    Raises:
        ValueError: it is not a shard.
    """
    stream = _ChecksummingFile(file)
    places: list[np.ndarray] = []
    facts: list[Mapping[str, Any]] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as tar:  # type: ignore[call-overload]
            for member in tar:
                name = member.name.split(".", 1)[1]
                if name == "json":  # the first member of each sample
                    places.append(np.zeros((len(MEMBERS), 2), dtype=np.int64))
                    facts.append(_indexed(json.loads(tar.extractfile(member).read())))
                places[-1][MEMBERS.index(name)] = member.offset_data, member.size
    except (tarfile.TarError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"not a readable shard ({error})") from error
    while stream.read(BLOCK):
        pass
    return ShardFacts(stream.num_bytes, stream.crc32, _max_relevant(facts), _stack_places(places), _columns(facts))


def shard_sizes(num_records: int, samples_per_shard: int) -> list[int]:
    """Return the sizes of the fewest shards for the records; sizes differ by at most one sample."""
    num_shards = -(-num_records // samples_per_shard)
    size, num_larger = divmod(num_records, max(1, num_shards))
    return [size + (shard_idx < num_larger) for shard_idx in range(num_shards)]


class _ChecksummingFile:
    """A file that counts and checksums the bytes read or written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.num_bytes, self.crc32 = file, 0, 0

    def read(self, size: int) -> bytes:
        return self._count(self.file.read(size))

    def write(self, data: bytes) -> int:
        return self.file.write(self._count(data))

    def tell(self) -> int:
        return self.num_bytes

    def _count(self, data: bytes) -> bytes:
        self.num_bytes += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        return data


def _add(tar: tarfile.TarFile, number: int, record: Record) -> np.ndarray:
    places = np.zeros((len(MEMBERS), 2), dtype=np.int64)
    members = {"json": json.dumps(record.facts, ensure_ascii=False).encode(), **record.images}
    for name, data in members.items():
        header = tarfile.TarInfo(f"{number:012d}.{name}")
        header.size = len(data)
        places[MEMBERS.index(name)] = tar.offset + TAR_HEADER, len(data)
        tar.addfile(header, io.BytesIO(data))
    return places


def _flush(file: BinaryIO) -> None:
    """Flush a file to disk before it is renamed: a power cut must not leave an empty file."""
    file.flush()
    os.fsync(file.fileno())


def _indexed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a sample for the columns and the index."""
    key = facts.get("query_id") or facts["product_id"]
    return {
        "keys": hash_id(key),
        "product_keys": _key_or_none(facts.get("product_id")),
        "category_keys": _key_or_none(facts.get("category")),
        "weights": facts.get("weight", 1.0),
        "num_relevant": max(len(facts.get(name, ())) for name in ("asked_ids", "shown_ids")),
    }


def _key_or_none(identity: str | None) -> int:
    return NO_KEY if identity is None else hash_id(identity)


def _max_relevant(facts: Sequence[Mapping[str, Any]]) -> int:
    return max((row["num_relevant"] for row in facts), default=0)


def _columns(facts: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in facts], dtype=kind) for name, kind in COLUMNS.items()}


def _stack_places(places: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(places) if places else np.zeros((0, len(MEMBERS), 2), dtype=np.int64)
