"""Malformed prepared data are found by their verification, and reading them ends in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.data.preparation.prepared import open_prepared
from tests.campaign.malformed import ANYTHING, Malformed, Verdict, every, judge, record
from tests.campaign.rubbish_shards import CASES
from tests.migration.test_migration import FILES


@pytest.mark.parametrize("case", every(CASES, 12))
def test_malformed_prepared_data(case: Malformed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record("prepared data", case.wrong, *verdicts(tmp_path / "prepared", case))
    assert not (tmp_path / "ran").exists()  # code in a file


def verdicts(folder: Path, case: Malformed) -> tuple[Verdict, Verdict]:
    """Return the verdict of a verification, and that of reading everything."""
    shutil.copytree(FILES / "prepared/manifest", folder)
    case.damage(folder)

    def verify() -> Any:
        return open_prepared(folder).verify(print)

    verified = judge(verify, folder, str(folder) if not case.names else case.names, case.means)
    return verified, judge(lambda: read_all(folder), folder, str(folder), ANYTHING)


def read_all(folder: Path) -> list[Any]:
    """Read every sample, as a pass of an evaluation does."""
    prepared = open_prepared(folder)
    prepared.describe()
    sets = [prepared.catalog(), *map(prepared.queries, prepared.splits())]
    return [(sample.query_id, sample.product_id) for shards in sets for sample in shards.read(range(len(shards.keys)))]
