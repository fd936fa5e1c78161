"""A set that is replaced after it was opened is refused at the next read of a changed shard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.corrupt_samples import CorruptSamplePolicy
from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.data.sampling.shuffled import ShuffledOrder
from mim_lightning.data.shards.cache import CacheSettings, ChangedError
from mim_lightning.data.shards.open_shards import OpenShards
from mim_lightning.data.shards.shard_set import ShardError, ShardSet
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.types import ImageSpec
from tests.data.conftest import jpeg
from tests.data.stores import serving
from tests.shard_sets import write_shard_set

Write = Callable[[str, int], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, seed: int) -> Path:
        records = [
            Record({"query_image": jpeg(seed + n, 16, 16), "product_image": jpeg(n, 16, 16)}, {"query_id": f"q{n}"})
            for n in range(8)
        ]
        write_shard_set(tmp_path / name, records, 8, 2)
        return tmp_path / name

    return write


def replace(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    other.rename(folder)


def test_a_set_that_was_prepared_again_is_refused_at_its_next_shard(write: Write) -> None:
    folder = write("set", 0)
    shards = ShardSet(folder)
    first = shards.read([0, 1])
    replace(folder, write("other", 100))
    assert shards.read([1, 0]) == first[::-1], "what is open is read on"
    for read in (lambda: shards.read([2]), lambda: shards.column("weights")):
        with pytest.raises(ChangedError, match=f"{folder}: was prepared again with other content since it was opened"):
            read()
    assert ShardSet(folder).read([2])[0].inputs != first[0].inputs


def test_the_same_content_again_is_no_change(write: Write, tmp_path: Path) -> None:
    folder = write("set", 0)
    shards, expected = ShardSet(folder), ShardSet(write("copy", 0)).read(range(8))
    shards.read([0])
    os.utime(folder / "index.json")
    assert shards.read([2])[0] == expected[2]
    replace(folder, tmp_path / "copy")
    assert shards.read(range(8)) == expected


def test_a_deleted_set_is_not_reported_as_damage(write: Write) -> None:
    folder = write("set", 0)
    shards = ShardSet(folder)
    shutil.rmtree(folder)
    with pytest.raises(ChangedError, match="set: is gone, or being prepared again, since it was opened"):
        shards.read([0])


def test_a_change_is_not_skipped_as_damage(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.data.shards.shard_set._OPEN", OpenShards(1))
    folder = write("set", 0)
    shards = ShardSet(folder)
    specs = {"query_image": ImageSpec((8, 8)), "product_image": ImageSpec((8, 8))}
    plan = ShuffledOrder(tuple(shards.sizes), 2, num_streams=1, window=1)
    loader = StreamLoader(shards, Collate(specs, 1), plan, policy=CorruptSamplePolicy("skip", "100%"))
    batches = iter(loader)
    next(batches)
    replace(folder, write("other", 100))
    with pytest.raises(ChangedError):
        list(batches)


def test_single_shards_of_another_set_are_detected(write: Write) -> None:
    folder, other = write("set", 0), write("other", 100)
    for ending, words in ((".tar", "it has [0-9,]+ bytes|another shard"), (".npy", "another shard|no member begins")):
        kept = (folder / f"000001{ending}").read_bytes()
        shutil.copy(other / f"000001{ending}", folder)
        with pytest.raises(ShardError, match=rf"000001.tar: damaged \(.*({words})"):
            ShardSet(folder).read([2])
        (folder / f"000001{ending}").write_bytes(kept)
    assert ShardSet(folder).read([2])[0].query_id == "q2"
    np.save(folder / "keys.npy", np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"keys.npy: has 3 values, the set 8 samples; run prepare again"):
        _ = ShardSet(folder).keys


def test_a_set_at_an_address_that_was_prepared_again(write: Write, tmp_path: Path) -> None:
    folder = write("set", 0)
    cache = CacheSettings(folder=str(tmp_path / "cache"), timeout=5, retries=0, prefetch_shards=0)
    with serving(tmp_path) as store:
        address = store.address
        shards = ShardSet(f"{address}/set", cache)
        shards.read([0])
        replace(folder, write("other", 100))
        with pytest.raises(ChangedError, match="set: was prepared again with other content"):
            shards.read([2])
        with pytest.raises(ChangedError):
            shards.column("weights")
        assert ShardSet(f"{address}/set", cache).read([2])[0] == ShardSet(folder).read([2])[0]


def test_a_few_samples_at_an_address_are_not_of_another_set(write: Write, tmp_path: Path) -> None:
    folder = write("set", 0)
    cache = CacheSettings(folder=str(tmp_path / "cache"), timeout=5, retries=0, prefetch_shards=0)
    with serving(tmp_path, has_ranges=True) as store:
        shards = ShardSet(f"{store.address}/set", cache)
        assert shards.read_few([0, 1]) == ShardSet(folder).read([0, 1])
        assert store.asked["set/index.json"] == 2, "compared once a shard"
        replace(folder, write("other", 100))
        for _ in range(2):
            with pytest.raises(ChangedError, match="set: was prepared again with other content"):
                shards.read_few([2])
