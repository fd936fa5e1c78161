"""The measures against plain Python over a full sort, written-down cases, and torchmetrics."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from torch import Tensor
from torchmetrics.functional import retrieval as reference

from mim_lightning.metrics import Gallery, Queries, Ranking, evaluate_direction, rank_direction, score_rankings
from mim_lightning.types import NO_KEY, hash_id
from tests.metrics.test_ranking import keys_of, naive_ranking, quantized

CUTOFFS = (1, 3, 10)
Truth = dict[int, int]  # relevant product -> grade


def naive_scores(ranked: list[int], truth: Truth, category: int, categories: dict[int, int]) -> dict[str, float]:
    """Return the measures of one query from its ranked product keys, by the textbook; nan where undefined."""
    positions = [rank for rank, key in enumerate(ranked, start=1) if key in truth]
    ideal = sorted(truth.values(), reverse=True)
    scores = {}
    for k in CUTOFFS:
        in_k = [rank for rank in positions if rank <= k]
        gain = sum(truth[ranked[rank - 1]] / math.log2(rank + 1) for rank in in_k)
        scores[f"hit@{k}"] = float(bool(in_k))
        scores[f"recall@{k}"] = len(in_k) / len(truth)
        scores[f"ndcg@{k}"] = gain / sum(g / math.log2(rank + 1) for rank, g in enumerate(ideal[:k], start=1))
        known = [key for key in ranked[:k] if NO_KEY not in (category, categories[key])]
        same = [key for key in known if categories[key] == category]
        wrong = [key for key in known if categories[key] != category and key not in truth]
        scores[f"same_category@{k}"] = len(same) / len(known) if known else math.nan
        scores[f"wrong_category@{k}"] = len(wrong) / len(known) if known else math.nan
    scores["mrr"] = 1 / positions[0] if positions else 0.0
    scores["map"] = sum(n / rank for n, rank in enumerate(positions, start=1)) / len(truth)
    return scores


def random_pass(seed: int, num_products: int) -> tuple[Queries, Gallery]:
    """Make 40 graded queries over 70 gallery rows: ties, repeats, unknown products and categories."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    gallery_keys = keys_of(70, num_products, seed)
    pool = torch.cat([gallery_keys.unique(), torch.arange(10), torch.full((20,), NO_KEY)])
    relevant = pool[draw(0, len(pool), 40, 4)]
    relevant[:, 3] = relevant[:, 0]
    relevant[5] = NO_KEY
    categories = {key: int(draw(-1, 3)) for key in gallery_keys.tolist()}
    queries = Queries(quantized(40, seed + 1), draw(0, 10**6, 40), relevant, draw(-1, 3, 40), draw(0, 4, 40, 4))
    return queries, Gallery(
        quantized(70, seed + 2), gallery_keys, torch.tensor([categories[key] for key in gallery_keys.tolist()])
    )


def truths_of(queries: Queries, gallery: Gallery) -> list[Truth]:
    grades = queries.grades if queries.grades is not None else torch.ones_like(queries.relevant_keys)
    present = set(gallery.product_keys.tolist())
    truths = []
    for keys, row in zip(queries.relevant_keys.tolist(), grades.tolist(), strict=True):
        best: Truth = {}
        for key, grade in zip(keys, row, strict=True):
            if key in present and grade > 0:
                best[key] = max(grade, best.get(key, 0))
        truths.append(best)
    return truths


def naive_report(queries: Queries, gallery: Gallery, depth: int) -> dict[int, dict[str, float]]:
    """Return the measures of each answerable query by its key, with its rank and unit."""
    categories = dict(zip(gallery.product_keys.tolist(), gallery.category_keys.tolist(), strict=True))
    ranked = naive_ranking(queries.vectors, gallery.vectors, gallery.product_keys, depth)
    rows = zip(queries.keys.tolist(), ranked, truths_of(queries, gallery), queries.category_keys.tolist(), strict=True)
    report = {}
    for query, hits, truth, category in rows:
        if truth:
            keys = [key for key, _ in hits]
            rank = next((place for place, key in enumerate(keys, start=1) if key in truth), 0)
            scores = naive_scores(keys, truth, category, categories)
            report[query] = scores | {"rank": rank, "unit": min(truth)}
    return report


@pytest.mark.parametrize("is_graded", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_products", [70, 30, 6])
@pytest.mark.parametrize("depth", [10, 1000])
def test_agrees_with_plain_python(seed: int, num_products: int, depth: int, is_graded: bool) -> None:
    queries, gallery = random_pass(seed, num_products)
    queries = queries if is_graded else replace(queries, grades=None)
    report = evaluate_direction("photo", queries, gallery, CUTOFFS, depth)
    expected = naive_report(queries, gallery, depth)
    assert report.hits.query_keys.tolist() == sorted(expected)
    assert (report.num_queries, report.num_unanswerable) == (len(expected), 40 - len(expected))
    assert report.num_unanswerable > 0 and report.num_products == num_products
    rows = [expected[key] for key in sorted(expected)]
    assert report.ranks.tolist() == [row["rank"] for row in rows]
    assert report.cluster_keys.tolist() == [row["unit"] for row in rows]
    assert {*report.scores, "rank", "unit"} == set(rows[0])
    for name, scores in report.scores.items():
        assert scores.dtype == torch.float64
        assert scores.tolist() == pytest.approx([row[name] for row in rows], abs=1e-12, nan_ok=True), name
        known = [row[name] for row in rows if not math.isnan(row[name])]
        assert report.values[name] == pytest.approx(fmean(known), abs=1e-12), name


@pytest.mark.parametrize("depth", [10, 1000])
@pytest.mark.parametrize("memory_bytes", [1, 2**29])
def test_left_out_products_count_as_if_they_were_not_in_the_gallery(depth: int, memory_bytes: int) -> None:
    queries, gallery = random_pass(2, 30)
    left_out = queries.relevant_keys[:, :2].roll(3, dims=0)  # of some queries an answer, or the only one
    left_out[7:12] = queries.relevant_keys[7:12, :2]
    asked = replace(queries, left_out_keys=left_out)
    report = evaluate_direction("photo", asked, gallery, CUTOFFS, depth, memory_bytes=memory_bytes)
    expected: dict[int, dict[str, float]] = {}
    for row in range(len(queries)):
        is_left = ~torch.isin(gallery.product_keys, left_out[row])
        own = Gallery(gallery.vectors[is_left], gallery.product_keys[is_left], gallery.category_keys[is_left])
        expected |= naive_report(queries.take(slice(row, row + 1)), own, depth)
    assert report.hits.query_keys.tolist() == sorted(expected)
    assert 0 < report.num_queries < evaluate_direction("photo", queries, gallery).num_queries
    rows = [expected[key] for key in sorted(expected)]
    assert report.ranks.tolist() == [row["rank"] for row in rows]
    for name, scores in report.scores.items():
        assert scores.tolist() == pytest.approx([row[name] for row in rows], abs=1e-12, nan_ok=True), name


def line_of_products(
    num_products: int, relevant: list[int], grades: list[int] | None = None
) -> tuple[Queries, Gallery]:
    """Make one query that ranks products 0, 1, 2 ... in this order; no category is known."""
    graded = None if grades is None else torch.tensor([grades])
    wanted, unknown = torch.tensor([relevant], dtype=torch.int64), torch.full((num_products,), NO_KEY)
    vectors = -torch.arange(num_products)[:, None] / 8
    return (
        Queries(torch.ones(1, 1), torch.tensor([100]), wanted, unknown[:1], graded),
        Gallery(vectors, torch.arange(num_products), unknown),
    )


def test_written_down_answers() -> None:
    """Relevant at ranks 2 and 4, a third one that the gallery lacks, and one named twice."""
    report = evaluate_direction("photo", *line_of_products(6, [3, 1, 77, 3]), cutoffs=(1, 3, 5))
    assert report.values == pytest.approx(
        {
            "hit@1": 0.0,
            "hit@3": 1.0,
            "hit@5": 1.0,
            "recall@1": 0.0,
            "recall@3": 0.5,
            "recall@5": 1.0,
            "mrr": 0.5,
            "map": (1 / 2 + 2 / 4) / 2,
            "ndcg@1": 0.0,
            "ndcg@3": 0.6309297535714574 / 1.6309297535714573,
            "ndcg@5": (0.6309297535714574 + 0.43067655807339306) / 1.6309297535714573,
        }
    )
    assert report.ranks.tolist() == [2] and report.cluster_keys.tolist() == [1]
    assert report.intervals == {} and report.as_scalars("val")["val/photo/mrr"] == 0.5


def test_written_down_grades() -> None:
    """Grade 2 at rank 2, grade 3 at rank 3; grade 1 named again as 3, one of grade 0, one the gallery lacks."""
    report = evaluate_direction("photo", *line_of_products(6, [1, 2, 2, 0, 77], [2, 1, 3, 0, 9]), cutoffs=(1, 2, 5))
    ideal = {1: 3.0, 2: 3 + 2 * 0.6309297535714574, 5: 3 + 2 * 0.6309297535714574}
    gains = {1: 0.0, 2: 2 * 0.6309297535714574, 5: 2 * 0.6309297535714574 + 3 * 0.5}
    for k in (1, 2, 5):
        assert report.values[f"ndcg@{k}"] == pytest.approx(gains[k] / ideal[k])
    assert report.values["recall@2"] == 0.5 and report.values["mrr"] == 0.5


def test_depth_bounds_mrr_map_and_ranks() -> None:
    for relevant, mean_precision, reciprocal, rank in (([0, 5], 0.5, 1.0, 1), ([5], 0.0, 0.0, 0)):
        report = evaluate_direction("photo", *line_of_products(6, relevant), cutoffs=(2,), depth=3, num_hits=3)
        assert (report.values["map"], report.values["mrr"]) == (mean_precision, reciprocal)
        assert report.ranks.tolist() == [rank]


def test_hits_are_filled_up_when_the_gallery_is_short() -> None:
    report = evaluate_direction("photo", *line_of_products(2, [1]), num_hits=3)
    assert report.hits.query_keys.tolist() == [100]
    assert report.hits.product_keys.tolist() == [[0, 1, NO_KEY]]
    assert report.hits.scores.tolist() == [[0.0, -0.125, -math.inf]]
    assert report.hits.is_relevant.tolist() == [[False, True, False]]


@pytest.mark.parametrize(("relevant", "wrong"), [(2, 1.0), (1, 0.0)])
def test_a_category_known_by_one_image_counts_for_the_product_and_a_right_hit_is_never_wrong(
    relevant: int, wrong: float
) -> None:
    queries, gallery = line_of_products(3, [relevant])
    gallery = replace(gallery, product_keys=torch.tensor([1, 1, 2]), category_keys=torch.tensor([NO_KEY, 5, 4]))
    report = evaluate_direction("photo", replace(queries, category_keys=torch.tensor([4])), gallery)
    assert report.values["wrong_category@1"] == wrong and report.values["same_category@1"] == 0
    assert report.values["wrong_category@5"] == wrong / 2 and report.values["same_category@5"] == 1 / 2


def test_hits_of_unknown_category_count_in_no_fraction() -> None:
    """Categories of the ranked products: unknown, the query's, unknown, another; the fourth alone is relevant."""
    queries, gallery = line_of_products(5, [4])
    gallery = replace(gallery, category_keys=torch.tensor([NO_KEY, 7, NO_KEY, 8, 7]))
    queries = replace(queries, category_keys=torch.tensor([7]))
    report = evaluate_direction("photo", queries, gallery, cutoffs=(1, 3, 4, 5))
    assert report.values["same_category@3"] == 1 and report.values["wrong_category@3"] == 0
    assert report.values["same_category@4"] == report.values["wrong_category@4"] == 1 / 2
    assert report.values["same_category@5"] == 2 / 3 and report.values["wrong_category@5"] == 1 / 3
    assert not {"same_category@1", "wrong_category@1"} & (set(report.values) | set(report.scores))


def test_a_model_that_embeds_everything_alike_scores_chance() -> None:
    num_products, num_queries = 500, 4000
    keys = torch.tensor([hash_id(f"p{n}") for n in range(num_products)])
    wanted = torch.randint(num_products, (num_queries,), generator=torch.Generator().manual_seed(0))
    unknown = torch.full((num_queries,), NO_KEY)
    queries = Queries(torch.ones(num_queries, 8), torch.arange(num_queries), keys[wanted][:, None], unknown)
    gallery = Gallery(torch.ones(num_products, 8), keys, unknown[:num_products])
    report = evaluate_direction("photo", queries, gallery, depth=20)
    assert report.values["hit@1"] == pytest.approx(1 / 500, abs=0.003)
    assert report.values["hit@10"] == pytest.approx(10 / 500, abs=0.01)


def test_order_of_rows_does_not_matter() -> None:
    queries, gallery = random_pass(3, 30)
    order = torch.randperm(70)
    mixed = Gallery(gallery.vectors[order], gallery.product_keys[order], gallery.category_keys[order])
    first = evaluate_direction("photo", queries, gallery)
    second = evaluate_direction("photo", queries.take(torch.randperm(40)), mixed)
    assert first.values == second.values
    assert torch.equal(first.ranks, second.ranks) and torch.equal(first.cluster_keys, second.cluster_keys)
    assert torch.equal(first.hits.query_keys, second.hits.query_keys)
    assert torch.equal(first.hits.product_keys, second.hits.product_keys)


@pytest.mark.parametrize("memory_bytes", [1, 30_000])
def test_memory_bound_changes_nothing(memory_bytes: int) -> None:
    queries, gallery = random_pass(3, 30)
    expected = evaluate_direction("photo", queries, gallery)
    report = evaluate_direction("photo", queries, gallery, memory_bytes=memory_bytes)
    assert report.values == expected.values and torch.equal(report.ranks, expected.ranks)
    assert torch.equal(report.hits.product_keys, expected.hits.product_keys)


def test_intervals_are_cluster_bootstraps_of_the_scores() -> None:
    queries, gallery = random_pass(1, 30)
    report = evaluate_direction("photo", queries, gallery, num_resamples=500)
    assert set(report.intervals) == set(report.values)
    for name, (low, high) in report.intervals.items():
        assert low <= report.values[name] <= high, name
    assert report.intervals["mrr"][0] < report.intervals["mrr"][1]
    alone = evaluate_direction("photo", *line_of_products(6, [1]), num_resamples=500)
    assert all(math.isnan(end) for end in alone.intervals["mrr"])


def score_of(grades: Tensor, relevant_grades: Tensor) -> dict[str, Tensor]:
    unused = torch.zeros_like(grades)
    unknown = torch.full((len(grades),), NO_KEY)
    no_category = torch.full_like(grades, NO_KEY)
    ranking = Ranking(unused[:, 0], unknown, unused, unused, grades, relevant_grades, unused[:, 0], no_category)
    return score_rankings(ranking, CUTOFFS)


def test_agrees_with_torchmetrics_query_by_query() -> None:
    generator = torch.Generator().manual_seed(0)
    grades = torch.randint(1, 4, (20, 30), generator=generator)
    grades *= torch.rand(20, 30, generator=generator) < 0.15
    grades[:, 7] = 1
    preds = torch.arange(30, 0, -1).float()
    scores = score_of(grades, grades)
    for row, wanted in enumerate(grades):
        expected = {
            "mrr": reference.retrieval_reciprocal_rank(preds, wanted > 0),
            "map": reference.retrieval_average_precision(preds, wanted > 0),
        }
        for k in CUTOFFS:
            expected[f"hit@{k}"] = reference.retrieval_hit_rate(preds, wanted > 0, top_k=k)
            expected[f"recall@{k}"] = reference.retrieval_recall(preds, wanted > 0, top_k=k)
            expected[f"ndcg@{k}"] = reference.retrieval_normalized_dcg(preds, wanted, top_k=k)
        actual = {name: float(part[row]) for name, part in scores.items() if "category" not in name}
        assert actual == pytest.approx({n: float(v) for n, v in expected.items()}, abs=1e-6)


def test_scores_of_queries_are_those_of_the_report() -> None:
    queries, gallery = random_pass(1, 30)
    scores = score_rankings(rank_direction("photo", queries, gallery))
    report = evaluate_direction("photo", queries, gallery)
    assert list(scores) == list(report.scores)
    assert all(torch.equal(part.nan_to_num(-1), report.scores[n].nan_to_num(-1)) for n, part in scores.items())


def test_refuses_a_direction_without_answers() -> None:
    for relevant, grades in (([77, NO_KEY], None), ([], None), ([1], [0])):
        with pytest.raises(ValueError, match="photo: none of 1 queries"):
            evaluate_direction("photo", *line_of_products(3, relevant, grades))


@pytest.mark.parametrize("setting", [{"cutoffs": ()}, {"cutoffs": (0,)}, {"depth": 9}, {"num_hits": 0}])
def test_refuses_cutoffs_beyond_depth(setting: dict) -> None:
    with pytest.raises(ValueError, match="photo: cutoffs"):
        evaluate_direction("photo", *line_of_products(3, [1]), **setting)


def test_refuses_sides_whose_parts_do_not_fit() -> None:
    queries, gallery = line_of_products(3, [1])
    with pytest.raises(ValueError, match="gallery: every part needs as many rows"):
        replace(gallery, category_keys=torch.tensor([1]))
    with pytest.raises(ValueError, match="queries: every part needs as many rows"):
        replace(queries, keys=torch.arange(2))
    with pytest.raises(ValueError, match="grades"):
        replace(queries, grades=torch.ones(1, 2))
