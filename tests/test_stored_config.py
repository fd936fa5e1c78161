"""No code in an untrusted checkpoint or export runs: every position of a real config is tried."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mim_lightning.build_index import build_index
from mim_lightning.config import compose, conf_dir, load_stored_config, save_config
from mim_lightning.evaluate import evaluate
from mim_lightning.export import export
from mim_lightning.inference.export_format import write_facts, write_model
from mim_lightning.inference.loading import load
from mim_lightning.model.checkpoint import SECTION, load_matcher
from mim_lightning.stored_config import BUILT, ROLES, StoredConfigError, data_of, validate_assets, validate_config
from tests.inference.models import write_checkpoint

Key = tuple[Any, ...]
ENCODER: Key = ("model", "towers", "query_image", "encoder")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("stored"), "model=4tower")[0]


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)[SECTION]["config"]


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, loaded = tmp_path_factory.mktemp("exported"), load_matcher(checkpoint)
    facts, _ = write_model(folder, loaded.matcher, loaded.config, loaded.fingerprint, "float32")
    write_facts(folder, facts)
    return folder


def touch(path: Path) -> dict[str, Any]:
    """Return what makes Hydra create a file."""
    return {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(path)]}}


def interpolation(path: Path) -> str:
    """Return the same in one text, which OmegaConf turns into a section."""
    inner = '{_target_: pathlib.Path, _args_: ["%s"]}' % path  # noqa: UP031
    return "${oc.create:{_target_: pathlib.Path.touch, self: %s}}" % inner  # noqa: UP031


def places_of(value: Any, key: Key = ()) -> Iterator[Key]:
    """Yield every mapping, list and leaf of a config by its keys."""
    yield key
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from places_of(part, (*key, name))


def changed(config: dict[str, Any], key: Key, value: Any, beside: str | None = None) -> dict[str, Any]:
    """Return the config with another value at a place, or with a further key in the mapping there."""
    if not key:
        return value if beside is None else {**config, beside: value}
    result = copy.copy(config)
    inner = config.get(key[0]) if isinstance(config, dict) else config[key[0]]
    result[key[0]] = changed(inner, key[1:], value, beside)
    return result


def get(config: Any, key: Key) -> Any:
    for name in key:
        config = config[name]
    return config


def is_built(key: Key) -> bool:
    return any(key[: place.count(".") + 1] == tuple(place.split(".")) for place in BUILT)


def test_an_interpolation_is_refused_at_any_position(config: dict[str, Any], tmp_path: Path) -> None:
    text = interpolation(tmp_path / "ran")
    places = [key for key in places_of(config) if key]
    assert len(places) > 200
    for key in places:
        dotted = ".".join(map(str, key))
        for hostile in (changed(config, key, text), changed(config, key, {"deep": [text]})):
            with pytest.raises(StoredConfigError) as caught:
                validate_config(hostile, "a.ckpt")
            assert str(caught.value).startswith(f"a.ckpt: {dotted}") and "${" in str(caught.value)
            assert caught.value.key.startswith(dotted)
        if isinstance(get(config, key), dict):
            with pytest.raises(StoredConfigError, match=r"a\.ckpt: "):
                validate_config(changed(config, key, 1, beside="${oc.env:HOME}"), "a.ckpt")


def test_code_is_refused_wherever_something_is_built(config: dict[str, Any], tmp_path: Path) -> None:
    code = touch(tmp_path / "ran")
    for key in filter(is_built, places_of(config)):
        for hostile in (changed(config, key, code), changed(config, key, [code]), changed(config, key, {"x": code})):
            with pytest.raises(StoredConfigError, match=r"^a\.ckpt: [\w.]+") as caught:
                validate_config(hostile, "a.ckpt")
            assert "\n" not in str(caught.value)
        if isinstance(get(config, key), dict):
            for name in ("_args_", "_convert_", "_recursive_", "_partial_", "_mode_"):
                with pytest.raises(StoredConfigError, match=f"has the key {name}"):
                    validate_config(changed(config, key, [], beside=name), "a.ckpt")
            for target in ("os.system", ["os.system"], {"a": 1}, None, 7, "", "mim_lightning.cli", "a..b", "."):
                with pytest.raises(StoredConfigError, match=r"wants to build|has no _target_"):
                    validate_config(changed(config, key, target, beside="_target_"), "a.ckpt")


def test_sections_that_are_not_built_may_contain_any_text(
    checkpoint: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    code = touch(tmp_path / "ran")
    hostile = {key: part if key in ("model", "data", "directions", "monitor") else code for key, part in config.items()}
    hostile["callbacks"] = dict.fromkeys(config["callbacks"], code) | {
        "retrieval_eval": config["callbacks"]["retrieval_eval"]
    }
    content = torch.load(checkpoint, weights_only=True)
    content[SECTION]["config"] = hostile
    torch.save(content, tmp_path / "a.ckpt")
    assert load_matcher(tmp_path / "a.ckpt").fingerprint == content[SECTION]["fingerprint"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ((*ENCODER, "_target_"), "mim_lightning.encoders.interface.Preprocessing", "here it may be .*TinyImage"),
        ((*ENCODER, "_target_"), "mim_lightning.model.Tower", "here it may be .*TinyImage"),
        ((*ENCODER, "_target_"), "mim_lightning.encoders.timm_image.load_state_dict", "here it may be"),
        ((*ENCODER, "_target_"), "mim_lightning.encoders.tiny.TinyImage.__init__", "here it may be"),
        (("model", "towers", "query_image", "_target_"), "mim_lightning.encoders.TinyImage", "model.Tower"),
        (("data", "source", "_target_"), "mim_lightning.lit.MatchDataModule", "ManifestSource"),
        (("data", "sampling", "_target_"), "mim_lightning.data.Augment", "ShuffledSettings"),
        (ENCODER, None, "is None; give _target_"),
        (ENCODER, ["a"], "give _target_"),
        (("data", "source"), "a text", "give _target_"),
        (("data", "_partial_"), 1, "has the key _partial_"),
        (("data", "batch_size"), torch.zeros(1), "holds a Tensor"),
        (("data", "batch_size"), {1: 2}, "has the key 1"),
        (("data", "batch_size"), {None: 2}, "has the key None"),
        (("data", "batch_size"), {"a\x1b[31m\nb": "${x}"}, r"a\ufffd\[31m b"),
    ],
)
def test_our_classes_are_allowed_in_their_roles(config: dict[str, Any], key: Key, value: Any, reason: str) -> None:
    with pytest.raises(StoredConfigError, match=reason) as caught:
        validate_config(changed(config, key, value), "a.ckpt")
    assert caught.value.key.startswith(str(key[0])) and str(caught.value).isprintable()


def test_a_file_does_not_let_images_come_from_private_addresses(config: dict[str, Any]) -> None:
    key = ("data", "source", "download", "private_addresses")
    assert get(config, key) is False
    assert validate_config(changed(config, key, True), "a.ckpt") == config


@pytest.mark.parametrize(
    ("key", "value"),
    [*(((name,), value) for name in ("folder", "name", "val_split") for value in (None, 7, [])), (("seed",), "x")],
)
def test_data_that_cannot_be_opened_are_one_line(config: dict[str, Any], key: Key, value: Any) -> None:
    assert data_of(validate_config(config, "a.ckpt"), "a.ckpt") == config["data"]
    with pytest.raises(StoredConfigError, match=rf"^a\.ckpt: data\.{key[0]}: is .*; name other data with data="):
        data_of(changed(config, ("data", *key), value), "a.ckpt")
    without = {**config, "data": {name: part for name, part in config["data"].items() if name != "shards"}}
    with pytest.raises(StoredConfigError, match=r"data\.shards: is missing"):
        data_of(without, "a.ckpt")


def test_evaluation_takes_no_code_for_a_precision(change_file: Callable, tmp_path: Path) -> None:
    path = change_file("checkpoint", ("trainer", "precision"), touch(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"a\.ckpt: trainer\.precision: wants to build"):
        evaluate(compose("evaluate", [f"checkpoint={path}"]))
    assert not (tmp_path / "ran").exists()


def test_a_value_of_another_kind_in_the_data_section_is_one_line(change_file: Callable, tmp_path: Path) -> None:
    path = change_file("checkpoint", ("data", "num_workers"), "many")
    message = r"a\.ckpt: data\.num_workers=many: give a whole number or null$"
    with pytest.raises(ValueError, match=message):
        evaluate(compose("evaluate", [f"checkpoint={path}"]))
    with pytest.raises(ValueError, match=message):
        export(compose("export", [f"checkpoint={path}", f"output={tmp_path}/e"]))
    with pytest.raises(ValueError, match=message):
        build_index(compose("build_index", [f"checkpoint={path}", f"output={tmp_path}/i"]))


def test_recursive_or_huge_values_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    doubled: Any = 0
    for _ in range(30):
        doubled = [doubled, doubled]  # 60 lists that expand to a billion values
    for value in (endless, doubled):
        with pytest.raises(StoredConfigError, match="nested too deep, or too large"):
            validate_config({"model": value}, "a.ckpt")
    for value in (None, [], "text", 1):
        with pytest.raises(StoredConfigError, match="for a config"):
            validate_config(value, "a.ckpt")


@pytest.mark.parametrize("options", [["data=synthetic"], ["model=2tower", "data=synthetic", "data/sampling=grouped"]])
def test_configs_of_ours_pass(options: list[str]) -> None:
    config = compose("train", options)
    assert validate_config(config, "a.ckpt") == config


def test_every_class_that_our_configs_name_has_a_role() -> None:
    named = {
        target
        for group in ("encoder", "model", "data")
        for path in Path(conf_dir(), group).rglob("*.yaml")
        for target in re.findall(r"_target_: mim_lightning\.([\w.]+)", path.read_text())
    }
    known = {name for names in ROLES.values() for name in names}
    assert known == named | {"lit.RetrievalEval"}


@pytest.fixture
def change_file(checkpoint: Path, exported: Path, tmp_path: Path) -> Callable[[str, Key, Any], Path]:
    """Write a checkpoint or an export with another value in its config."""

    def change(kind: str, key: Key, value: Any) -> Path:
        if kind == "checkpoint":
            content = torch.load(checkpoint, weights_only=True)
            content[SECTION]["config"] = changed(content[SECTION]["config"], key, value)
            torch.save(content, tmp_path / "a.ckpt")
            return tmp_path / "a.ckpt"
        folder = Path(shutil.copytree(exported, tmp_path / "export", dirs_exist_ok=True))
        facts = json.loads((folder / "config.json").read_text())
        facts["config"] = changed(facts["config"], key, value)
        (folder / "config.json").write_text(json.dumps(facts))
        return folder

    return change


@pytest.mark.parametrize("kind", ["checkpoint", "export"])
@pytest.mark.parametrize(
    "key",
    [
        *((*ENCODER, "image_size"), (*ENCODER, "further"), ENCODER, ("model", "towers", "query_image", "embed_dim")),
        *(("model", "fusions", "query", "query_text"), ("model", "tied", "query_text"), ("data", "source", "products")),
        *(("data", "shards", "max_image_side"), ("callbacks", "retrieval_eval", "cutoffs")),
    ],
)
def test_files_run_nothing(change_file: Callable, tmp_path: Path, kind: str, key: Key) -> None:
    for value in (interpolation(tmp_path / "ran"), touch(tmp_path / "ran")):
        path = change_file(kind, key, value)
        with pytest.raises(ValueError, match=f"{path.name}.*{'.'.join(key)}"):
            load(path)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["checkpoint", "export"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((("model", name), None) for name in ("towers", "tied", "fusions")),
        *((("model", name), "text") for name in ("towers", "tied", "fusions")),
        *((("model",), value) for value in (None, [], {})),
        (("model", "towers"), {}),
        (("model", "towers", "query_image", "embed_dim"), "many"),
        (("model", "towers", "query_image", "embed_dim"), -1),
        ((*ENCODER, "image_size"), None),
        ((*ENCODER, "image_size"), -32),
        ((*ENCODER, "width"), 10**15),
        ((*ENCODER, "unknown"), 1),
        (("model", "fusions", "query", "query_text"), "heavy"),
        (("model", "tied", "query_text"), "nobody"),
    ],
)
def test_an_invalid_model_is_one_line(change_file: Callable, kind: str, key: Key, value: Any) -> None:
    path = change_file(kind, key, value)
    with pytest.raises(ValueError, match=path.name) as caught:
        load(path)
    assert "\n" not in str(caught.value)


PACKAGE = """
import os
from pathlib import Path
from mim_lightning.encoders.tiny import TinyImage

class Mine(TinyImage):
    pass
"""


def test_encoders_of_a_trusted_package_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change_file: Callable
) -> None:
    (tmp_path / "packages" / "own_encoders").mkdir(parents=True)
    (tmp_path / "packages" / "own_encoders" / "__init__.py").write_text("from own_encoders.image import Mine\n")
    (tmp_path / "packages" / "own_encoders" / "image.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "packages")

    def load_as(target: str) -> str:
        return load(change_file("checkpoint", (*ENCODER, "_target_"), target)).fingerprint

    with pytest.raises(ValueError, match="if you trust the file, set MIM_TRUSTED_PACKAGES=<package>"):
        load_as("own_encoders.image.Mine")
    monkeypatch.setenv("MIM_TRUSTED_PACKAGES", "another, own_encoders")
    assert load_as("own_encoders.image.Mine") == load_as("own_encoders.Mine")
    reached = ("image.os.system", "image.Path", "image.TinyImage", "image.Mine.__init__", "image.os", "image.None")
    for name in reached:
        with pytest.raises(ValueError, match=r"a\.ckpt: .* wants to build|cannot be imported"):
            load_as(f"own_encoders.{name}")
    with pytest.raises(ValueError, match=r"'another\.Thing' cannot be imported"):
        load_as("another.Thing")


def test_the_data_of_a_package_that_is_not_here_do_not_keep_a_model_from_loading(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    monkeypatch.setenv("MIM_TRUSTED_PACKAGES", "another")
    elsewhere = changed(config, ("data", "source", "_target_"), "another.Source")
    assert validate_config(elsewhere, "a.ckpt") == elsewhere


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "/x", "a/b", "a\\b", "a\0b", "a\nb", "C:x", "CON", "nul.json", ".hidden", "x.", " x"),
        *("a.py", "a.SO", "a.pkl", "x" * 300, None, 1, b"x", ("a",)),
    ],
)
def test_assets_are_plain_files(checkpoint: Path, tmp_path: Path, name: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.ckpt: assets of"):
        validate_assets({"query_image": {name: "text"}}, "a.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    content[SECTION]["assets"]["product_text"] = {name: "text"}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt: assets of"):
        load_matcher(tmp_path / "a.ckpt")


@pytest.mark.parametrize("assets", [None, [], {"a/b": {}}, {"query_image": []}, {1: {}}, {"query_image": {"a": b""}}])
def test_assets_are_texts_by_tower(assets: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.ckpt: assets"):
        validate_assets(assets, "a.ckpt")


def test_links_to_outside_are_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    for name in ("config.json", "fingerprint", "model.safetensors", "query_image/preprocessing.json"):
        folder = Path(shutil.copytree(exported, tmp_path / name.replace("/", "-")))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "secret")
        with pytest.raises(ValueError, match=f"{name}: is a link that leads out of"):
            load(folder)


def test_the_hubs_cache_links_beside_its_snapshots(exported: Path, tmp_path: Path) -> None:
    snapshot = Path(shutil.copytree(exported, tmp_path / "models--a--b" / "snapshots" / "main"))
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        blob = tmp_path / "models--a--b" / "blobs" / str(number)
        path.rename(blob)
        path.symlink_to(blob)
    assert load(snapshot).fingerprint == load(exported).fingerprint


def test_a_runs_config_is_read_and_not_resolved(tmp_path: Path) -> None:
    config = compose("train", ["data=synthetic"])
    save_config(config, tmp_path / "config.yaml")
    assert load_stored_config(tmp_path / "config.yaml") == config
    for text, reason in (
        ("a: {b: '${oc.env:HOME}'}", r"a\.b: holds"),
        ("a: &x [1]\nb: *x", "line 2: a part that stands for another"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: !!python/object/apply:pathlib.Path [x]", "could not determine a constructor"),
        ("a: " + "[" * 200_000, "nested too deep"),
        ("- a", "holds no keys"),
        ("\x00", "damaged"),
        ("a: {1: b}", "has the key 1"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"config.yaml: .*{reason}") as caught:
            load_stored_config(tmp_path / "config.yaml")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["trainer", "run"])
def test_sections_must_be_mappings(place: str, tmp_path: Path) -> None:
    with pytest.raises(StoredConfigError, match=f"{place}: is 5; a section of keys belongs there"):
        validate_config({"model": {}, "data": {}, "callbacks": {}, place: 5}, tmp_path / "a.ckpt")
