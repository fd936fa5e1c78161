"""Verification names damaged shards and no others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.config import compose
from mim_lightning.data.shards.verify import VerificationResult, verify_sets
from mim_lightning.io.store import Store
from mim_lightning.prepare import prepare
from tests.data.shards.test_shard_writer import RECORDS
from tests.shard_sets import write_shard_set

SETS = ["catalogue", "queries/train"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in SETS:
        write_shard_set(tmp_path / "shop" / name, iter(RECORDS), 3, samples_per_shard=2)
    (tmp_path / "shop" / "settings.json").write_text('{"source": {}, "settings": {"train_split": "train"}}')
    return tmp_path / "shop"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def rewrite(path: Path, change: Callable[[dict[str, list[int]]], None]) -> None:
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a picture": (lambda root: flip(root / "000001.tar", 1600), r"000001.tar: crc32 \d+, not \d+"),
    "a bit of the facts": (lambda root: flip(root / "000001.tar", 515), "000001.tar: "),
    "a cut shard": (
        lambda root: (root / "000000.tar").write_bytes((root / "000000.tar").read_bytes()[:-1]),
        r"000000.tar: \d+ bytes, not \d+",
    ),
    "a missing shard": (lambda root: (root / "000000.tar").unlink(), r"000000.tar: .*000000\.tar is missing"),
    "an empty shard": (lambda root: (root / "000000.tar").write_bytes(b""), "000000.tar: "),
    "a missing byte index": (lambda root: (root / "000001.npy").unlink(), r"000001.tar: .*000001\.npy is missing"),
    "a bit of the byte index": (lambda root: flip(root / "000000.npy", -8), "000000.tar: members are not where"),
    "a bit of a column": (lambda root: flip(root / "product_keys.npy", -8), "000001.tar: product_keys differ"),
    "a short column": (lambda root: np.save(root / "keys.npy", np.zeros(2, dtype=np.int64)), "0000"),
    "a missing index": (lambda root: (root / "index.json").unlink(), "index.json: "),
    "a shard too few": (
        lambda root: rewrite(root / "index.json", lambda index: index["sizes"].pop()),
        "index.json: ",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", SETS)
def test_damage_is_named(folder: Path, kind: str, name: str) -> None:
    damage, words = DAMAGE[kind]
    damage(folder / name)
    damaged = verify_sets(folder, SETS).damaged
    assert damaged and all(line.startswith((f"{name}/0", f"{name}/i")) for line in damaged)
    assert re.match(f"{name}/{words}", damaged[0]), damaged


def test_sound_data(folder: Path) -> None:
    assert verify_sets(folder, SETS) == VerificationResult(num_shards=4, num_rows=6, damaged=())


def test_data_of_an_older_version_have_no_checksums(folder: Path) -> None:
    for name in SETS:
        rewrite(folder / name / "index.json", lambda index: [index.pop("bytes"), index.pop("crc32")])
        rewrite(folder / name / "index.json", lambda index: index.update(version=1))
        (folder / name / "weights.npy").unlink()
    assert verify_sets(folder, SETS).damaged == ()
    flip(folder / "catalogue" / "keys.npy", -1)
    assert verify_sets(folder, SETS).damaged == ("catalogue/000001.tar: keys differ",)


def test_prepare_verify_names_the_shard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose("prepare", ["data=shards", f"data.folder={folder}", "verify=true"])
    prepare(config)
    assert "4 shards with 6 rows match their checksums" in capsys.readouterr().out
    flip(folder / "queries" / "train" / "000000.tar", 1600)
    with pytest.raises(ValueError, match=r"1 damaged, the first is queries/train/000000.tar: crc32"):
        prepare(config)
    assert f"damaged: {folder}/queries/train/000000.tar: crc32" in capsys.readouterr().out


def test_a_relative_folder_is_that_of_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, damaged)
    flip(damaged / "queries" / "train" / "000000.tar", 1600)
    for parent, num_damaged in ((folder.parent, 0), (damaged.parent, 1), (folder.parent, 0)):
        monkeypatch.chdir(parent)
        assert len(verify_sets(Path(folder.name), SETS).damaged) == num_damaged
    store = Store(folder.name)
    monkeypatch.chdir(damaged.parent)
    assert "catalogue" in store.names("") and store.address == str(folder)
