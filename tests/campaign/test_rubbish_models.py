"""Malformed checkpoints and exports are refused in one line; no code in them runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mim_lightning import load
from mim_lightning.model.checkpoint import load_matcher
from tests.campaign.malformed import Malformed, Verdict, every, judge, record
from tests.campaign.rubbish_models import CHECKPOINTS, EXPORTS
from tests.migration.test_migration import FILES


@pytest.mark.parametrize("case", every(CHECKPOINTS, 12))
def test_malformed_checkpoints(case: Malformed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record("checkpoint", case.wrong, read_checkpoint(tmp_path / "run", case))
    assert not (tmp_path / "ran").exists()  # code in a file


@pytest.mark.parametrize("case", every(EXPORTS, 12))
def test_malformed_exports(case: Malformed, tmp_path: Path) -> None:
    record("export", case.wrong, read_export(tmp_path / "exported", case))


def read_checkpoint(folder: Path, case: Malformed) -> Verdict:
    folder.mkdir()
    shutil.copy(FILES / "interrupted/checkpoints/last.ckpt", folder)
    case.damage(folder)
    return judge(lambda: load_matcher(folder / "last.ckpt").fingerprint, folder, case.names, case.means)


def read_export(folder: Path, case: Malformed) -> Verdict:
    shutil.copytree(FILES / "exported", folder)
    case.damage(folder)

    def read() -> Any:
        model = load(folder)
        return model.fingerprint, model.embed_texts(["red"]).shape

    return judge(read, folder, case.names, case.means)
