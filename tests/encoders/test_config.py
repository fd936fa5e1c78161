"""The encoder groups of conf/: they compose, and their arguments exist."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(path for kind in ("image", "text", "image_text") for path in (CONF / "encoder" / kind).glob("*.yaml"))
PAIRS = sorted(path.stem for path in (CONF / "encoder").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_arguments_are_the_class_own(path: Path) -> None:
    arguments = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(arguments, dict)
    arguments.pop("training", None)
    module, _, name = str(arguments.pop("_target_")).rpartition(".")
    if module.endswith("open_clip_towers"):
        pytest.importorskip("open_clip", reason="needs the extra: pip install 'mim-lightning[clip]'")
    inspect.signature(getattr(import_module(module), name)).bind(**arguments)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_sets_both_and_one_can_be_changed(pair: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        both = compose(overrides=[f"+encoder={pair}"]).encoder
        one = compose(overrides=[f"+encoder={pair}", "encoder/image=resnet50"]).encoder
    assert {"image", "text"} <= set(both)
    assert one.image.name == "resnet50.a1_in1k"
    assert one.text == both.text
