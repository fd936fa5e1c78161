"""Damage of a local set is found, and what only looks like it is not taken for it."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from mim_lightning.data.shards.damage import Damage, find_damage
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.shard_writer import COLUMNS
from tests.data.shards.test_shard_writer import RECORDS
from tests.shard_sets import write_shard_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shard_set(tmp_path / "set", iter(RECORDS), 3, samples_per_shard=2)
    return tmp_path / "set"


@pytest.mark.parametrize("is_thorough", [False, True])
def test_missing_files_are_damage(folder: Path, is_thorough: bool) -> None:
    shards = ShardSet(folder)
    assert find_damage(shards, "set", tuple(COLUMNS), is_thorough) is None
    (folder / "000001.tar").unlink()
    (folder / "product_keys.npy").write_bytes(b"")
    expected = Damage("set", (1,), ("product_keys.npy",))
    assert find_damage(shards, "set", tuple(COLUMNS), is_thorough) == expected


@pytest.mark.parametrize("is_thorough", [False, True])
def test_too_few_descriptors_are_no_damage(folder: Path, is_thorough: bool) -> None:
    """Whole files would be written again, and what began to write them would be left."""
    shards = ShardSet(folder)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            find_damage(shards, "set", tuple(COLUMNS), is_thorough)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE
