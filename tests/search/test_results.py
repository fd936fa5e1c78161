"""What a search prints is read on any terminal: ids and scores are whole, titles are cut."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mim_lightning.search.index.card import CATALOG_VERSIONS, Recall, describe_index, parse_card
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.results import draw_results, print_card, print_result, save_image
from mim_lightning.search.searcher import SearchHit, SearchResult
from tests.display.test_text import HOSTILE


@pytest.mark.parametrize("product_id", ["syn-0008", "70042"])
@pytest.mark.parametrize("columns", ["80", "200"])
def test_scores_and_ids_are_whole(
    product_id: str, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    facts = {"title": "a red bag with zigzags and a long name", "category": "bag", "brand": "Kivara", "colour": "red"}
    hit = SearchHit(product_id, 0.4567, {"text": 0.5678, "not_text": -0.1111}, {**facts, "pattern": "zigzag"})
    print_result(SearchResult((hit,), 1.0, 1.0), 40)
    stdout = capsys.readouterr().out
    for whole in (product_id, "product", "0.457", "0.568", "-0.111", "score", "not_text"):
        assert whole in stdout, stdout


@pytest.mark.parametrize("columns", ["80", "200"])
@pytest.mark.parametrize("words", HOSTILE, ids=lambda words: ascii(words[:12]))
def test_hostile_text_is_escaped_and_truncated(
    columns: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    hits = [
        SearchHit("syn-0008", 0.4567, {"text": 0.5678}, {"title": words, "category": words, words[:30]: words}),
        SearchHit(words, 0.1234, {"text": 0.1}, {"title": "a plain one", "category": "bag", words[:30]: ["a", words]}),
    ]
    print_result(SearchResult(tuple(hits), 1.0, 1.0), 40)
    stdout = capsys.readouterr().out
    assert len(stdout) < 5_000 and "0.457" in stdout and "0.123" in stdout and "syn-0008" in stdout
    assert not {"\x1b", "\x9b", "\x07", "\u202e", "\u2066"} & set(stdout)
    if words.startswith("Mug"):
        assert "Mug [/red]" in stdout


def test_hostile_hits_are_drawn() -> None:
    hits = [SearchHit(words, 0.5, {"text": 0.5}, {"title": words}) for words in HOSTILE]
    query = SearchQuery(text="x" * 100_000, where={"category": "y" * 100_000})
    sheet = draw_results(query, b"no picture", hits, {HOSTILE[0]: b"\xff\xd8 damaged"})
    assert sheet.width < 2_000 and sheet.height < 2_000


def test_an_image_is_written_whole_in_the_format_of_its_suffix(tmp_path: Path) -> None:
    for name, kind in (("a.PNG", "PNG"), ("a.jpg", "JPEG")):
        save_image(Image.new("RGB", (4, 3)), tmp_path / name)
        assert Image.open(tmp_path / name).format == kind
    with pytest.raises(ValueError, match=r"output_image=.*hits.txt: no image format has this suffix"):
        save_image(Image.new("RGB", (4, 3)), tmp_path / "hits.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "a.jpg"]


def test_a_card_names_the_version_of_its_catalog(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    sizes, settings, recall = (3, 3), IndexSettings(), Recall(10, 1.0, 0, "")
    extra = {CATALOG_VERSIONS: {"/shop/catalogue": 2}}
    card = describe_index("faiss", "flat", "few", sizes, ModelFacts("f00d", "product", 8), settings, recall, extra)
    print_card("place", parse_card(card.to_json(), "place"))
    assert "version 2 of /shop/catalogue" in capsys.readouterr().out
    for hostile in ({"/shop/catalogue": "2"}, ["2"]):
        text = replace(card, extra={CATALOG_VERSIONS: hostile}).to_json()
        with pytest.raises(ValueError, match=r"extra\.catalog_versions is"):
            parse_card(text, "place")
