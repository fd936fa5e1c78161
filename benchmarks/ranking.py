"""Measure ranking and evaluation on random unit vectors, against plain FAISS and torchmetrics.

In: sizes from the command line. Out: a table of seconds and ratios (below 1: ours is faster), and the
largest difference between our measures and those of torchmetrics. Run by hand, `--help` shows the sizes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import faiss
import torch
from torch import Tensor
from torchmetrics import retrieval as reference

from mim_lightning.metrics import evaluate_direction, rank_gallery
from mim_lightning.types import NO_KEY


def main() -> None:
    sizes = read_sizes()
    faiss.omp_set_num_threads(sizes.threads)
    torch.set_num_threads(sizes.threads)
    torch.manual_seed(0)
    print(
        f"{sizes.queries:,} queries, {sizes.gallery:,} gallery rows, dimension {sizes.dim}, "
        f"depth {sizes.depth}, {sizes.threads} threads, best of {sizes.repeats}\n"
    )
    print(f"{'what':<52}{'ours (s)':>10}{'theirs (s)':>12}{'ratio':>8}")
    measure_ranking(sizes)
    measure_evaluation(sizes)


def read_sizes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--queries", type=int, default=2000, help="queries ranked")
    parser.add_argument("--gallery", type=int, default=50_000, help="gallery rows ranked")
    parser.add_argument("--dim", type=int, default=256, help="dimension of embeddings")
    parser.add_argument("--depth", type=int, default=1000, help="products a query is given")
    parser.add_argument("--images", type=int, default=3, help="images a product in the second row")
    parser.add_argument("--tied-queries", type=int, default=200, help="queries in the row of all-equal scores")
    parser.add_argument("--pairs", type=int, default=1_000_000, help="query-product pairs that torchmetrics is given")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the fastest counts")
    return parser.parse_args()


def measure_ranking(sizes: argparse.Namespace) -> None:
    query, gallery = unit_vectors(sizes.queries, sizes.dim), unit_vectors(sizes.gallery, sizes.dim)
    single = torch.randperm(sizes.gallery)
    cases = {
        "one image a product": (query, gallery, single),
        f"{sizes.images} images a product": (query, gallery, single // sizes.images),
        f"all scores equal, {sizes.tied_queries:,} queries": (
            query[:1].expand(sizes.tied_queries, -1).contiguous(),
            gallery[:1].expand_as(gallery).contiguous(),
            single,
        ),
    }
    for case, (left, right, keys) in cases.items():
        ours, _ = timed(lambda: rank_gallery(left, right, keys, sizes.depth), sizes.repeats)  # noqa: B023
        theirs, _ = timed(lambda: search_flat(left, right, sizes.depth), sizes.repeats)  # noqa: B023
        print_row(f"rank_gallery / IndexFlatIP, {case}", ours, theirs)


def search_flat(query: Tensor, gallery: Tensor, depth: int) -> Any:
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.numpy())
    return index.search(query.numpy(), min(depth, len(gallery)))


def measure_evaluation(sizes: argparse.Namespace) -> None:
    num_products = min(sizes.gallery, 5000)
    num_queries = max(1, sizes.pairs // num_products)
    query, gallery = unit_vectors(num_queries, sizes.dim), unit_vectors(num_products, sizes.dim)
    keys, relevant = torch.arange(num_products), torch.randint(num_products, (num_queries, 3))
    unknown = torch.full((max(num_queries, num_products),), NO_KEY)

    def ours() -> dict[str, float]:
        report = evaluate_direction(
            "photo",
            query,
            torch.arange(num_queries),
            relevant,
            unknown[:num_queries],
            gallery,
            keys,
            unknown[:num_products],
            depth=num_products,
        )
        return report.values

    seconds, values = timed(ours, sizes.repeats)
    reference_seconds, expected = timed(lambda: torchmetrics_values(query, gallery, relevant), 1)
    print_row(f"evaluate_direction / torchmetrics, {num_queries:,} x {num_products:,}", seconds, reference_seconds)
    worst = max(abs(values[name] - expected[name]) for name in expected)
    print(f"\nlargest difference from torchmetrics over {len(expected)} measures: {worst:.1e}")


def torchmetrics_values(query: Tensor, gallery: Tensor, relevant: Tensor) -> dict[str, float]:
    scores = (query @ gallery.T).exp()  # torchmetrics counts a score of 0 or less as not found
    target = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, relevant, True)
    metrics: dict[str, Any] = {"mrr": reference.RetrievalMRR(), "map": reference.RetrievalMAP()}
    for k in (1, 5, 10):
        metrics[f"hit@{k}"] = reference.RetrievalHitRate(top_k=k)
        metrics[f"recall@{k}"] = reference.RetrievalRecall(top_k=k)
        metrics[f"ndcg@{k}"] = reference.RetrievalNormalizedDCG(top_k=k)
    indexes = torch.arange(len(query))[:, None].expand_as(scores).flatten()
    return {
        name: float(metric(scores.flatten(), target.flatten(), indexes=indexes)) for name, metric in metrics.items()
    }


def unit_vectors(rows: int, dim: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim), dim=1)


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def print_row(what: str, ours: float, theirs: float) -> None:
    print(f"{what:<52}{ours:>10.2f}{theirs:>12.2f}{ours / theirs:>8.2f}")


if __name__ == "__main__":
    main()
