"""The figure of hits: disputed queries first, frames by relevance, nothing overlaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from mim_lightning.analysis.figures.hits_grid import CELL, FRAME, GAP, Layout, draw_hits, select_queries_to_plot
from mim_lightning.analysis.record import DirectionRecord, EvaluationRecord
from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.preparation import prepare_shards
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings
from mim_lightning.display.pil_text import cut, font, wrap
from mim_lightning.display.style import RIGHT, WRONG
from tests.analysis.evaluations import Row, config, plain_rows, write_evaluation
from tests.shop import write_shop

DIRECTIONS = {
    "image_to_image": {"query": "query_image", "gallery": "product_image"},
    "text_to_product": {"query": "query_text", "gallery": "product"},
    "composed_to_product": {"query": "query", "gallery": "product"},
}
FUSIONS = {"query": {"query_image": 1.0, "query_text": 1.0}}


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    products, queries = write_shop(tmp_path / "shop")
    return prepare_shards(ManifestSource(str(products), str(queries)), tmp_path / "prepared", ShardSettings())


def answers(folder: Path, ranks: Sequence[int]) -> DirectionRecord:
    return write_evaluation(folder, plain_rows(ranks), config()).directions["image_to_image"]


def evaluate(
    data: PreparedData, folder: Path, hits: Mapping[int, Sequence[int]], ranks: Sequence[int]
) -> EvaluationRecord:
    """Write an evaluation in which query q, whose answer is product q, finds the products `hits[q]`."""
    facts = [data.queries("val").read_facts(number) for number in range(len(data.queries("val")))]
    rows = [
        Row(fact["query_id"], f"{q:03d}", rank, hit_ids=[f"{product:03d}" for product in hits[q]])
        for q, (fact, rank) in enumerate(zip(facts, ranks, strict=False))
    ]
    made = config(directions=DIRECTIONS, model__fusions=FUSIONS)
    for direction in DIRECTIONS:
        record = write_evaluation(folder, rows, made, direction, data_folder=str(data.folder))
    return record


def draw(
    data: PreparedData, records: Mapping[str, EvaluationRecord], direction: str = "image_to_image", **more: int
) -> Image.Image:
    return draw_hits(records, direction, data.queries("val"), [data.catalog()], **more)


def frames(picture: Image.Image, corner: tuple[int, int]) -> set[tuple[int, ...]]:
    """Return the colors along the upper and the left edge of a cell's frame."""
    pixels = np.asarray(picture)[corner[1] : corner[1] + CELL, corner[0] : corner[0] + CELL]
    edges = np.concatenate([pixels[:FRAME].reshape(-1, 3), pixels[:, :FRAME].reshape(-1, 3)])
    return {tuple(color) for color in edges.tolist()}


def test_one_model_is_shown_as_often_right_as_it_is(tmp_path: Path) -> None:
    record = answers(tmp_path, [1, 1, 1, 7] * 25)
    chosen = select_queries_to_plot([record], 8)
    ranks = dict(zip(record.query_ids, record.ranks.tolist(), strict=True))
    assert [ranks[query_id] for query_id in chosen.query_ids] == [1] * 6 + [7] * 2
    assert len(set(chosen.query_ids)) == 8
    assert (chosen.hit_rates, chosen.num_shared) == ([0.75], 100)
    # three and three quarters of five
    assert [ranks[query_id] for query_id in select_queries_to_plot([record], 5).query_ids] == [1] * 4 + [7]


def test_disputed_queries_come_first_as_often_each_way_as_it_happens(tmp_path: Path) -> None:
    ranks = {"both": (1, 1), "first": (1, 3), "second": (0, 1), "none": (2, 2)}
    kinds = ["both"] * 60 + ["first"] * 5 + ["second"] * 15 + ["none"] * 20
    models = [answers(tmp_path / str(side), [ranks[kind][side] for kind in kinds]) for side in (0, 1)]
    kind_of = {f"q{place:03d}": kind for place, kind in enumerate(kinds)}
    chosen = select_queries_to_plot(models, 8)
    assert [kind_of[query_id] for query_id in chosen.query_ids] == ["first"] * 2 + ["second"] * 6
    assert chosen.num_disputed == 20
    assert chosen.hit_rates == [0.65, 0.75]
    more = [kind_of[query_id] for query_id in select_queries_to_plot(models, 24).query_ids]
    assert {kind: more.count(kind) for kind in ranks} == {"both": 3, "first": 5, "second": 15, "none": 1}
    assert len(select_queries_to_plot(models, 500).query_ids) == 100


def test_the_choice_depends_on_ids_and_seed_alone(tmp_path: Path) -> None:
    rows = plain_rows([1, 4] * 50)
    one = write_evaluation(tmp_path / "a", rows, config()).directions["image_to_image"]
    other = write_evaluation(tmp_path / "b", rows[::-1], config()).directions["image_to_image"]
    assert select_queries_to_plot([one], 6).query_ids == select_queries_to_plot([other], 6).query_ids
    assert select_queries_to_plot([one], 6).query_ids != select_queries_to_plot([one], 6, seed=1).query_ids


def test_only_queries_that_all_models_have_are_shown(tmp_path: Path) -> None:
    one = answers(tmp_path / "a", [1, 1, 2])
    other = answers(tmp_path / "b", [1, 3])
    chosen = select_queries_to_plot([one, other], 9)
    assert chosen.query_ids == ["q001", "q000"]
    assert chosen.hit_rates == [1.0, 0.5]
    unrelated = write_evaluation(tmp_path / "c", plain_rows([1], "x"), config()).directions["image_to_image"]
    with pytest.raises(ValueError, match="no query in common"):
        select_queries_to_plot([one, unrelated], 9)
    changed = write_evaluation(tmp_path / "d", [Row("q001", "p7", 1)], config()).directions["image_to_image"]
    with pytest.raises(ValueError, match="query q001 has other relevant products"):
        select_queries_to_plot([one, changed], 9)


def test_right_hits_are_framed_blue_and_wrong_ones_red(data: PreparedData, tmp_path: Path) -> None:
    hits = {
        "first": {0: [0, 1, 2], 1: [2, 1, 0], 2: [3, 4, 5]},
        "second": {0: [1, 0, 2], 1: [1, 2, 3], 2: [2, 4, 5]},
    }
    ranks = {"first": [1, 2, 0], "second": [2, 1, 1]}
    records = {name: evaluate(data, tmp_path / name, hits[name], ranks[name]) for name in hits}
    picture = draw(data, records)
    chosen = select_queries_to_plot([record.directions["image_to_image"] for record in records.values()], 8).query_ids
    assert len(chosen) == 3
    layout = Layout(num_models=2, num_hits=4, num_queries=3, label_lines=1)
    assert picture.size == layout.size
    blue, red = ImageColor.getrgb(RIGHT), ImageColor.getrgb(WRONG)
    places = {record.query_id: q for q, record in enumerate(data.queries("val").read(range(3)))}
    for row, query_id in enumerate(chosen):
        q = places[query_id]
        for model, name in enumerate(hits):
            for place, product in enumerate(hits[name][q]):
                expected = blue if product == q else red
                assert frames(picture, layout.hit_corner(row, model, place)) == {expected}
            assert not {blue, red} & frames(picture, layout.hit_corner(row, model, 3))  # three hits, no fourth
        assert not {blue, red} & frames(picture, layout.truth_corner(row))


def test_each_cell_shows_its_own_image(data: PreparedData, tmp_path: Path) -> None:
    record = evaluate(data, tmp_path / "run", {q: [(q + 1) % 6, q] for q in range(6)}, [2] * 6)
    picture = np.asarray(draw(data, {"2tower": record}, num_queries=6, num_hits=2), dtype=int)
    layout = Layout(num_models=1, num_hits=2, num_queries=6, label_lines=1)
    chosen = select_queries_to_plot([record.directions["image_to_image"]], 6).query_ids

    def middle(corner: tuple[int, int]) -> np.ndarray:
        half = CELL // 2
        return picture[corner[1] + half - 5 : corner[1] + half + 5, corner[0] + half - 5 : corner[0] + half + 5].mean(
            (0, 1)
        )

    places = {sample.query_id: q for q, sample in enumerate(data.queries("val").read(range(6)))}
    truths = {places[query_id]: middle(layout.truth_corner(row)) for row, query_id in enumerate(chosen)}
    assert np.abs(truths[0] - ImageColor.getrgb("#d03030")).max() < 25  # the first product is red
    for row, query_id in enumerate(chosen):
        q = places[query_id]
        np.testing.assert_allclose(middle(layout.hit_corner(row, 0, 0)), truths[(q + 1) % 6], atol=2)
        np.testing.assert_allclose(middle(layout.hit_corner(row, 0, 1)), truths[q], atol=2)


def test_the_query_is_shown_as_far_as_the_model_sees_it(data: PreparedData, tmp_path: Path) -> None:
    record = evaluate(data, tmp_path / "run", {0: [0]}, [1])
    layout = Layout(num_models=1, num_hits=5, num_queries=1, label_lines=1)
    left, top = layout.query_corner(0)
    seen = {}
    for direction in DIRECTIONS:
        pixels = np.asarray(draw(data, {"4tower": record}, direction))
        photo, words = (
            pixels[top : top + CELL, left : left + CELL],
            pixels[top + CELL : top + CELL + 50, left : left + CELL],
        )
        seen[direction] = ((photo == 255).all(2).mean() < 0.5, bool((words < 100).any()))
    assert seen == {
        "image_to_image": (True, False),
        "text_to_product": (False, False),  # the text is drawn instead of the image
        "composed_to_product": (True, True),
    }


@pytest.mark.parametrize("num_models", [1, 2, 3, 4, 5])
def test_nothing_overlaps(num_models: int) -> None:
    layout = Layout(num_models, num_hits=3, num_queries=4, label_lines=2)
    corners = [
        corner(row)
        for row in range(4)
        for corner in (
            layout.query_corner,
            layout.truth_corner,
            *(
                lambda row, model=model, place=place: layout.hit_corner(row, model, place)
                for model in range(num_models)
                for place in range(3)
            ),
        )
    ]
    assert len(set(corners)) == 4 * (2 + 3 * num_models)
    for number, (left, top) in enumerate(corners):
        assert left >= 0 and left + CELL < layout.size[0] and layout.header_base < top and top + CELL < layout.size[1]
        for other_left, other_top in corners[:number]:
            assert abs(left - other_left) >= CELL + GAP or abs(top - other_top) >= CELL + 60


def test_long_labels_and_titles_stay_in_their_column(data: PreparedData, tmp_path: Path) -> None:
    label = "4tower " + "model.pairs.query_image_product_text.weight=0.5 " * 3
    record = evaluate(data, tmp_path / "run", {0: [0]}, [1])
    picture = np.asarray(draw(data, {label: record, "2tower": record, "3tower": record}))
    layout = Layout(num_models=3, num_hits=3, num_queries=1, label_lines=2)
    assert picture.shape[1::-1] == layout.size
    heads = slice(layout.header_base - 80, layout.header_base + 5)
    for model in range(3):
        end = layout.block_left(model) + layout.block_width
        assert (picture[heads, end : end + 20] == 255).all()


def test_labels_wrap_at_words_and_are_truncated() -> None:
    face = font(16)
    text = "Brask small green checked high-top shoe with a zip"
    lines = wrap(text, face, 120, 3)
    assert len(lines) == 3 and all(face.getlength(line) <= 120 for line in lines)
    assert lines[-1].endswith("...") and text.startswith(" ".join(lines).removesuffix("...").rstrip())
    assert wrap(text, face, 2000, 3) == [text]
    assert wrap("", face, 100, 2) == []
    assert wrap("short words", face, face.getlength("short words") - 1, 2) == ["short", "words"]
    (line,) = wrap("Donaudampfschifffahrtsgesellschaft", face, 60, 1)
    assert line.endswith("...") and face.getlength(line) <= 60
    assert cut("fits", face, 60) == "fits"


def test_letters_of_other_languages_are_drawn() -> None:
    pytest.importorskip("matplotlib")  # brings a font that has them
    face = font(20)
    unknown = face.getmask("\uffff").getbbox(), bytes(face.getmask("\uffff"))
    for letter in "äéßøЖΩ…“":
        assert (face.getmask(letter).getbbox(), bytes(face.getmask(letter))) != unknown


def test_mistakes_are_reported(data: PreparedData, tmp_path: Path) -> None:
    record = evaluate(data, tmp_path / "run", {0: [0]}, [1])
    with pytest.raises(ValueError, match="6 models: a figure of hits shows 1 to 5"):
        draw(data, {str(number): record for number in range(6)})
    with pytest.raises(ValueError, match="--direction nowhere: 2tower has no such direction; it has image_to_im"):
        draw(data, {"2tower": record}, "nowhere")
