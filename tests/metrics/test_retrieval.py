"""The measures against plain Python over a full sort, written-down cases, and torchmetrics."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from torch import Tensor
from torchmetrics.functional import retrieval as reference

from mim_lightning.metrics import (
    Ranking,
    evaluate_direction,
    rank_direction,
    score_rankings,
)
from mim_lightning.types import NO_KEY, RetrievalReport, id_key
from tests.metrics.test_ranking import keys_of, naive_ranking, quantised

CUTOFFS = (1, 3, 10)


def naive_scores(ranked: list[int], relevant: set[int], category: int, categories: dict[int, int]) -> dict[str, float]:
    """Return the measures of one query from its ranked product keys, by the textbook."""
    positions = [rank for rank, key in enumerate(ranked, start=1) if key in relevant]
    scores = {}
    for k in CUTOFFS:
        in_k = [rank for rank in positions if rank <= k]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
        scores[f"hit@{k}"] = float(bool(in_k))
        scores[f"recall@{k}"] = len(in_k) / len(relevant)
        scores[f"ndcg@{k}"] = sum(1 / math.log2(rank + 1) for rank in in_k) / ideal
    scores["mrr"] = 1 / positions[0] if positions else 0.0
    scores["map"] = sum(n / rank for n, rank in enumerate(positions, start=1)) / len(relevant)
    if NO_KEY not in (category, categories[ranked[0]]):
        scores["wrong_category@1"] = float(ranked[0] not in relevant and category != categories[ranked[0]])
    return scores


def random_pass(seed: int, num_products: int) -> dict[str, Tensor]:
    """Make 40 queries over 70 gallery rows: ties, repeats, unknown products and categories."""
    generator = torch.Generator().manual_seed(seed)
    gallery_keys = keys_of(70, num_products, seed)
    pool = torch.cat([gallery_keys.unique(), torch.arange(10), torch.full((20,), NO_KEY)])
    relevant = pool[torch.randint(len(pool), (40, 4), generator=generator)]
    relevant[:, 3] = relevant[:, 0]
    relevant[5] = NO_KEY
    categories = {key: int(torch.randint(-1, 3, (), generator=generator)) for key in gallery_keys.tolist()}
    return {
        "query_vectors_QD": quantised(40, seed + 1),
        "query_keys_Q": torch.arange(40),
        "relevant_keys_QR": relevant,
        "query_category_keys_Q": torch.randint(-1, 3, (40,), generator=generator),
        "gallery_vectors_ND": quantised(70, seed + 2),
        "gallery_product_keys_N": gallery_keys,
        "gallery_category_keys_N": torch.tensor([categories[key] for key in gallery_keys.tolist()]),
    }


def naive_report(rows: dict[str, Tensor], depth: int) -> tuple[dict[str, float], int]:
    keys = rows["gallery_product_keys_N"]
    categories = dict(zip(keys.tolist(), rows["gallery_category_keys_N"].tolist(), strict=True))
    ranked = naive_ranking(rows["query_vectors_QD"], rows["gallery_vectors_ND"], keys, depth)
    scored = []
    for hits, wanted, category in zip(
        ranked, rows["relevant_keys_QR"].tolist(), rows["query_category_keys_Q"].tolist(), strict=True
    ):
        relevant = set(wanted) & set(keys.tolist())
        if relevant:
            scored.append(naive_scores([key for key, _ in hits], relevant, category, categories))
    names = {name for scores in scored for name in scores}
    return {n: fmean(s[n] for s in scored if n in s) for n in names}, len(scored)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_products", [70, 30, 6])
@pytest.mark.parametrize("depth", [10, 1000])
def test_agrees_with_plain_python(seed: int, num_products: int, depth: int) -> None:
    rows = random_pass(seed, num_products)
    report = evaluate_direction("photo", **rows, cutoffs=CUTOFFS, depth=depth)
    expected, num_queries = naive_report(rows, depth)
    assert report.values == pytest.approx(expected, abs=1e-12)
    assert (report.num_queries, report.num_unanswerable) == (num_queries, 40 - num_queries)
    assert report.num_unanswerable > 0 and report.num_products == num_products


def line_of_products(num_products: int) -> dict[str, Tensor]:
    """Make one query that ranks products 0, 1, 2 ... in this order."""
    return {
        "query_vectors_QD": torch.ones(1, 1),
        "query_keys_Q": torch.tensor([100]),
        "query_category_keys_Q": torch.tensor([NO_KEY]),
        "gallery_vectors_ND": -torch.arange(num_products)[:, None] / 8,
        "gallery_product_keys_N": torch.arange(num_products),
        "gallery_category_keys_N": torch.full((num_products,), NO_KEY),
    }


def test_written_down_answers() -> None:
    """Relevant at ranks 2 and 4, a third one that the gallery lacks, and one named twice."""
    relevant = torch.tensor([[3, 1, 77, 3]])
    report = evaluate_direction("photo", relevant_keys_QR=relevant, **line_of_products(6), cutoffs=(1, 3, 5))
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
    assert "wrong_category@1" not in report.values
    assert report.as_scalars("val")["val/photo/mrr"] == 0.5


def test_depth_bounds_mrr_and_map() -> None:
    relevant = torch.tensor([[0, 5]])
    report = evaluate_direction(
        "photo", relevant_keys_QR=relevant, **line_of_products(6), cutoffs=(2,), depth=3, num_hits=3
    )
    assert report.values["map"] == 0.5 and report.values["mrr"] == 1.0
    report = evaluate_direction(
        "photo", relevant_keys_QR=relevant[:, 1:], **line_of_products(6), cutoffs=(2,), depth=3, num_hits=3
    )
    assert report.values["map"] == 0.0 and report.values["mrr"] == 0.0


def test_hits_are_filled_up_when_the_gallery_is_short() -> None:
    report = evaluate_direction("photo", relevant_keys_QR=torch.tensor([[1]]), **line_of_products(2), num_hits=3)
    assert report.hits.query_keys.tolist() == [100]
    assert report.hits.product_keys.tolist() == [[0, 1, NO_KEY]]
    assert report.hits.scores.tolist() == [[0.0, -0.125, -math.inf]]
    assert report.hits.is_relevant.tolist() == [[False, True, False]]


@pytest.mark.parametrize(("relevant", "wrong"), [(2, 1.0), (1, 0.0)])
def test_a_category_known_by_one_image_counts_for_the_product_and_a_right_hit_is_never_wrong(
    relevant: int, wrong: float
) -> None:
    rows = line_of_products(3) | {"query_category_keys_Q": torch.tensor([4])}
    rows["gallery_product_keys_N"] = torch.tensor([1, 1, 2])
    rows["gallery_category_keys_N"] = torch.tensor([NO_KEY, 5, 4])
    report = evaluate_direction("photo", relevant_keys_QR=torch.tensor([[relevant]]), **rows)
    assert report.values["wrong_category@1"] == wrong


def test_a_model_that_embeds_everything_alike_scores_chance() -> None:
    num_products, num_queries = 500, 4000
    keys = torch.tensor([id_key(f"p{n}") for n in range(num_products)])
    wanted = torch.randint(num_products, (num_queries,), generator=torch.Generator().manual_seed(0))
    report = evaluate_direction(
        "photo",
        torch.ones(num_queries, 8),
        torch.arange(num_queries),
        keys[wanted][:, None],
        torch.full((num_queries,), NO_KEY),
        torch.ones(num_products, 8),
        keys,
        torch.full((num_products,), NO_KEY),
        depth=20,
    )
    assert report.values["hit@1"] == pytest.approx(1 / 500, abs=0.003)
    assert report.values["hit@10"] == pytest.approx(10 / 500, abs=0.01)


def test_order_of_rows_does_not_matter() -> None:
    rows = random_pass(3, 30)
    shuffle = {"Q": torch.randperm(40), "N": torch.randperm(70)}
    mixed = {name: part[shuffle["Q" if "_Q" in name else "N"]] for name, part in rows.items()}
    first, second = (evaluate_direction("photo", **part) for part in (rows, mixed))
    assert first.values == pytest.approx(second.values, abs=1e-12)
    order = second.hits.query_keys.argsort()
    assert torch.equal(first.hits.product_keys, second.hits.product_keys[order])


def score_of(is_relevant: Tensor, num_relevant: Tensor) -> dict[str, Tensor]:
    unused = torch.zeros_like(is_relevant, dtype=torch.int64)
    unknown = torch.full((len(is_relevant),), torch.nan)
    ranking = Ranking(unused[:, 0], unused, unused, is_relevant, num_relevant, unknown, 0, 0)
    return score_rankings(ranking, CUTOFFS)


def test_agrees_with_torchmetrics_query_by_query() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(20, 30, generator=generator) < 0.15
    target[:, 7] = True
    preds = torch.arange(30, 0, -1).float()
    scores = score_of(target, target.sum(dim=1))
    for row, wanted in enumerate(target):
        expected = {
            "mrr": reference.retrieval_reciprocal_rank(preds, wanted),
            "map": reference.retrieval_average_precision(preds, wanted),
        }
        for k in CUTOFFS:
            expected[f"hit@{k}"] = reference.retrieval_hit_rate(preds, wanted, top_k=k)
            expected[f"recall@{k}"] = reference.retrieval_recall(preds, wanted, top_k=k)
            expected[f"ndcg@{k}"] = reference.retrieval_normalized_dcg(preds, wanted, top_k=k)
        actual = {name: float(part[row]) for name, part in scores.items()}
        assert actual == pytest.approx({n: float(v) for n, v in expected.items()}, abs=1e-6)


def test_scores_of_queries_average_to_the_report() -> None:
    rows = random_pass(1, 30)
    scores = score_rankings(rank_direction("photo", **rows))
    report: RetrievalReport = evaluate_direction("photo", **rows)
    assert {part.shape for part in scores.values()} == {(report.num_queries,)}
    assert {name: float(part.nanmean()) for name, part in scores.items()} == report.values


def test_refuses_a_direction_without_answers() -> None:
    with pytest.raises(ValueError, match="photo: none of 1 queries"):
        evaluate_direction("photo", relevant_keys_QR=torch.tensor([[77, NO_KEY]]), **line_of_products(3))
    with pytest.raises(ValueError, match="photo: none of 1 queries"):
        evaluate_direction("photo", relevant_keys_QR=torch.empty(1, 0).long(), **line_of_products(3))


@pytest.mark.parametrize("setting", [{"cutoffs": ()}, {"cutoffs": (0,)}, {"depth": 9}, {"num_hits": 0}])
def test_refuses_cutoffs_beyond_depth(setting: dict) -> None:
    with pytest.raises(ValueError, match="photo: cutoffs"):
        evaluate_direction("photo", relevant_keys_QR=torch.tensor([[1]]), **line_of_products(3), **setting)
