"""From finished shards to a finished set: receipts, columns over all samples, and `index.json` last of all.

A shard is finished when its receipt lies in the store: beside the set, named after the shard's size and what it was
made from. Receipts tell a later process what need not be written again; when all are there, they become the columns
and the index, one shard at a time. `remove_receipts` when every set is finished.
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
from mim_lightning.data.shards.set_index import FORMAT_VERSION
from mim_lightning.data.shards.writer import COLUMNS, ShardFacts, read_shard
from mim_lightning.io.store import Store

RECEIPTS = "receipts"  # folder of the store
NUM_READERS = 16  # receipts fetched at once from a store far away


@dataclass(frozen=True)
class Receipt:
    """What the name of a receipt tells of a finished shard."""

    shard_idx: int
    size: int  # samples
    num_bytes: int
    rows_id: str  # of what the shard was made from

    @property
    def name(self) -> str:
        return f"{self.shard_idx:06d}-{self.size}-{self.num_bytes}-{self.rows_id}.npz"


def shard_path(set_name: str, shard_idx: int, suffix: str) -> str:
    return _join(set_name, f"{shard_idx:06d}{suffix}")


def place_shard(
    store: Store, set_name: str, shard_idx: int, stem: Path, facts: ShardFacts, rows_id: str = "whole"
) -> Receipt:
    """Move a verified shard to its place, and leave its receipt there last."""
    receipt = Receipt(shard_idx, facts.size, facts.num_bytes, rows_id)
    for suffix in (".npy", ".tar"):
        store.put(stem.with_suffix(suffix), shard_path(set_name, shard_idx, suffix))
    numbers = np.array([facts.crc32, facts.max_relevant], dtype=np.int64)
    packed = io.BytesIO()
    np.savez(packed, numbers=numbers, **facts.columns)  # type: ignore[arg-type]
    store.write(_join(RECEIPTS, set_name, receipt.name), packed.getvalue())
    return receipt


def finished_shards(store: Store, set_name: str) -> dict[int, Receipt]:
    """Return the receipts of a set by shard, of those whose tar file is there as long as it should be."""
    names = store.sizes(_join(RECEIPTS, set_name))
    receipts = map(_parse, (name for name in names if name.endswith(".npz")))
    sizes = store.sizes(set_name)
    return {
        receipt.shard_idx: receipt
        for receipt in receipts
        if sizes.get(f"{receipt.shard_idx:06d}.tar") == receipt.num_bytes
    }


def drop_receipt(store: Store, set_name: str, receipt: Receipt) -> None:
    """Take a shard for unfinished: it was made from other rows."""
    store.remove(_join(RECEIPTS, set_name, receipt.name))


def remove_receipts(store: Store) -> None:
    store.remove(RECEIPTS)


def finish_set(store: Store, set_name: str, num_shards: int) -> None:
    """Write the columns and `index.json` of a set, all of whose shards are finished; the receipts stay.

    Raises:
        ValueError: a receipt is missing.
    """
    receipts = finished_shards(store, set_name)
    missing = [shard_idx for shard_idx in range(num_shards) if shard_idx not in receipts]
    if missing:
        raise ValueError(f"{store.address}/{set_name}: {len(missing)} shards were not finished, the first {missing[0]}")
    ordered = [receipts[shard_idx] for shard_idx in range(num_shards)]
    num_samples = sum(receipt.size for receipt in ordered)
    numbers: list[list[int]] = []
    with store.scratch() as scratch:
        with ExitStack() as stack:
            files = {name: stack.enter_context((scratch / f"{name}.npy").open("wb")) for name in COLUMNS}
            for name, kind in COLUMNS.items():
                _write_header(files[name], num_samples, np.dtype(kind))
            for parts in _read_receipts(store, set_name, ordered):
                numbers.append(parts["numbers"].tolist())
                for name, file in files.items():
                    file.write(parts[name].tobytes())
        for name in COLUMNS:
            store.put(scratch / f"{name}.npy", _join(set_name, f"{name}.npy"))
    index = {
        "version": FORMAT_VERSION,
        "members": MEMBERS,
        "sizes": [receipt.size for receipt in ordered],
        "max_relevant": max([1, *(max_relevant for _, max_relevant in numbers)]),
        "bytes": [receipt.num_bytes for receipt in ordered],
        "crc32": [crc32 for crc32, _ in numbers],
    }
    store.write(_join(set_name, "index.json"), json.dumps(index).encode())


def write_columns(store: Store, set_name: str, num_shards: int, names: Sequence[str]) -> None:
    """Write columns of a finished set again, from its shards."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for shard_idx in range(num_shards):
        with store.open(shard_path(set_name, shard_idx, ".tar")) as file:
            facts = read_shard(file)
        for name, found in parts.items():
            found.append(facts.columns[name])
    for name, found in parts.items():
        packed = io.BytesIO()
        np.save(packed, np.concatenate(found))
        store.write(_join(set_name, f"{name}.npy"), packed.getvalue())


def content_id(store: Store, set_name: str) -> str:
    """Return a short text that changes with the content of a set: its index tells the checksum of every shard."""
    return hashlib.blake2b(store.read(_join(set_name, "index.json")), digest_size=8).hexdigest()


def _read_receipts(store: Store, set_name: str, receipts: list[Receipt]) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield what the receipts hold, in order; a few are fetched ahead, all of them would be too many to hold."""

    def read(receipt: Receipt) -> dict[str, np.ndarray]:
        with np.load(io.BytesIO(store.read(_join(RECEIPTS, set_name, receipt.name)))) as parts:
            return dict(parts)

    with ThreadPoolExecutor(NUM_READERS) as pool:
        for start in range(0, len(receipts), NUM_READERS):
            yield from pool.map(read, receipts[start : start + NUM_READERS])


def _write_header(file: BinaryIO, num_samples: int, kind: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (num_samples,)}
    np.lib.format.write_array_header_1_0(file, header)


def _parse(name: str) -> Receipt:
    shard_idx, size, num_bytes, rows_id = name.removesuffix(".npz").split("-")
    return Receipt(int(shard_idx), int(size), int(num_bytes), rows_id)


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
