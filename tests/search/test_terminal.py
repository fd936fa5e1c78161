"""What a search prints is read on any terminal: ids and scores are whole, titles are cut."""

import pytest

from mim_lightning.search.searcher import SearchHit, SearchResult
from mim_lightning.search.terminal import print_result


@pytest.mark.parametrize("columns", ["80", "200"])
def test_scores_and_ids_are_whole(columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    facts = {"title": "a red bag with zigzags and a long name", "category": "bag", "brand": "Kivara", "colour": "red"}
    hit = SearchHit("syn-0008", 0.4567, {"text": 0.5678, "not_text": -0.1111}, {**facts, "pattern": "zigzag"})
    print_result(SearchResult((hit,), 1.0, 1.0), 40)
    told = capsys.readouterr().out
    for whole in ("syn-0008", "0.457", "0.568", "-0.111", "score", "not_text"):
        assert whole in told, told
