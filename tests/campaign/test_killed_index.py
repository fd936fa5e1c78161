"""Building an index and adding to one, killed anywhere: a reader finds the former or the new one, and again is done."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.campaign.kills import ENDED, kill_somewhere
from tests.campaign.outcomes import points, record_all
from tests.campaign.processes import EntryPoint
from tests.campaign.search import ADD, BUILD, Shop, content_of


@pytest.mark.parametrize("rng", points("index", 10, 0))
def test_building(rng: random.Random, search_shop: Shop, tmp_path: Path) -> None:
    kill_and_repeat(rng, BUILD, search_shop, tmp_path)


@pytest.mark.parametrize("rng", points("index add", 9, 0))
def test_adding(rng: random.Random, search_shop: Shop, tmp_path: Path) -> None:
    shutil.copytree(search_shop.index, tmp_path / "data" / "index")
    kill_and_repeat(rng, ADD, search_shop, tmp_path)


def kill_and_repeat(rng: random.Random, what: str, shop: Shop, folder: Path) -> None:
    index = folder / "data" / "index"
    words = shop.command(what, index)
    before, after = (content_of(shop.index), content_of(shop.grown)) if what == ADD else ({}, content_of(shop.index))
    start = partial(EntryPoint, "build_index", words, folder / "scratch", [index, index.parent])
    kills, problem = [], None
    try:
        for _ in range(rng.choice([1, 2])):
            kills.append(kill_somewhere(rng, start, shop.events[what], {"main": shop.cpu[what]}, index.parent))
            if (index / "card.json").exists() or what == ADD:
                assert content_of(index) in (before, after), "the index is neither the former nor the new one"
        if what == BUILD or content_of(index) != after:
            last = EntryPoint("build_index", words, folder / "scratch")
            assert last.wait() == 0, last.stderr[-2000:]
        assert content_of(index) == after, "other products or vectors"
        left = [path.name for path in index.parent.rglob(".*") if "lock" not in path.name]
        assert not left, f"left behind: {left}"
        wanted = {path.name for path in (shop.grown if what == ADD else shop.index).iterdir()}
        assert len(list(index.iterdir())) <= len(wanted) + 1, "files that no card names"
    except Exception as error:  # also of a torn file, and of a process that hangs
        problem = error
    record_all("kill", what, kills, "done again: the index of one go, never a torn one", problem)
    assert kills[0], ENDED
