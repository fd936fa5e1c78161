"""Writing shards and sets: content, columns, checksums, and markers of finished shards."""

from __future__ import annotations

import io
import json
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.preparation.hash_layout import plan_layout
from mim_lightning.data.preparation.plan import RowImageError
from mim_lightning.data.shards.set_writer import finish_set, finished_shards, place_shard
from mim_lightning.data.shards.shard_writer import COLUMNS, Record, read_shard, shard_sizes, write_shard
from mim_lightning.io.store import Store
from mim_lightning.types import NO_KEY, hash_id
from tests.data.conftest import jpeg
from tests.shard_sets import write_shard_set

RECORDS = [
    Record(
        {"query_image": jpeg(1), "product_image": jpeg(2)},
        {"query_id": "q", "product_id": "p", "asked_ids": ["p", "r"], "category": "mugs", "weight": 2.5},
    ),
    Record({}, {"query_id": "q2", "query_text": "grün", "asked_ids": ["p"], "shown_ids": ["a", "b", "c"]}),
    Record({"product_image": jpeg(3)}, {"product_id": "r", "category": None}),
]


def test_facts_of_a_written_shard(tmp_path: Path) -> None:
    facts = write_shard(tmp_path / "shard", iter(RECORDS), first=7)
    data = (tmp_path / "shard.tar").read_bytes()
    assert (facts.size, facts.num_bytes, facts.crc32, facts.max_relevant) == (3, len(data), zlib.crc32(data), 3)
    assert facts.columns["keys"].tolist() == [hash_id("q"), hash_id("q2"), hash_id("r")]
    assert facts.columns["product_keys"].tolist() == [hash_id("p"), NO_KEY, hash_id("r")]
    assert facts.columns["category_keys"].tolist() == [hash_id("mugs"), NO_KEY, NO_KEY]
    assert facts.columns["weights"].tolist() == [2.5, 1, 1]
    assert {name: column.dtype for name, column in facts.columns.items()} == COLUMNS
    offset, size = facts.places[0, 1]
    assert data[offset : offset + size] == jpeg(1)
    assert b"000000000009.json" in data
    assert read_shard(io.BytesIO(data)).difference(facts) is None


def test_a_shard_without_samples(tmp_path: Path) -> None:
    facts = write_shard(tmp_path / "shard", (), first=0)
    assert (facts.size, facts.places.shape, facts.columns["keys"].dtype) == (0, (0, 3, 2), np.int64)


@pytest.mark.parametrize("place", [0, 600, 3000, -1])
def test_one_flipped_bit_is_found(tmp_path: Path, place: int) -> None:
    facts = write_shard(tmp_path / "shard", iter(RECORDS), first=0)
    data = bytearray((tmp_path / "shard.tar").read_bytes())
    data[place] ^= 4
    try:
        assert read_shard(io.BytesIO(bytes(data))).difference(facts)
    except ValueError as error:
        assert "not a readable shard" in str(error)


def test_every_column_and_the_byte_index_count(tmp_path: Path) -> None:
    facts = write_shard(tmp_path / "shard", iter(RECORDS), first=0)
    for changed in (0, 2):
        for name in COLUMNS:
            with (tmp_path / "shard.tar").open("rb") as file:
                other = read_shard(file)
            other.columns[name][changed] += 1
            assert facts.difference(other) == f"{name} differ"
    other.places[1, 0, 0] += 1
    assert facts.difference(other) == "members are not where the byte index says"


@pytest.mark.parametrize("suffix", [".tar", ".npy"])
def test_a_disk_that_loses_bytes_is_not_trusted(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def lossy(descriptor: int) -> None:
        sync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.suffix == suffix:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(bytes(data))

    monkeypatch.setattr(os, "fsync", lossy)
    with pytest.raises(ValueError, match="reads back differently"):
        write_shard(tmp_path / "shard", iter(RECORDS), first=0)


@pytest.mark.parametrize("content", [b"", b"no tar file at all", b"\0" * 512 + b"x" * 700])
def test_files_that_are_no_shards(content: bytes, tmp_path: Path) -> None:
    facts = write_shard(tmp_path / "shard", iter(RECORDS), first=0)
    try:
        assert read_shard(io.BytesIO(content)).difference(facts)
    except ValueError as error:
        assert "not a readable shard" in str(error)


def test_a_set_has_columns_checksums_and_no_receipts(tmp_path: Path) -> None:
    write_shard_set(tmp_path / "set", iter(RECORDS), 3, samples_per_shard=2)
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    tars = [(tmp_path / "set" / f"00000{i}.tar").read_bytes() for i in (0, 1)]
    assert (index["version"], index["sizes"], index["max_relevant"]) == (2, [2, 1], 3)
    assert index["bytes"] == [len(data) for data in tars]
    assert index["crc32"] == [zlib.crc32(data) for data in tars]
    columns = {name: np.load(tmp_path / "set" / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
    assert columns["keys"].tolist() == [hash_id("q"), hash_id("q2"), hash_id("r")]
    assert columns["weights"].tolist() == [2.5, 1, 1]
    assert {name: column.dtype for name, column in columns.items()} == COLUMNS
    names = {path.name for path in (tmp_path / "set").iterdir()}
    assert names == {"index.json", *(f"{name}.npy" for name in COLUMNS)} | {
        f"00000{i}{suffix}" for i in (0, 1) for suffix in (".tar", ".npy")
    }


@pytest.mark.parametrize(("num", "per_shard", "sizes"), [(7, 3, [3, 2, 2]), (6, 3, [3, 3]), (1, 9, [1]), (0, 3, [])])
def test_sizes_of_shards(num: int, per_shard: int, sizes: list[int]) -> None:
    assert shard_sizes(num, per_shard) == sizes


STORES = ["{}/store", "memory://shards/{}"]


@pytest.mark.parametrize("address", STORES)
def test_a_store_on_disk_and_one_far_away(tmp_path: Path, address: str) -> None:
    address = address.format(tmp_path if address[0] == "{" else tmp_path.name)
    if "://" not in address:
        Path(address).mkdir()
    store = pickle.loads(pickle.dumps(Store(address)))
    assert store.names("a/b") == [] and not store.exists("a/b/c.txt") and store.size("a/b/c.txt") == -1
    store.write("a/b/c.txt", b"first")
    store.write("a/b/c.txt", b"second")
    store.write("a/d.txt", b"")
    assert (store.read("a/b/c.txt"), store.size("a/b/c.txt"), store.names("a")) == (b"second", 6, ["b", "d.txt"])
    with store.open("a/b/c.txt") as file:
        assert file.read() == b"second"
    store.remove("a/b")
    store.remove("a/b")
    assert store.names("a") == ["d.txt"]
    with store.scratch() as scratch:
        kept = scratch
    assert not kept.exists()


def test_a_set_is_finished_by_its_receipts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    facts = {}
    for shard_idx, records in enumerate((RECORDS[:2], RECORDS[2:])):
        with store.scratch() as scratch:
            facts[shard_idx] = write_shard(scratch / "x", iter(records), first=2 * shard_idx)
            if shard_idx == 0:
                place_shard(store, "queries/train", 0, scratch / "x", facts[0], "abc")
                with pytest.raises(ValueError, match="1 shards were not finished, the first 1"):
                    finish_set(store, "queries/train", 2)
            else:
                place_shard(store, "queries/train", 1, scratch / "x", facts[1], "def")
    receipts = finished_shards(store, "queries/train")
    assert [(r.size, r.num_bytes, r.content_id) for _, r in sorted(receipts.items())] == [
        (2, facts[0].num_bytes, "abc"),
        (1, facts[1].num_bytes, "def"),
    ]
    finish_set(store, "queries/train", 2)
    assert np.load(tmp_path / "queries" / "train" / "product_keys.npy").tolist() == [hash_id("p"), NO_KEY, hash_id("r")]
    assert json.loads((tmp_path / "queries" / "train" / "index.json").read_text())["max_relevant"] == 3


def test_an_image_error_survives_pickling_between_processes() -> None:
    issue = RowIssue("queries", "q.csv, row 3", "image", "q1", "x.jpg: damaged")
    error = pickle.loads(pickle.dumps(RowImageError(issue)))
    assert (error.issue, str(error)) == (issue, "q.csv, row 3, column 'image': x.jpg: damaged")


def test_ids_are_hashed_to_shards_of_their_set() -> None:
    layout = plan_layout({"queries/train": 10_000, "catalogue": 900, "queries/val": 1}, samples_per_shard=100, seed=3)
    assert dict(layout.num_shards) == {"catalogue": 9, "queries/train": 100, "queries/val": 1}
    numbers = [layout.shard_of("queries/train", f"q{i}") for i in range(10_000)]
    assert {layout.locate(number)[0] for number in numbers} == {"queries/train"}
    sizes = np.bincount(numbers, minlength=110)[9:109]
    assert sizes.sum() == 10_000 and sizes.min() > 50 and sizes.max() < 150  # five standard deviations
    assert [layout.locate(number) for number in (0, 8, 9, 108, 109)] == [
        ("catalogue", 0),
        ("catalogue", 8),
        ("queries/train", 0),
        ("queries/train", 99),
        ("queries/val", 0),
    ]
    assert all(layout.number(*layout.locate(number)) == number for number in range(layout.num_all))
    other = plan_layout({"queries/train": 10_000, "catalogue": 900}, 100, seed=4)
    assert other.shard_of("queries/train", "q0") != numbers[0]
