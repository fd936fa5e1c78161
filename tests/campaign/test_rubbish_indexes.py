"""Malformed indexes are refused in one line when they are opened for a search."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import open_searcher
from tests.campaign.malformed import Malformed, Verdict, every, judge, record
from tests.campaign.rubbish_indexes import CASES
from tests.migration.test_migration import FILES


@pytest.mark.parametrize("case", every(CASES, 14))
def test_malformed_indexes(case: Malformed, tmp_path: Path) -> None:
    record("index", case.wrong, read_index(tmp_path / "index", case))


def read_index(folder: Path, case: Malformed) -> Verdict:
    shutil.copytree(FILES / "index", folder)
    case.damage(folder)

    def search() -> Any:
        searcher = open_searcher(str(folder), str(FILES / "exported"))
        return [(hit.product_id, hit.metadata) for hit in searcher.search(SearchQuery(text="red", num_hits=3)).hits]

    return judge(search, folder, case.names, case.means)
