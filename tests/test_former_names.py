"""Classes that configs name are what packages export; a config with former names means what it meant."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mim_lightning
from mim_lightning import former_names
from mim_lightning.config import compose, conf_dir
from mim_lightning.former_names import (
    FORMER_KEYS,
    FORMER_OPTIONS,
    FORMER_TARGETS,
    FORMER_TOP_KEYS,
    FORMER_VALUES,
    first_override,
    present_overrides,
    to_first,
    to_present,
)
from mim_lightning.model.checkpoint import SECTION, load_matcher
from mim_lightning.run import identify
from mim_lightning.stored_config import OWN, ROLES, validate_config
from tests.inference.models import write_checkpoint

SOURCE = Path(mim_lightning.__file__).parent
FACES = [path.parent.name for path in sorted(SOURCE.glob("*/__init__.py")) if "export_lazily" in path.read_text()]
IN_CONF = {
    target
    for path in Path(conf_dir()).rglob("*.yaml")
    for target in re.findall(rf"_target_: ({OWN}[\w.]+)", path.read_text())
}


@pytest.mark.parametrize("name", FACES)
def test_a_package_exports_what_type_checkers_see(name: str) -> None:
    package = importlib.import_module(OWN + name)
    block = next(
        node for node in ast.parse((SOURCE / name / "__init__.py").read_text()).body if isinstance(node, ast.If)
    )
    seen = {alias.name: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert dir(package) == sorted(seen)
    for export, module in seen.items():
        if importlib.util.find_spec(module.split(".")[0]) is not None:
            pytest.importorskip(module, exc_type=ModuleNotFoundError)
            assert getattr(package, export) is getattr(sys.modules[module], export)
    with pytest.raises(AttributeError, match=f"'{OWN}{name}' has no attribute 'Nothing'"):
        _ = package.Nothing


@pytest.mark.parametrize(
    "target", sorted({*IN_CONF, *FORMER_TARGETS.values(), *(OWN + n for r in ROLES.values() for n in r)})
)
def test_a_target_is_what_a_package_exports(target: str) -> None:
    _, package, name = target.split(".")
    assert package in FACES and name in dir(importlib.import_module(OWN + package))


def test_packages_import_no_vendor() -> None:
    code = f"import sys, {', '.join(OWN + name for name in FACES)}; print(*{{n.split('.')[0] for n in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "lightning", "timm", "transformers", "numpy", "hydra", "optuna", "PIL"} & {*found}


def former(config: Any) -> Any:
    """Return a config with the names of the first commits."""
    changed = to_first(config)
    assert changed != config
    return changed


def test_a_former_name_on_the_command_line_is_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    name = "mim_lightning.encoders.tiny.TinyText"
    config = compose("train", [f"encoder.text._target_={name}"])  # which four towers take over
    assert config == compose("train", []) and name in FORMER_TARGETS
    assert capsys.readouterr().err == (
        f"warning: {name} is now mim_lightning.encoders.TinyText; the former name is accepted until version 0.3\n"
    )


# ids of runs that were started when configs had former names
@pytest.mark.parametrize(
    ("overrides", "run_id"),
    [
        ("", "4tower-synthetic-seed1-f47c8002"),
        ("model=2tower", "2tower-synthetic-seed1-da077771"),
        (
            "model=3tower data/order=grouped data.order.rows_per_product=3 data.shards.layout=product loss=sigmoid",
            "3tower-synthetic-seed1-cc5b5f1e",
        ),
        (
            "data/order=weighted optim=sgd schedule=constant data.window=4 data.num_lanes=3 data.rows_per_epoch=100 "
            "report=last",
            "4tower-synthetic-seed1-2c04c5c4",
        ),
        (
            "data/sampling=weighted optim=sgd schedule=constant data.window=4 data.num_lanes=3 "
            "data.samples_per_epoch=100 results_from=last",
            "4tower-synthetic-seed1-2c04c5c4",
        ),
        (
            "encoder/image=mobilenetv2 encoder/text=minilm embed_dim=64 schedule.warmup_share=0.2 "
            "schedule.final_share=0.1",
            "4tower-synthetic-seed1-6ce8787d",
        ),
        ("model=3tower +model.towers.product_text.frozen=true", "3tower-synthetic-seed1-36b96e6a"),
        ("encoder=clip_vit_b32 model=3tower data.augment=null", "3tower-synthetic-seed1-df84d729"),
        (
            "encoder/image=vit_b16 encoder/text=bert_base data/protocol=disjoint data/order=grouped "
            "data.order.same_category=0.5",
            "4tower-synthetic-fold0of5-seed1-a2fb7ae0",
        ),
    ],
)
def test_runs_keep_the_ids_of_their_first_names(overrides: str, run_id: str) -> None:
    for words in (overrides.split(), present_overrides(overrides.split())):
        assert identify(compose("train", words))[0].run_id == run_id


def test_a_key_that_came_later_does_not_lose_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(former_names, "ADDED_KEYS", {"step.size": (None,), "model.towers.*.mode": ("full",)})
    before = {"model": {"towers": {"query_image": {"frozen": False}}, "tied": {}}}
    same = {"step": {"size": None}, "model": {"towers": {"query_image": {"frozen": False, "mode": "full"}}, "tied": {}}}
    other = {**before, "step": {"size": 8}}
    assert former_names.to_first(same) == former_names.to_first(before)
    assert former_names.to_first(other) == {**former_names.to_first(before), "step": {"size": 8}}


def test_a_checkpoint_with_former_names_loads(tmp_path: Path) -> None:
    path, _ = write_checkpoint(tmp_path, "model=2tower")
    content = torch.load(path, weights_only=True)
    config = content[SECTION]["config"]
    content[SECTION]["config"] = former(config)
    torch.save(content, tmp_path / "former.ckpt")
    loaded = load_matcher(tmp_path / "former.ckpt")
    # keys that came later are left out of the former config
    assert loaded.config == to_present(former(config)) and to_first(loaded.config) == to_first(config)
    assert loaded.fingerprint == content[SECTION]["fingerprint"]


def test_stored_configs_of_every_kind_get_the_present_names() -> None:
    config = compose("train", ["data=manifest", "data.source.products=p", "data.source.queries=q"])
    for is_built in (True, False):
        found = validate_config(former(config), "a.ckpt", is_built)
        assert found == to_present(former(config)) and to_first(found) == to_first(config)


def test_every_former_key_leads_to_a_key_that_is_there() -> None:
    configs = {name: compose(name, OVERRIDES.get(name, [])) for name in FORMER_TOP_KEYS}
    webdataset = compose("train", ["data=webdataset", "data.source.shards.train=t"])
    others = {"arms.*.share": configs["serve"], "data.source.catalogue": webdataset}
    places = [(others.get(place, configs["train"]), place, present) for place, present in FORMER_KEYS.items()]
    places += [(configs[name], place, new) for name, keys in FORMER_TOP_KEYS.items() for place, new in keys.items()]
    for config, place, present in places:
        *parents, former_key = place.split(".")
        for parent in parents:
            config = next(iter(config.values())) if parent == "*" else config[parent]
        assert present in config and former_key not in config, place
    options = [(group, option) for group, table in FORMER_OPTIONS.items() for option in table.values()]
    assert all((Path(conf_dir()) / group / f"{option}.yaml").is_file() for group, option in options)
    first = to_first(configs["train"])
    assert to_first(to_present(first)) == first != configs["train"]
    assert all(present not in table for table in FORMER_VALUES.values() for present in table.values())


OVERRIDES = {
    "train": [
        *("data=manifest", "data.source.products=p", "data.source.queries=q", "data/sampling=grouped"),
        "data.mixture={web: {folder: f, fraction: 0.5, id_namespace: separate}}",
    ],
    "prepare": ["encoder/text@tokenizer=tiny_text"],
    "export": ["checkpoint=c", "output=o"],
    "search": ["index=i"],
    "serve": ["index=i", "arms={b: {traffic_fraction: 1}}"],
}


@pytest.mark.parametrize(
    ("written", "present"),
    [
        ("data/order=stream,grouped", "data/sampling=shuffled,grouped"),
        ("data.samples_per_epoch=100", "data.rows_per_epoch=100"),
        ("data.order.rows_per_product=1,2", "data.sampling.samples_per_product=1,2"),
        ("data.sampling.rows_per_product=2", "data.sampling.samples_per_product=2"),
        ("data.shards.layout=choice(mixed,product)", "data.shards.layout=choice(shuffled,by_product)"),
        ("+data.mix.web={folder: x, share: 0.3}", "+data.mixture.web={folder: x, share: 0.3}"),
        ("~callbacks.pruning", "~callbacks.optuna_pruning"),
        ("report=last", "results_from=last"),
        ("+model.towers.product_text.frozen=true", "+model.towers.product_text.train=frozen"),
    ],
)
def test_overrides_are_renamed(written: str, present: str) -> None:
    assert present_overrides([written]) == present_overrides([present]) == [present]
    if not any(word in written for word in ("share", "sampling", "samples_per_epoch")):
        assert first_override(present) == written


def test_other_words_of_a_command_line_stay() -> None:
    words = ["-m", "--config-dir=x", "data.name=report", "hydra.run.dir=a=b", "+encoder/image@model.x.encoder=resnet50"]
    assert present_overrides(words) == words
    assert present_overrides(["check=only", "encoder/text@texts=minilm", "report=x"], "prepare") == [
        *("validate_only=true", "encoder/text@tokenizer=minilm", "report=x"),
    ]


def test_former_names_in_a_users_own_config_prevail_over_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "grouped.yaml").write_text(
        "# @package _global_\nreport: last\ndata: {num_lanes: 3, order: {same_category: 0.5}, on_bad: fail}\n"
    )
    own = [f"hydra.searchpath=[file://{tmp_path}]", "+mine=grouped"]
    config = compose("train", ["data/sampling=grouped", *own])
    assert config == compose(
        "train",
        [
            *("data/sampling=grouped", "data.sampling.same_category_fraction=0.5", "data.num_interleaved=3"),
            "results_from=last",
        ],
    )
    lines = capsys.readouterr().err.splitlines()
    assert "warning: report is now results_from; the former name is accepted until version 0.3" in lines
    assert len(lines) == len(set(lines)) == 6
