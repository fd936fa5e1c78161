"""The map: selected points, equal positions each time, and a marker for every point in its category's color."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from mim_lightning.analysis.embeddings import EvaluationEmbeddings
from mim_lightning.analysis.figures.embedding_map import MapPoints, draw_map, project_points, select_points
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.display.style import OTHER, TWELVE
from mim_lightning.metrics import EmbeddingTable
from mim_lightning.types import hash_id
from tests.analysis.evaluations import Row, config, write_evaluation
from tests.analysis.tables import gallery_of, queries_of, unit

CATEGORIES = ("bag", "mug", "shoe")  # a product's is its key modulo 3
FUSIONS = {"product": {"product_image": 1.0, "product_text": 3.0}, "query": {"query_image": 1.0, "query_text": 1.0}}


@pytest.fixture
def record(tmp_path: Path) -> EvaluationRecord:
    rows = [Row(f"q{n}", f"p{n}", 1, {"category": name}) for n, name in enumerate(CATEGORIES[:2])]
    return write_evaluation(tmp_path / "evaluation", rows, config())


def embeddings(num_queries: int = 30, num_products: int = 20) -> EvaluationEmbeddings:
    """Query 100 + q shows product q modulo the number of products; no query shows shoes."""
    shown = torch.arange(num_queries) % num_products
    queries = queries_of({"query_image": unit(num_queries, 8, 0)}, shown)
    gallery = gallery_of(
        {"product_image": unit(num_products, 8, 1), "product_text": unit(num_products, 8, 2)},
        torch.arange(num_products),
    )
    return EvaluationEmbeddings(with_names(queries), with_names(gallery), FUSIONS, "weights")


def with_names(table: EmbeddingTable) -> EmbeddingTable:
    keys = torch.tensor([hash_id(name) for name in CATEGORIES])
    return replace(table, columns={**table.columns, "category_keys": keys[table.columns["category_keys"]]})


def shuffled(table: EmbeddingTable) -> EmbeddingTable:
    return table.take(torch.randperm(len(table), generator=torch.Generator().manual_seed(5)))


def as_rows(points: MapPoints) -> list[tuple[list[float], str]]:
    return [(vector.tolist(), label) for vector, label in zip(points.vectors, points.labels, strict=True)]


def test_all_points_are_shown_where_they_fit(record: EvaluationRecord) -> None:
    made = embeddings()
    points = select_points(record, made, max_points=100)
    assert (points.is_query.sum(), (~points.is_query).sum()) == (30, 20)
    assert points.is_query[:30].all()
    expected = {tuple(v.tolist()) for v in made.queries.vectors["query_image"]}
    assert {tuple(v.tolist()) for v in points.vectors[:30]} == expected
    for query, product in points.lines:
        key = made.queries.vectors["query_image"].tolist().index(points.vectors[query].tolist())
        assert points.vectors[product].tolist() == made.gallery.vectors["product_image"][key % 20].tolist()
        assert points.labels[query] == points.labels[product]
    assert len(points.lines) == 30


@pytest.mark.parametrize(
    ("num_queries", "num_products", "expected"), [(30, 20, (8, 8)), (30, 3, (13, 3)), (4, 20, (4, 12))]
)
def test_a_sample_is_half_queries_and_half_products_where_there_are_enough(
    record: EvaluationRecord, num_queries: int, num_products: int, expected: tuple[int, int]
) -> None:
    points = select_points(record, embeddings(num_queries, num_products), max_points=16)
    assert (points.is_query.sum(), (~points.is_query).sum()) == expected
    assert (points.num_queries, points.num_products) == (num_queries, num_products)


def test_products_that_chosen_queries_show_come_first(record: EvaluationRecord) -> None:
    points = select_points(record, embeddings(num_queries=8, num_products=400), max_points=30)
    assert len(points.lines) == 8  # by chance there would be hardly one


def test_the_choice_depends_on_ids_and_seed_not_on_row_order(record: EvaluationRecord) -> None:
    made = embeddings()
    mixed = replace(made, queries=shuffled(made.queries), gallery=shuffled(made.gallery))
    chosen = select_points(record, made, max_points=16)
    assert as_rows(select_points(record, mixed, max_points=16)) == as_rows(chosen)
    assert as_rows(select_points(record, made, max_points=16, seed=1)) != as_rows(chosen)


def test_labels_are_categories_and_those_without_a_query_are_other(record: EvaluationRecord) -> None:
    made = embeddings()
    points = select_points(record, made, max_points=100)
    for vector, label in as_rows(points)[30:]:
        key = made.gallery.vectors["product_image"].tolist().index(vector)
        assert label == ("bag", "mug", "other")[key % 3]


def test_a_fusion_may_be_used_for_the_products(record: EvaluationRecord) -> None:
    made = embeddings()
    points = select_points(record, made, product_side="product", max_points=100)
    parts = made.gallery.vectors
    fused = normalize(parts["product_image"] + 3 * parts["product_text"], dim=-1).numpy()
    places = [np.abs(fused - vector).max(axis=1).argmin() for vector in points.vectors[30:]]
    np.testing.assert_allclose(points.vectors[30:], fused[places], atol=1e-6)
    assert sorted(places) == list(range(20))


def test_an_impossible_map_is_an_error(record: EvaluationRecord) -> None:
    with pytest.raises(ValueError, match=r"no tower or fusion 'query_text' on this side; there are query_image$"):
        select_points(record, embeddings(), query_side="query_text")
    with pytest.raises(ValueError, match=r"'shop' on this side; there are product_image, product_text, product$"):
        select_points(record, embeddings(), product_side="shop")
    with pytest.raises(ValueError, match="5 queries with query_image and 4 products with product_image are too few"):
        select_points(record, embeddings(5, 4))
    with pytest.raises(ValueError, match="all embeddings are equal"):
        project_points(np.ones((20, 4), dtype=np.float32))


def test_positions_are_reproducible_and_separate_clusters() -> None:
    generator = np.random.default_rng(0)
    centers = np.repeat(np.eye(8, dtype=np.float32)[:2], 15, axis=0)
    vectors = centers + 0.05 * generator.normal(size=centers.shape).astype(np.float32)
    places = project_points(vectors)
    np.testing.assert_array_equal(places, project_points(vectors))
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    assert places.shape == (30, 2)
    assert max(distances[:15, :15].max(), distances[15:, 15:].max()) < distances[:15, 15:].min()


def made_points(labels: Sequence[str], num_street: int, lines: Sequence[tuple[int, int]] = ()) -> MapPoints:
    num = len(labels)
    sides = ("query_image", "product_image")
    return MapPoints(np.zeros((num, 4)), np.arange(num) < num_street, list(labels), list(lines), 900, 7, sides)


def marks(points: MapPoints) -> tuple[list[PathCollection], np.ndarray]:
    places = np.random.default_rng(1).normal(size=(len(points.labels), 2))
    (axes,) = draw_map(points, places, "map").axes
    return [part for part in axes.collections if isinstance(part, PathCollection)], places


def test_queries_and_products_are_two_markers_in_their_categorys_color() -> None:
    points = made_points(["mug", "bag", "bag", "bag", "mug", "other", "bag"], num_street=4)
    (street, shop), places = marks(points)
    np.testing.assert_array_equal(street.get_offsets(), places[:4])
    np.testing.assert_array_equal(shop.get_offsets(), places[4:])
    assert street.get_paths()[0].vertices.shape != shop.get_paths()[0].vertices.shape
    bag, mug = TWELVE[:2]
    assert [to_hex(color).upper() for color in street.get_facecolors()] == [mug, bag, bag, bag]
    assert [to_hex(color) for color in shop.get_facecolors()] == [mug.lower(), OTHER, bag.lower()]


def test_only_the_twelve_most_frequent_categories_have_a_color() -> None:
    labels = [f"c{number:02d}" for number in range(14) for _ in range(14 - number)]
    points = made_points(labels, num_street=50)
    (axes,) = draw_map(points, np.zeros((len(labels), 2)), "map").axes
    shades = {}
    for part in (part for part in axes.collections if isinstance(part, PathCollection)):
        chosen = points.is_query if part.get_offsets().shape[0] == 50 else ~points.is_query
        names = [label for label, is_in in zip(labels, chosen, strict=True) if is_in]
        shades |= {name: to_hex(color) for name, color in zip(names, part.get_facecolors(), strict=True)}
    assert {name for name, color in shades.items() if color == OTHER} == {"c12", "c13"}
    assert len(set(shades.values())) == 13
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == [
        "query: query_image",
        "product: product_image",
        *(f"c{number:02d}" for number in range(12)),
        "other categories",
    ]


def test_the_caption_says_what_was_sampled_and_lines_are_drawn_where_they_are_few() -> None:
    few = draw_map(made_points(["bag"] * 12, 8, [(0, 9), (3, 11)]), np.eye(12, 2), "map")
    assert "8 of 900 queries and 4 of 7 products" in few.get_supxlabel()
    assert "line connects" in few.get_supxlabel()
    assert [line.get_xydata().tolist() for line in few.axes[0].get_lines()] == [
        [[1.0, 0.0], [0.0, 0.0]],
        [[0.0, 0.0], [0.0, 0.0]],
    ]
    many = draw_map(made_points(["bag"] * 12, 8, [(0, 9)] * 301), np.eye(12, 2), "map")
    assert "line connects" not in many.get_supxlabel() and not many.axes[0].get_lines()
