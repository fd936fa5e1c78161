"""The same command restores missing parts of prepared data; changed data belong to another run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim_lightning.config import compose
from mim_lightning.data.manifest.manifest import Manifest, ManifestSource
from mim_lightning.data.manifest.rows import OnIssue, raise_issue
from mim_lightning.data.preparation.preparation import Validation, prepare_shards
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings, open_prepared
from mim_lightning.data.shards.cache import ChangedError
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.versions.set_versions import _keep_first_index
from mim_lightning.data_config import describe_data, describe_source
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.prepare import prepare
from mim_lightning.types import TextSpec
from tests.data.conftest import jpeg, tokenize

SETTINGS = ShardSettings(samples_per_shard=2)


@pytest.fixture
def folder(shop: ManifestSource, tmp_path: Path) -> Path:
    """The shop, prepared: two shards of the catalog, two to train on, one to evaluate."""
    prepare_shards(shop, tmp_path / "out" / "shop", SETTINGS)
    return tmp_path / "out" / "shop"


def files(folder: Path) -> dict[str, str]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in found}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)


LOSSES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a shard": ("catalogue/000001.tar", Path.unlink),
    "a byte index": ("queries/train/000001.npy", Path.unlink),
    "the end of a shard": ("queries/val/000000.tar", cut),
    "the end of a byte index": ("catalogue/000000.npy", cut),
    "a column": ("queries/train/weights.npy", Path.unlink),
    "the end of a column": ("catalogue/keys.npy", lambda path: np.save(path, np.load(path)[:-1])),
    "an index": ("catalogue/index.json", Path.unlink),
    "half an index": ("queries/train/index.json", cut),
    "a set": ("queries/val", lambda path: [file.unlink() for file in path.iterdir()] and path.rmdir()),
    "a bit": ("queries/train/000000.tar", flip),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_lost_shards_are_written_again(shop: ManifestSource, folder: Path, loss: str, caplog: Any) -> None:
    before, (name, lose) = files(folder), LOSSES[loss]
    kept = {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
    lose(folder / name)
    prepare_shards(shop, folder, SETTINGS, is_compared=loss == "a bit")
    assert files(folder) == before
    assert name.removesuffix(".npy").removesuffix(".tar") in caplog.text and "written again" in caplog.text
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    if "index.json" not in name and loss != "a set":
        stem = str(folder / name).rsplit(".", 1)[0]
        others = {path: inode for path, inode in kept.items() if not str(path).startswith(stem)}
        assert {path: path.stat().st_ino for path in others} == others, "what is whole is left alone"


class Unread(ManifestSource):
    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        raise AssertionError("the source was read again")


@pytest.mark.parametrize("is_compared", [False, True])
def test_undamaged_data_are_left_alone(shop: ManifestSource, folder: Path, is_compared: bool) -> None:
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    prepare_shards(Unread(str(shop.products), str(shop.queries)), folder, SETTINGS, is_compared=is_compared)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_a_shard_that_would_be_another_is_refused(shop: ManifestSource, folder: Path) -> None:
    (folder / "queries/val/000000.tar").unlink()
    (shop.queries.parent / "q3.jpg").write_bytes(jpeg(99, 30, 30))
    before = files(folder)
    with pytest.raises(
        ValueError, match=r"queries/val/000000.tar: is missing or damaged, and its .* with overwrite=true"
    ):
        prepare_shards(shop, folder, SETTINGS)
    assert files(folder) == before
    prepare_shards(shop, folder, SETTINGS, overwrite=True)
    assert open_prepared(folder).queries("val").read([0])[0].inputs["query_image"] == jpeg(99, 30, 30)


def test_data_of_the_first_format_get_their_shard_back(shop: ManifestSource, folder: Path) -> None:
    for path in folder.rglob("index.json"):
        index = json.loads(path.read_text())
        path.write_text(json.dumps({"version": 1} | {key: index[key] for key in ("sizes", "members", "max_relevant")}))
        for column in ("product_keys", "category_keys", "weights"):
            (path.parent / f"{column}.npy").unlink()
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(
        json.dumps({key: settings[key] for key in ("source", "settings", "protocol")})
    )
    before = files(folder)
    (folder / "catalogue/000001.tar").unlink()
    prepare_shards(shop, folder, SETTINGS)
    assert files(folder) == before


def test_a_first_change_that_was_killed_does_not_keep_a_shard_from_being_written(
    shop: ManifestSource, folder: Path
) -> None:
    _keep_first_index(folder / "catalogue", "catalogue")
    before = files(folder)
    (folder / "catalogue/000001.tar").unlink()
    prepare_shards(shop, folder, SETTINGS)
    assert files(folder) == before


def test_prepare_writes_damaged_shards_again(shop: ManifestSource, tmp_path: Path) -> None:
    words = [
        f"data.source.products={shop.products}",
        f"data.source.queries={shop.queries}",
        f"data.folder={tmp_path}/a",
    ]
    config = compose("prepare", ["data=manifest", *words])
    prepare(config)
    before = files(tmp_path / "a")
    flip(tmp_path / "a/catalogue/000000.tar")
    prepare(config)
    assert files(tmp_path / "a") == before


def described(shop: ManifestSource, folder: Path, *, is_bare: bool = False) -> Any:
    """Return what the id of a run is made of, beside its settings."""
    words = [f"data.source.products={shop.products}", f"data.source.queries={shop.queries}"]
    words = ["data=shards"] if is_bare else ["data=manifest", *words]
    data = compose("train", [*words, f"data.folder={folder}"])["data"]
    return json.dumps(describe_data(data, describe_source(data)), sort_keys=True)


@pytest.mark.parametrize("is_bare", [False, True])
def test_overwritten_images_make_another_run(shop: ManifestSource, folder: Path, is_bare: bool) -> None:
    picture = shop.queries.parent / "q0.jpg"
    first, before = picture.read_bytes(), described(shop, folder, is_bare=is_bare)
    prepare_shards(shop, folder, SETTINGS, overwrite=True)
    assert described(shop, folder, is_bare=is_bare) == before, "the same pictures"
    picture.write_bytes(jpeg(50))
    prepare_shards(shop, folder, SETTINGS, overwrite=True)
    second = described(shop, folder, is_bare=is_bare)
    assert second != before
    picture.write_bytes(jpeg(51))
    prepare_shards(shop, folder, SETTINGS, overwrite=True)
    assert described(shop, folder, is_bare=is_bare) not in (before, second)
    picture.write_bytes(first)
    prepare_shards(shop, folder, SETTINGS, overwrite=True)
    assert described(shop, folder, is_bare=is_bare) == before, "the first pictures are back"


def test_run_ids_of_older_prepared_sets_are_unchanged(shop: ManifestSource, folder: Path) -> None:
    own = described(shop, folder.with_name("not-yet"))
    assert described(shop, folder) == own
    settings = json.loads((folder / "settings.json").read_text())
    del settings["content"]  # as an older version leaves it
    (folder / "settings.json").write_text(json.dumps(settings))
    assert described(shop, folder, is_bare=True) == json.dumps(settings, sort_keys=True)
    (shop.queries.parent / "q0.jpg").write_bytes(jpeg(50))
    prepare_shards(shop, folder, SETTINGS, overwrite=True)
    assert described(shop, folder) != own, "what an older version prepared is replaced as well"


def test_a_run_opens_one_data_set(shop: ManifestSource, folder: Path) -> None:
    module = MatchDataModule("shop", {}, str(folder), None, SETTINGS, "val", 2, 2, 0, 0)
    opened = module.opened
    assert opened.train is opened.train and opened.gallery[0] is opened.catalog and len(opened.queries) == 1
    prepare_shards(shop, folder, SETTINGS, overwrite=True)
    assert opened.queries.read([0]) and len(opened.queries.keys) == 1, "the same content is the same data set"
    (shop.queries.parent / "q3.jpg").write_bytes(jpeg(50))
    prepare_shards(shop, folder, SETTINGS, overwrite=True)
    opened.train.read([0])
    with pytest.raises(ChangedError, match=re.escape(f"{folder}/queries/val: was prepared again with other content")):
        _ = opened.queries.keys


def test_a_checkpoint_does_not_resume_on_other_content(shop: ManifestSource, folder: Path) -> None:
    """Data that are removed and prepared again have the same id, however they were changed before."""

    def start() -> MatchDataModule:
        module = MatchDataModule(
            "shop", {"query_text": TextSpec(tokenize, 9)}, str(folder), None, SETTINGS, "val", 2, 2, 0, 0
        )
        module.train_dataloader()
        return module

    state = start().state_dict()
    shutil.rmtree(folder)
    prepare_shards(shop, folder, SETTINGS)
    start().load_state_dict(state)
    start().load_state_dict({key: value for key, value in state.items() if key != "content"})  # of an older version
    shutil.rmtree(folder)
    (shop.queries.parent / "q0.jpg").write_bytes(jpeg(50))
    prepare_shards(shop, folder, SETTINGS)
    with pytest.raises(ValueError, match=r"queries/train: its content changed since the checkpoint was written"):
        start().load_state_dict(state)


def test_damaged_settings_are_an_error(folder: Path, shop: ManifestSource) -> None:
    (folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json: damaged \(.*\); run prepare with overwrite=true"):
        prepare_shards(shop, folder, SETTINGS)
    prepare_shards(shop, folder, SETTINGS, overwrite=True)
    assert PreparedData(folder).describe()["settings"]["samples_per_shard"] == 2


def test_invalid_rows_stay_left_out_when_a_shard_is_written_again(shop: ManifestSource, tmp_path: Path) -> None:
    (shop.queries.parent / "q1.jpg").write_bytes(b"no picture")
    validation = Validation(ValidationSettings(on_invalid="drop", max_invalid="25%"))
    prepare_shards(shop, tmp_path / "a", SETTINGS, validation=validation)
    before = files(tmp_path / "a")
    (tmp_path / "a/queries/train/000000.tar").unlink()
    prepare_shards(shop, tmp_path / "a", SETTINGS, validation=validation)
    assert files(tmp_path / "a") == before
