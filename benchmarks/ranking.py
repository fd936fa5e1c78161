"""Measure ranking against plain FAISS, and evaluation against torchmetrics, on random unit vectors.

The sizes are arguments; the defaults need 4 GiB and twenty minutes on two cores, `--help` shows how to reduce them.
Prints seconds (medians of alternating runs), how many times faster ours is, by wall time and by CPU time (more reliable
on a busy machine), the growth of memory, and the largest difference between our metrics and those of torchmetrics.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import faiss
import torch
from machine import Peak, memory_bytes
from torch import Tensor
from torchmetrics import retrieval as reference

from mim_lightning.metrics import Gallery, Queries, evaluate_direction, rank_gallery
from mim_lightning.types import NO_KEY

CUTOFFS = (1, 5, 10)
MEMORY_BYTES = 2**29
MIB = 2**20


class Time(NamedTuple):
    """Wall and CPU seconds."""

    clock: float
    cpu: float  # of all threads


def main() -> None:
    sizes = read_sizes()
    faiss.omp_set_num_threads(sizes.threads)
    torch.set_num_threads(sizes.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, faiss {faiss.__version__}, {sizes.threads} threads, dimension {sizes.dim}")
    if "ranking" in sizes.parts:
        compare_ranking(sizes)
    if "hard" in sizes.parts:
        compare_hard_cases(sizes)
    if "evaluation" in sizes.parts:
        compare_evaluation(sizes)


def read_sizes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    everything = ["ranking", "hard", "evaluation"]
    parser.add_argument("--parts", nargs="+", choices=everything, default=everything, help="what to measure")
    parser.add_argument("--queries", type=int, default=10_000, help="queries ranked and evaluated")
    parser.add_argument("--gallery", type=int, default=1_000_000, help="gallery rows ranked")
    parser.add_argument("--dim", type=int, default=256, help="dimension of embeddings")
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 100, 1000], help="products a query is given")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side, taking turns, of a ranking")
    parser.add_argument("--hard-queries", type=int, default=2000, help="queries of the hard cases")
    parser.add_argument("--hard-gallery", type=int, default=50_000, help="gallery rows of the hard cases")
    parser.add_argument("--images", type=int, default=3, help="images a product in a hard case")
    parser.add_argument("--tied-queries", type=int, default=200, help="queries in the hard case of equal scores")
    parser.add_argument("--products", type=int, default=100_000, help="gallery rows evaluated")
    parser.add_argument("--reference-queries", type=int, default=20, help="queries that torchmetrics evaluates")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    return parser.parse_args()


def compare_ranking(sizes: argparse.Namespace) -> None:
    query, gallery = unit_vectors(sizes.queries, sizes.dim), unit_vectors(sizes.gallery, sizes.dim)
    keys = torch.randperm(sizes.gallery)
    print_head("rank_gallery / IndexFlatIP.search", f"{sizes.queries:,} x {sizes.gallery:,}")
    for depth in sizes.depths:
        peak = compare(f"one image a product, k = {depth}", query, gallery, keys, depth, sizes.repeats)
        answer = 12 * sizes.queries * depth
        print(f"  its memory grew by {peak / MIB:,.0f} MiB, of which the answer is {answer / MIB:,.0f}", flush=True)


def compare_hard_cases(sizes: argparse.Namespace) -> None:
    num_queries, num_rows, depth = sizes.hard_queries, sizes.hard_gallery, max(sizes.depths)
    query, gallery = unit_vectors(num_queries, sizes.dim), unit_vectors(num_rows, sizes.dim)
    keys, equal = torch.randperm(num_rows), gallery[:1].expand_as(gallery).contiguous()
    print_head("rank_gallery / IndexFlatIP.search", f"{num_queries:,} x {num_rows:,}, k = {depth}")
    compare(f"{sizes.images} images a product", query, gallery, keys // sizes.images, depth, 3)
    compare(f"all scores equal, {sizes.tied_queries} queries", query[: sizes.tied_queries], equal, keys, depth, 3)


def compare(what: str, query: Tensor, gallery: Tensor, keys: Tensor, depth: int, repeats: int) -> int:
    """Print the medians of runs that take turns; return by how many bytes our first run grew the process."""
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.numpy())
    ours, theirs, peaks = [], [], []
    for _ in range(repeats):
        took, peak = watch_memory(lambda: rank_gallery(query, gallery, keys, depth, MEMORY_BYTES))
        ours.append(took)
        peaks.append(peak)
        theirs.append(timed(lambda: index.search(query.numpy(), min(depth, len(gallery)))))
    print_row(what, median_time(ours), median_time(theirs))
    return peaks[0]


def compare_evaluation(sizes: argparse.Namespace) -> None:
    vectors = unit_vectors(sizes.products, sizes.dim)
    unknown = torch.full((max(sizes.products, sizes.queries),), NO_KEY)
    gallery = Gallery(vectors, torch.arange(sizes.products), unknown[: sizes.products])
    relevant = torch.randint(sizes.products, (sizes.queries, 3))
    near = torch.nn.functional.normalize(vectors[relevant[:, 0]] + 4 * unit_vectors(sizes.queries, sizes.dim), dim=1)
    queries = Queries(near, torch.arange(sizes.queries), relevant, unknown[: sizes.queries])
    few = queries.take(slice(sizes.reference_queries))
    ours = [timed(lambda: evaluate_direction("photo", queries, gallery, CUTOFFS)) for _ in range(3)]
    expected = torchmetrics_values(few.vectors[:1], vectors, few.relevant_keys[:1])  # a first run is slow
    theirs = timed(lambda: expected.update(torchmetrics_values(few.vectors, vectors, few.relevant_keys)))
    print_head("evaluate_direction / torchmetrics", f"{sizes.queries:,} x {sizes.products:,}")
    scaled = Time(*(part / len(few) * sizes.queries for part in theirs))
    print_row(f"theirs scaled up from {len(few)} queries", median_time(ours), scaled)
    print(f"  theirs took {theirs.clock:.2f} s for {len(few)} queries; all pairs at once do not fit into memory")
    values = evaluate_direction("photo", few, gallery, CUTOFFS, depth=sizes.products).values
    worst = max(abs(values[name] - expected[name]) for name in expected)
    print(f"  largest difference over {len(expected)} measures of these queries: {worst:.1e}; mrr {values['mrr']:.3f}")


def torchmetrics_values(query: Tensor, gallery: Tensor, relevant: Tensor) -> dict[str, float]:
    scores = (query @ gallery.T).exp()  # torchmetrics counts a score of 0 or less as not found
    target = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, relevant, True)
    metrics: dict[str, Any] = {"mrr": reference.RetrievalMRR(), "map": reference.RetrievalMAP()}
    for k in CUTOFFS:
        metrics[f"hit@{k}"] = reference.RetrievalHitRate(top_k=k)
        metrics[f"recall@{k}"] = reference.RetrievalRecall(top_k=k)
        metrics[f"ndcg@{k}"] = reference.RetrievalNormalizedDCG(top_k=k)
    indexes = torch.arange(len(query))[:, None].expand_as(scores).flatten()
    return {
        name: float(metric(scores.flatten(), target.flatten(), indexes=indexes)) for name, metric in metrics.items()
    }


def unit_vectors(rows: int, dim: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim), dim=1)


def timed(function: Callable[[], Any]) -> Time:
    clock, cpu = time.perf_counter(), time.process_time()
    function()
    return Time(time.perf_counter() - clock, time.process_time() - cpu)


def median_time(times: Sequence[Time]) -> Time:
    return Time(*(median(part) for part in zip(*times, strict=True)))


def watch_memory(function: Callable[[], Any]) -> tuple[Time, int]:
    """Return also by how many bytes the process grew at most while the function ran; from Linux's /proc."""
    before = memory_bytes()
    with Peak(memory_bytes, 0.02) as peak:
        took = timed(function)
    return took, max(0, peak.value - before)


def print_head(what: str, size: str) -> None:
    print(f"\n{what + ', ' + size:<64}{'ours (s)':>10}{'theirs (s)':>12}{'speed-up':>10}{'by CPU':>8}")


def print_row(what: str, ours: Time, theirs: Time) -> None:
    faster = theirs.clock / ours.clock, theirs.cpu / ours.cpu
    print(f"{what:<64}{ours.clock:>10.2f}{theirs.clock:>12.2f}{faster[0]:>10.2f}{faster[1]:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
