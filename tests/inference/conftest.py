"""A small four-tower checkpoint and a few images, made once."""

import os
import shutil
from pathlib import Path

import pytest

from mim_lightning.model.matcher import Matcher
from tests.inference.models import export_to, write_checkpoint, write_pictures

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any vendor is imported: huggingface_hub reads it once


@pytest.fixture(scope="session")
def four_tower(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Matcher]:
    return write_checkpoint(tmp_path_factory.mktemp("four"), "model=4tower")


@pytest.fixture(scope="session")
def checkpoint(four_tower: tuple[Path, Matcher]) -> Path:
    return four_tower[0]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the checkpoint; change nothing in it, but in its `copy`."""
    return export_to(tmp_path_factory.mktemp("exported") / "model", checkpoint)


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))
