"""Shard sets: plain WebDataset tar files with a byte index each, read at random.

A set is a folder of `000000.tar` (members `<key>.json`, and one per image field such as `<key>.query_image`; any may be
absent), `000000.npy` (byte offset and size of each member) and columns of all samples such as `keys.npy`. `index.json`
is written last: it means complete. The tar files alone can be read by any WebDataset reader. A set that was changed has
several versions, see `set_index`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mim_lightning.data.shards.cache import CacheSettings, ChangedError, MissingError, ShardError
from mim_lightning.data.shards.files import LocalFiles, ShardFiles, ShardPlan
from mim_lightning.data.shards.open_shards import MEMBERS, OpenShard, OpenShards, places_size
from mim_lightning.data.shards.remote_files import RemoteFiles
from mim_lightning.data.shards.set_index import FORMAT_VERSION, INDEX_FILE, index_file, parse_index
from mim_lightning.data.shards.shard_writer import COLUMNS
from mim_lightning.fields import DECLARED, texts_of
from mim_lightning.io.mapped_file import map_new
from mim_lightning.io.paths import PathOrUrl, to_path_or_url
from mim_lightning.types import Sample

__all__ = ["FORMAT_VERSION", "MEMBERS", "ShardError", "ShardSet"]

KEYS_AT_ONCE = 1 << 22  # there may be hundreds of millions
MAX_JOINED = 1 << 20  # values of a changed set's column that are in memory
MAX_ROWS = 1024  # shards whose live rows are in memory, 8 MB of shards of 2000
MAX_RANGES = 16  # samples of a shard that are read by ranges before it is downloaded
RETRY_FACTOR = 10.0  # a shard that failed is not tried again for this many times the time that it took

_OPEN = OpenShards()


class ShardSet:
    """Random access to the samples of a set by number; cheap to open and to send to a worker.

    Args:
        folder: path, or address such as s3://bucket/shop/catalog.
        cache: how the files of an address are downloaded, and where they are stored.
        version: to read; None: the newest. It does not change while the set is open.

    Raises:
        ValueError: there is no finished set, no such version, or its index is damaged. While it is read, ChangedError:
            the set was replaced.
    """

    def __init__(self, folder: PathOrUrl, cache: CacheSettings | None = None, version: int | None = None) -> None:
        self.folder: PathOrUrl = to_path_or_url(folder) if isinstance(folder, str) else folder
        self.cache = cache or CacheSettings()
        self.files: ShardFiles
        self.files = (
            RemoteFiles(self.folder, self.cache, version)
            if isinstance(self.folder, str)
            else LocalFiles(self.folder, version)
        )
        try:
            content, self.written = self.files.read_index()
            self._digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        except MissingError:
            if version is not None and version > 1:
                raise ValueError(f"{self.folder}: has no version {version} (no {index_file(version)})") from None
            raise ValueError(f"{self.folder}: not a finished shard set (no {INDEX_FILE}); run prepare") from None
        try:
            self.index = parse_index(content)
        except ValueError as error:
            name = INDEX_FILE if self.files.version in (None, 1) else index_file(self.files.version)
            raise ValueError(f"{self.folder}/{name}: {error}; run prepare again") from error
        self.sizes: list[int] = self.index.sizes  # samples of each shard
        self.max_relevant: int = self.index.max_relevant  # target or reference products of one sample
        self._starts = self.index.starts
        self._identity = str(self.folder), self.written, self._digest, self.cache.verify
        self._num_ranges: Counter[int] = Counter()  # samples of each shard that were read by ranges
        self._columns: dict[str, np.ndarray] = {}  # of a set with several segments or removed rows
        self._rows: dict[int, np.ndarray | None] = {}  # by shard: which rows of its file are samples
        self._failed: dict[int, tuple[float, str]] = {}  # by shard: not tried again until, and why

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}, "_rows": {}}  # a worker that needs one reads it again

    @property
    def version(self) -> int:
        return self.index.version

    @property
    def place(self) -> str:
        """Absolute path or URL of the set."""
        return self.folder if isinstance(self.folder, str) else str(self.folder.absolute())

    @property
    def digest(self) -> str:
        """A digest of the content: the index has the checksum of every shard."""
        return self._digest

    @property
    def keys(self) -> np.ndarray:
        """The hashed id of every sample: of the query, or of the product if there is no query."""
        return self.column("keys")

    @property
    def prefetch_shards(self) -> int:
        """Number of shards that each rank prefetches; 0 for a local folder."""
        return self.files.prefetch_shards

    @property
    def cache_room(self) -> int | None:
        """Bytes of the cache for the shards that one process needs; None for a local folder."""
        return self.files.cache_room

    def shard_bytes(self, shard_idx: int) -> int:
        """Return the bytes of a shard in the cache; 0 in the first format, which does not say."""
        shard = self.index.shard(shard_idx)
        return 0 if shard.num_bytes is None else shard.num_bytes + places_size(shard.size)

    @property
    def patience(self) -> float:
        """Seconds that reading may wait for a store; 0 for a local folder."""
        return self.files.patience

    def column(self, name: str) -> np.ndarray:
        """Return one value per sample, (N,): keys, product_keys, category_keys or weights.

        Memory-mapped; that of a set which was changed since it was prepared is put together once, of many samples in a
        file that is gone with the process.

        Raises:
            ValueError: the set has no such column, or it is of another set.
        """
        if name in self._columns:
            return self._columns[name]
        segments = self.index.column_segments()
        parts = [self._column_file(segment.column_file(name), segment.size, COLUMNS.get(name)) for segment in segments]
        if len(parts) == 1 and not len(self.index.removed):
            return parts[0]
        self._columns[name] = self._join(parts)
        return self._columns[name]

    def _join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return the values of all samples, from the column files of all segments."""
        dtype, num_samples, removed = parts[0].dtype, len(self), self.index.removed
        if num_samples > MAX_JOINED:
            with tempfile.TemporaryFile(prefix="mim-column-") as file:
                joined: np.ndarray = map_new(file, dtype, (num_samples,), Path(tempfile.gettempdir()))
        else:
            joined = np.empty(num_samples, dtype)
        row = done = 0
        for part in parts:
            for start in range(0, len(part), KEYS_AT_ONCE):
                block = part[start : start + KEYS_AT_ONCE]
                low, high = np.searchsorted(removed, [row, row + len(block)])
                live = np.delete(block, removed[low:high] - row)
                joined[done : done + len(live)] = live
                row, done = row + len(block), done + len(live)
        return joined

    def _column_file(self, name: str, size: int, kind: type | None) -> np.ndarray:
        try:
            found = self.files.column(name.removesuffix(".npy"))
        except MissingError:
            raise ValueError(f"{self.folder}: has no {name}; run prepare again") from None
        if found.shape != (size,):
            raise ValueError(
                f"{self.folder}/{name}: has {len(found)} values, the set {size} samples; run prepare again"
            )
        if kind is not None and found.dtype != kind:
            raise ValueError(f"{self.folder}/{name}: holds {found.dtype}, not {np.dtype(kind)}; run prepare again")
        return found

    def span(self, shard_idx: int) -> tuple[int, int]:
        """Return the range of sample numbers of a shard, as (start, stop)."""
        start, stop = self._starts[shard_idx : shard_idx + 2].tolist()
        return start, stop

    def find(self, keys: npt.ArrayLike) -> dict[int, int]:
        """Return the number of the first sample of each hashed id that the set has."""
        own, wanted = self.keys, np.unique(np.asarray(keys, dtype=np.int64))
        found: dict[int, int] = {}
        for start in range(0, len(own), KEYS_AT_ONCE):
            part = np.asarray(own[start : start + KEYS_AT_ONCE])
            for position in np.flatnonzero(np.isin(part, wanted)).tolist():
                found.setdefault(int(part[position]), start + position)
        return found

    def read(self, numbers: Iterable[int], is_padding: bool = False) -> list[Sample]:
        """Read samples by number.

        Raises:
            ShardError: a shard is missing, damaged or not reachable; names shard and sample.
        """
        return [self._sample(number, *self.read_members(number, MEMBERS), is_padding) for number in numbers]

    def read_few(self, numbers: Iterable[int]) -> list[Sample]:
        """Read samples as `read` does, but from an address by ranges, if they are few of a shard that is not cached."""
        return [self._sample(number, *self._read_range(number, MEMBERS)) for number in numbers]

    def read_facts(self, number: int) -> dict[str, Any]:
        """Read the metadata of a sample: everything except its images; by ranges, as `read_few` does."""
        return self._read_range(number, ("json",))[1]

    def all_facts(self) -> Iterator[dict[str, Any]]:
        """Read the metadata of every sample, in order; shards at an address are downloaded ahead."""
        reader, num_shards, num_ahead = uuid.uuid4().hex[:12], len(self.sizes), self._num_ahead()
        try:
            for idx in range(num_shards):
                if num_ahead:
                    needed = tuple(range(idx, min(idx + num_ahead, num_shards)))
                    new, finished = (needed if idx == 0 else needed[num_ahead - 1 :]), (idx - 1,)[:idx]
                    self.plan(ShardPlan(reader, new, needed, finished, is_new_pass=idx == 0))
                for number in range(*self.span(idx)):
                    yield self.read_members(number, ("json",))[1]
        finally:  # also where the caller reads no further
            self.stop(reader)

    def _num_ahead(self) -> int:
        """Return how many shards a pass in order needs at a time: those to prefetch, as far as the cache holds them."""
        room, largest = self.cache_room, max(map(self.shard_bytes, range(len(self.sizes))), default=0)
        fitting = self.prefetch_shards if room is None or not largest else max(1, room // largest)
        return min(self.prefetch_shards, fitting)

    def locate(self, number: int) -> tuple[str, dict[str, tuple[int, int]]]:
        """Return the path of the shard of a sample, and offset and size in it of each member that the sample has."""
        shard_idx = int(self.shards_of(number))
        opened = self._open(shard_idx)
        stored = zip(MEMBERS, opened.places[self._row_in_file(number, shard_idx)].tolist(), strict=True)
        return opened.name, {name: (offset, size) for name, (offset, size) in stored if size}

    def member_sizes(self, shard_idx: int, name: str) -> np.ndarray:
        """Return the bytes of a member, (samples of the shard,), 0 where it is absent; only the byte index is read."""
        sizes = self._open(shard_idx).places[:, MEMBERS.index(name), 1]
        rows = self.index.rows_in_shard(shard_idx)
        return sizes if rows is None else sizes[rows]

    def shards_of(self, numbers: npt.ArrayLike) -> np.ndarray:
        """Return the shard of each sample."""
        return self._starts.searchsorted(numbers, "right") - 1

    def shard_name(self, shard_idx: int) -> str:
        return f"{self.folder}/{self.index.shard(shard_idx).stem}.tar"

    def plan(self, plan: ShardPlan) -> None:
        """Download shards in the background, and keep or let go those in the cache, if the set is at an address."""
        self.files.plan(plan, self.index.shard)

    def stop(self, reader: str) -> None:
        """Forget a reader's plan."""
        self.files.stop(reader)

    def _read_range(self, number: int, names: Sequence[str]) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Read some members of a sample and its facts without a download of its shard, while that pays."""
        shard_idx = int(self.shards_of(number))
        if self._num_ranges[shard_idx] < MAX_RANGES and (opened := self.files.open_range(self.index.shard(shard_idx))):
            is_first = not self._num_ranges[shard_idx]
            self._num_ranges[shard_idx] += 1
            try:
                found = _split_facts(opened.members(self._row_in_file(number, shard_idx), names))
                if is_first:
                    self.files.validate_unchanged()
                return found
            except ChangedError:
                self._num_ranges[shard_idx] = 0
                raise
            except (OSError, ValueError, KeyError):
                # the store sends no ranges, or a file is not what the index says: the download will find out
                self._num_ranges[shard_idx] = MAX_RANGES
        return self.read_members(number, names)

    def read_members(self, number: int, names: Sequence[str]) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Return the images of a sample among some members, encoded, and its facts.

        Raises:
            ShardError: see `read`.
        """
        shard_idx = int(self.shards_of(number))
        opened = self._open(shard_idx)
        try:
            return _split_facts(opened.members(self._row_in_file(number, shard_idx), names))
        except (ValueError, KeyError) as error:
            self.files.drop(self.index.shard(shard_idx))  # a cached copy is downloaded again
            _OPEN.drop((*self._identity, shard_idx))
            raise ShardError(f"{opened.name}, sample {number}: damaged ({error})") from error

    def _row_in_file(self, number: int, shard_idx: int) -> int:
        row = number - int(self._starts[shard_idx])
        if not len(self.index.removed):
            return row
        known = self._rows
        if shard_idx not in known:
            if len(known) >= MAX_ROWS:
                known = self._rows = {}
            found = self.index.rows_in_shard(shard_idx)
            known[shard_idx] = None if found is None else found.astype(np.uint32)
        rows = known[shard_idx]
        return row if rows is None else int(rows[row])

    def _open(self, shard_idx: int) -> OpenShard:
        started = time.monotonic()
        if shard_idx in self._failed and started < self._failed[shard_idx][0]:
            raise ShardError(self._failed[shard_idx][1])
        try:
            return _OPEN.get((*self._identity, shard_idx), partial(self._open_file, shard_idx))
        except ShardError as error:
            # otherwise each of its samples would wait as long
            now = time.monotonic()
            self._failed[shard_idx] = now + RETRY_FACTOR * (now - started), str(error)
            raise

    def _open_file(self, shard_idx: int) -> OpenShard:
        return self.files.open(self.index.shard(shard_idx), self.cache.verify)

    def _sample(
        self, number: int, members: dict[str, bytes], facts: dict[str, Any], is_padding: bool = False
    ) -> Sample:
        return Sample(
            sample_num=number,
            inputs={**members, **texts_of(facts)},
            query_id=facts.get("query_id"),
            product_id=facts.get("product_id"),
            target_ids=tuple(facts.get("asked_ids", ())),
            target_grades=tuple(facts.get("asked_grades", ())),
            reference_ids=tuple(facts.get("shown_ids", ())),
            category=facts.get("category"),
            is_padding=is_padding,
        )


def _split_facts(members: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the images among the members of a sample, and its facts.

    Raises:
        ValueError, KeyError: it has no valid facts.
    """
    facts = json.loads(members.pop("json"))
    if not isinstance(facts, dict) or not isinstance(facts.get(DECLARED, {}), dict):
        raise ValueError("the facts are no JSON object")
    return members, facts
