"""Directions over tables: which vectors, which truth, and what is left out."""

import pytest
import torch

from mim_lightning.metrics import NothingToRankError
from mim_lightning.metrics.directions import evaluate_countable, evaluate_directions
from mim_lightning.types import NO_KEY, REFERENCE, STORED_RELEVANCE, TARGET, Direction
from tests.analysis.tables import gallery_of, queries_of, unit

FUSIONS = {"query": {"query_image": 1.0, "query_text": 3.0}, "product": {"product_image": 1.0, "product_text": 1.0}}


@pytest.fixture
def tables():
    targets = torch.arange(12) % 5
    queries = queries_of(
        {"query_image": unit(12, 8, 0), "query_text": unit(12, 8, 1)}, targets=targets, references=(targets + 1) % 5
    )
    queries.vectors["query_text"][3] = 0
    queries.present["query_text"][3] = False
    gallery = gallery_of({"product_image": unit(5, 8, 2), "product_text": unit(5, 8, 3)}, torch.arange(5))
    return queries, gallery


def naive_hit(query, gallery, truth) -> float:
    best = [max(range(len(gallery)), key=lambda p, q=q: float(q @ gallery[p])) for q in query]
    return sum(int(b) == int(t) for b, t in zip(best, truth, strict=True)) / len(truth)


def test_each_direction_uses_its_sides_and_its_truth(tables) -> None:
    queries, gallery = tables
    directions = {
        "image_to_image": Direction("query_image", "product_image"),
        "image_to_target": Direction("query_image", "product_image", TARGET),
        "composed": Direction("query", "product"),
        "anything": Direction("query", "product", requires=()),
        "without_words": Direction("query_image", "product_image", excludes=("query_text",)),
        "text": Direction("query_text", "product_text"),
    }
    reports = evaluate_directions(directions, queries, gallery, FUSIONS, cutoffs=(1,), depth=5, num_hits=2)
    v, g = queries.vectors, gallery.vectors
    targets, references = queries.columns["asked_keys"][:, 0], queries.columns["shown_keys"][:, 0]
    has_text = torch.arange(12) != 3
    fused_query, fused_product = v["query_image"] + 3 * v["query_text"], g["product_image"] + g["product_text"]
    fused_product = torch.nn.functional.normalize(fused_product, dim=1)
    expected = {
        "image_to_image": naive_hit(v["query_image"], g["product_image"], references),
        "image_to_target": naive_hit(v["query_image"], g["product_image"], targets),
        "composed": naive_hit(fused_query[has_text], fused_product, targets[has_text]),
        "anything": naive_hit(torch.nn.functional.normalize(fused_query, dim=1), fused_product, targets),
        "without_words": naive_hit(v["query_image"][3:4], g["product_image"], references[3:4]),
        "text": naive_hit(v["query_text"][has_text], g["product_text"], targets[has_text]),
    }
    assert {name: report.values["hit@1"] for name, report in reports.items()} == pytest.approx(expected)
    counted = {name: (report.num_queries, report.counts.num_with_text) for name, report in reports.items()}
    assert counted == {
        "image_to_image": (12, 11),
        "image_to_target": (12, 11),
        "composed": (11, 11),
        "anything": (12, 11),
        "without_words": (1, 0),
        "text": (11, 11),
    }


@pytest.mark.parametrize("kind", ["fixed_sum", "standardized_sum"])
def test_vectors_are_cut_after_they_are_fused(tables, kind: str) -> None:
    queries, gallery = tables
    fusions = {name: {**fusion, "kind": kind} for name, fusion in FUSIONS.items()}
    directions = {"composed": Direction("query", "product"), "image": Direction("query_image", "product_image")}
    reports = evaluate_directions(directions, queries, gallery, fusions, cutoffs=(1,), depth=5, num_hits=1, width=3)

    def cut(vectors: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(vectors[:, :3], dim=1)

    v, g, has_text = queries.vectors, gallery.vectors, torch.arange(12) != 3
    targets = queries.columns["asked_keys"][:, 0]
    expected = naive_hit(cut(v["query_image"]), cut(g["product_image"]), queries.columns["shown_keys"][:, 0])
    assert reports["image"].values["hit@1"] == pytest.approx(expected)
    if kind == "fixed_sum":
        products = cut(torch.nn.functional.normalize(g["product_image"] + g["product_text"], dim=1))
        composed = cut(v["query_image"] + 3 * v["query_text"])[has_text]
        assert reports["composed"].values["hit@1"] == pytest.approx(naive_hit(composed, products, targets[has_text]))
    else:  # the towers are compared one by one, each cut
        tables = [
            type(table)(table.row_keys, {k: cut(x) for k, x in table.vectors.items()}, table.present, table.columns)
            for table in (queries, gallery)
        ]
        same = evaluate_directions(directions, *tables, fusions, cutoffs=(1,), depth=5, num_hits=1)
        assert reports["composed"].values == pytest.approx(same["composed"].values)


def test_a_side_without_embeddings_is_an_error(tables) -> None:
    queries, gallery = tables
    queries.present["query_text"][:] = False
    directions = {"text": Direction("query_text", "product_text"), "photo": Direction("query_image", "product_image")}
    with pytest.raises(NothingToRankError, match=r"directions\.text: no validation query has a query_text"):
        evaluate_directions(directions, queries, gallery, FUSIONS)
    reports, empty = evaluate_countable(directions, queries, gallery, FUSIONS)
    assert list(reports) == ["photo"] and list(empty) == ["text"]
    gallery.present["product_image"][:] = False
    with pytest.raises(ValueError, match=r"directions\.photo: no product has a product_image; choose a model without"):
        evaluate_countable(directions, queries, gallery, FUSIONS)


def naive_rows(direction: Direction, queries, gallery) -> tuple[list[int], int, int]:
    """Return the row numbers that a photo's direction counts, and how many answer themselves or repeat a photo."""
    columns = {name: column.tolist() for name, column in queries.columns.items()}
    catalog = list(zip(gallery.columns["picture_keys"].tolist(), gallery.columns["product_keys"].tolist(), strict=True))
    words = queries.present["query_text"].tolist()
    num_in_gallery, seen, rows = 0, {}, []
    for row in sorted(range(len(queries)), key=lambda row: (words[row], row)):
        picture = columns["picture_keys"][row]
        truth = columns[f"{STORED_RELEVANCE[direction.truth]}_keys"][row]
        if picture != NO_KEY and any(
            picture == other and (direction.truth == REFERENCE or product in truth) for other, product in catalog
        ):
            num_in_gallery += 1
        elif picture == NO_KEY or seen.setdefault((picture, frozenset(truth)), row) == row:
            rows.append(row)
    return sorted(rows), num_in_gallery, len(queries) - num_in_gallery - len(rows)


@pytest.mark.parametrize("relevance", [REFERENCE, TARGET])
@pytest.mark.parametrize("seed", range(4))
def test_a_query_image_counts_once_for_each_relevant_set_and_never_if_it_is_in_the_gallery(
    relevance: str, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    targets, references = (torch.randint(4, (40,), generator=draw) for _ in range(2))
    pictures = torch.randint(-1, 9, (40,), generator=draw)
    queries = queries_of({"query_image": unit(40, 8, 0), "query_text": unit(40, 8, 1)}, targets, references, pictures)
    queries.present["query_text"] &= torch.rand(40, generator=draw) < 0.5
    # two images of some products, one image of two products, and one that is not known
    gallery = gallery_of(
        {"product_image": unit(6, 8, 2)}, torch.tensor([0, 1, 2, 3, 3, 0]), torch.tensor([0, 1, 2, -1, 2, 3])
    )
    direction = Direction("query_image", "product_image", relevance)
    report = evaluate_directions({"photo": direction}, queries, gallery, FUSIONS, depth=10)["photo"]
    rows, num_in_gallery, num_repeated = naive_rows(direction, queries, gallery)
    assert report.hits.query_keys.tolist() == queries.columns["query_keys"][rows].tolist()
    counts = report.counts
    assert (counts.num_in_gallery, counts.num_repeated) == (num_in_gallery, num_repeated)
    assert counts.num_with_text == int(queries.present["query_text"][rows].sum()) and counts.num_other_kind == 0
    assert counts.num_with_text + counts.num_without_text == report.num_queries == len(rows)


def test_a_composed_query_may_show_an_image_of_the_gallery_unless_that_is_its_answer() -> None:
    """Photos are the catalog's own of 0, 1, 2; what is asked for is 1, 1, 2: the second and third show the answer."""
    vectors = {"query_image": unit(3, 8, 0), "query_text": unit(3, 8, 1)}
    pictures = torch.arange(3)
    queries = queries_of(vectors, torch.tensor([1, 1, 2]), pictures.clone(), pictures)
    gallery = gallery_of({"product_image": unit(3, 8, 2), "product_text": unit(3, 8, 3)}, torch.arange(3), pictures)
    reports = evaluate_directions({"composed": Direction("query", "product")}, queries, gallery, FUSIONS, depth=10)
    assert reports["composed"].hits.query_keys.tolist() == [100]
    assert reports["composed"].counts.num_in_gallery == 2 and reports["composed"].counts.num_repeated == 0
    references = {"references": Direction("query_image", "product_text")}
    with pytest.raises(NothingToRankError, match=r"directions\.references: the image of every query is in the"):
        evaluate_directions(references, queries, gallery, FUSIONS)


def test_the_reference_product_can_be_left_out_of_the_gallery(tables) -> None:
    queries, gallery = tables
    direction = Direction("query", "product", leave_out=REFERENCE)
    report = evaluate_directions({"other": direction}, queries, gallery, FUSIONS, cutoffs=(1,), depth=5, num_hits=5)[
        "other"
    ]
    references = dict(
        zip(queries.columns["query_keys"].tolist(), queries.columns["shown_keys"][:, 0].tolist(), strict=True)
    )
    for key, products in zip(report.hits.query_keys.tolist(), report.hits.product_keys.tolist(), strict=True):
        assert sorted(products) == [NO_KEY, *sorted({*range(5)} - {references[key]})]
    queries.columns["shown_keys"][:] = queries.columns["asked_keys"]
    with pytest.raises(NothingToRankError, match="none of 11 queries asks for another product than its image shows"):
        evaluate_directions({"other": direction}, queries, gallery, FUSIONS)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"requires": ["text"]}, "requires is a list of query_image, query_text, not"),
        ({"excludes": "query_text"}, "excludes is a list of query_image, query_text, not query_text"),
        ({"requires": ["query_text"], "excludes": ["query_text"]}, "both require and exclude query_text"),
        ({"leave_out": "target"}, "leave_out is 'reference' or null, not 'target'"),
    ],
)
def test_invalid_directions_are_refused(more: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Direction("query", "product", **more)
