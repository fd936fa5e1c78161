"""Shard sets: rows as plain WebDataset tar files with a byte index beside each, written once, read at random.

Records come in from `prepare`, `Sample`s go out to `stream`. A set is a folder of `000000.tar` (members
`<key>.json`, `<key>.query_image`, `<key>.product_image`, any may be absent), `000000.npy` (byte offset and
size of each member) and `keys.npy` (the id key of every sample); `index.json` is written last: it means
complete. Any WebDataset reader can read the tar files without the rest.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mim_lightning.types import Sample, id_key

FORMAT_VERSION = 1
MEMBERS = ("json", "query_image", "product_image")
TAR_HEADER = 512  # bytes before the data of a ustar member


@dataclass(frozen=True)
class Record:
    """What one sample is made of: encoded images by tower name, everything else in `facts`."""

    images: Mapping[str, bytes]
    facts: Mapping[str, Any]  # what Sample holds besides images; segments, image_sharpness


def write_shard_set(folder: Path, records: Iterable[Record], num_records: int, samples_per_shard: int) -> None:
    """Write `num_records` records into `folder`; the shards are of equal size, give or take one sample.

    Raises:
        ValueError: fewer or more records come than were announced.
    """
    folder.mkdir(parents=True)
    num_shards = -(-num_records // samples_per_shard)
    sizes = [len(part) for part in np.array_split(np.arange(num_records), num_shards)]
    keys: list[int] = []
    max_relevant = 1
    iterator = iter(records)
    for shard_idx, size in enumerate(sizes):
        shard = [record for _, record in zip(range(size), iterator, strict=False)]
        _write_shard(folder / f"{shard_idx:06d}", shard, first=len(keys))
        keys += [id_key(record.facts.get("query_id") or record.facts["product_id"]) for record in shard]
        relevant = (record.facts.get(name, ()) for record in shard for name in ("asked_ids", "shown_ids"))
        max_relevant = max([max_relevant, *map(len, relevant)])
    if len(keys) != num_records or next(iterator, None) is not None:
        raise ValueError(f"{folder}: {num_records} records announced, another number came")
    np.save(folder / "keys.npy", np.array(keys, dtype=np.int64))
    index = {"version": FORMAT_VERSION, "members": MEMBERS, "sizes": sizes, "max_relevant": max_relevant}
    (folder / "index.json").write_text(json.dumps(index))


def _write_shard(stem: Path, records: list[Record], first: int) -> None:
    places = np.zeros((len(records), len(MEMBERS), 2), dtype=np.int64)
    with tarfile.open(stem.with_suffix(".tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, record in enumerate(records):
            members = {"json": json.dumps(record.facts, ensure_ascii=False).encode(), **record.images}
            for name, data in members.items():
                header = tarfile.TarInfo(f"{first + row:012d}.{name}")
                header.size = len(data)
                places[row, MEMBERS.index(name)] = tar.offset + TAR_HEADER, len(data)
                tar.addfile(header, io.BytesIO(data))
    np.save(stem.with_suffix(".npy"), places)


class ShardSet:
    """Random access to the samples of one set by number; cheap to open, cheap to send to a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index_path = folder / "index.json"
        try:
            index = json.loads(index_path.read_text())
        except FileNotFoundError:
            raise ValueError(f"{folder}: not a finished shard set (no index.json); run prepare") from None
        except ValueError as error:
            raise ValueError(f"{index_path}: damaged ({error}); run prepare again") from error
        if index["version"] != FORMAT_VERSION:
            raise ValueError(f"{folder}: shard format {index['version']}, this code reads {FORMAT_VERSION}")
        self.sizes: list[int] = index["sizes"]
        self.max_relevant: int = index["max_relevant"]
        self._starts = [0, *accumulate(self.sizes)]
        self._written = index_path.stat().st_mtime_ns  # an open shard is not taken for one that replaced it

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def keys(self) -> np.ndarray:
        """The id key of every sample: of the query, or of the product where there is no query."""
        return np.load(self.folder / "keys.npy", mmap_mode="r")

    def span(self, shard_idx: int) -> tuple[int, int]:
        """Return the number of a shard's first sample, and that after its last."""
        return self._starts[shard_idx], self._starts[shard_idx + 1]

    def find(self, keys: npt.ArrayLike) -> dict[int, int]:
        """Return the number of the first sample of each id key that the set has."""
        own = self.keys
        numbers = np.flatnonzero(np.isin(own, keys))
        return {int(own[number]): int(number) for number in numbers[::-1]}

    def read(self, numbers: Iterable[int], is_padding: bool = False) -> list[Sample]:
        """Read samples by number.

        Raises:
            ValueError: a shard is missing or shorter than its index says; names shard and sample.
        """
        return [self._read_one(number, is_padding) for number in numbers]

    def read_facts(self, number: int) -> dict[str, Any]:
        """Read what is known of a sample besides its images."""
        return self._read_members(number, ("json",))[1]

    def _read_members(self, number: int, names: Sequence[str]) -> tuple[dict[str, bytes], dict[str, Any]]:
        shard_idx = bisect_right(self._starts, number) - 1
        shard = _open_shard(self.folder, shard_idx, self.sizes[shard_idx], self._written)
        try:
            members = shard.members(number - self._starts[shard_idx], names)
            facts = json.loads(members.pop("json"))
            if not isinstance(facts, dict):
                raise ValueError("the facts are no JSON object")
        except (ValueError, KeyError) as error:
            raise ValueError(f"{shard.tar_path}, sample {number}: damaged ({error})") from error
        return members, facts

    def _read_one(self, number: int, is_padding: bool) -> Sample:
        members, facts = self._read_members(number, MEMBERS)
        return Sample(
            sample_num=number,
            inputs=members | {name: facts[name] for name in ("product_text", "query_text") if facts.get(name)},
            query_id=facts.get("query_id"),
            product_id=facts.get("product_id"),
            asked_ids=tuple(facts.get("asked_ids", ())),
            asked_grades=tuple(facts.get("asked_grades", ())),
            shown_ids=tuple(facts.get("shown_ids", ())),
            category=facts.get("category"),
            is_padding=is_padding,
        )


class _OpenShard:
    """One tar file and its byte index; reads by offset, so a forked worker may share it."""

    def __init__(self, stem: Path, size: int) -> None:
        self.tar_path, index_path = stem.with_suffix(".tar"), stem.with_suffix(".npy")
        try:
            self._places = np.load(index_path)
        except FileNotFoundError:
            raise ValueError(f"{index_path}: the byte index of the shard is missing; run prepare again") from None
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{index_path}: damaged ({error}); run prepare again") from error
        if self._places.shape != (size, len(MEMBERS), 2):
            raise ValueError(f"{index_path}: damaged (not {size} samples); run prepare again")
        try:
            self._file = self.tar_path.open("rb", buffering=0)
        except FileNotFoundError:
            raise ValueError(f"{self.tar_path}: the shard is missing; run prepare again") from None

    def members(self, row: int, names: Sequence[str]) -> dict[str, bytes]:
        """Return those members that a sample has, by one read: they lie side by side.

        Raises:
            ValueError: the file is too short.
        """
        stored = zip(MEMBERS, self._places[row].tolist(), strict=True)
        places = {name: place for name, place in stored if place[1] and name in names}
        first = min(offset for offset, _ in places.values())
        stop = max(offset + size for offset, size in places.values())
        data = os.pread(self._file.fileno(), stop - first, first)
        if len(data) < stop - first:
            raise ValueError("the file ends inside the sample")
        return {name: data[offset - first : offset - first + size] for name, (offset, size) in places.items()}


@lru_cache(maxsize=256)  # a few dozen shards are read from at a time; a process may hold about 1000 files
def _open_shard(folder: Path, shard_idx: int, size: int, written: int) -> _OpenShard:
    return _OpenShard(folder / f"{shard_idx:06d}", size)
