"""Malformed values of config keys stop a run in one line that names the key, before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import mim_lightning.lit.evaluation
import mim_lightning.lit.module
import mim_lightning.lit.trainer
import mim_lightning.training  # noqa: F401 - before the clock of an input runs: importing takes seconds
from mim_lightning.config import compose
from mim_lightning.train import train
from tests.campaign.malformed import judge, record
from tests.campaign.outcomes import cases
from tests.campaign.rubbish_configs import OVERRIDES
from tests.shop import small, write_shop

NAMED = [(f"{key}={value}", (key, value, name)) for key, value, name in OVERRIDES]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stocked")
    write_shop(folder / "shop", num_products=7)
    return folder


@pytest.mark.parametrize("case", cases(NAMED, [name for name, _ in NAMED[9::20]]))
def test_malformed_values(case: tuple[str, str, str | None], stocked: Path, tmp_path: Path) -> None:
    key, value, name = case
    shutil.copytree(stocked, tmp_path, dirs_exist_ok=True)

    def start() -> None:
        train(compose("train", small(tmp_path, f"{key}={value}")))

    names = key.rsplit(".", 1)[-1] if name is None else name
    record("config", f"{key}={value}", judge(start, tmp_path, names, may_write=("prepared", ".prepared")))
