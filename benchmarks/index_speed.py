"""Measure our product index against plain FAISS: queries a second, filters, building, opening, memory.

The sizes are arguments; the defaults take up to an hour and 8 GiB on two cores, `--rows 50000` takes minutes. Prints
progress, and writes <output>/results.json with every figure, from which `experiments/index_speed/tables.py` makes
tables. The vectors resemble embeddings: clusters of a thousand rows, as wide as their centers are apart;
the standard deviation falls with the fourth root of the direction's number, directions are turned at random, lengths
are 1. Independent random vectors would have no near neighbors. Queries are rows moved by half their length.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any
from unittest.mock import patch

import faiss
import numpy as np
import pyarrow as pa
from machine import cpu, run_measurement
from record import write_record

from mim_lightning.search.index import faiss_types, segment
from mim_lightning.search.index.factory import create_index
from mim_lightning.search.index.faiss_index import FaissIndex
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.index.index_type import num_candidates
from mim_lightning.search.index.recall import make_queries

ROWS_A_CLUSTER = 1000
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001)
BATCHES = (1, 32, 256)
K = 10
TURN = 256  # queries between two changes of turn
CATEGORIES = 20
LEAST_BY_INDEX = 0.01  # of fewer rows an index takes seconds to find enough
OPEN_AND_SEARCH = """
import json, sys, time
import numpy as np
from mim_lightning.search.index import faiss_index
from mim_lightning.search.index.factory import open_index

def resident():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Rss"))
    return {name: int(value.split()[0]) * 1024 for name, value in lines.items()}

queries, states, started = np.load(sys.argv[2]), [resident()], time.perf_counter()
index = open_index(sys.argv[1])
index.search(queries[:1], 10)
seconds = time.perf_counter() - started
states.append(resident())
for query in queries:
    index.search(query[None], 10)
states.append(resident())
print(json.dumps({"open_seconds": seconds, "resident": states}))
"""


def main() -> None:
    sizes = read_sizes()
    faiss.omp_set_num_threads(sizes.threads)
    sizes.folder.mkdir(parents=True, exist_ok=True)
    vectors = make_vectors(sizes)
    results: dict[str, Any] = {"facts": describe(sizes), "kinds": {}}
    for kind in sizes.kinds:
        index, steps = build(kind, vectors, sizes)
        # comparing every row takes as long for every query: an eighth of them are enough
        num_queries = sizes.queries // 8 if kind == "flat" else sizes.queries
        queries, _ = make_queries(vectors, IndexSettings(recall_queries=num_queries, seed=1))
        results["kinds"][kind] = {
            **describe_index(index),
            "steps": steps,
            "speed": [compare_speed(index, queries, batch, sizes.repeats) for batch in BATCHES],
            "filters": [measure_filter(index, queries[: sizes.filter_queries], share) for share in SHARES],
            **measure_opening(sizes.folder / kind, queries),
        }
        sizes.output.mkdir(parents=True, exist_ok=True)
        write_record(sizes.output / "results.json", results)


def read_sizes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows, each of a product of its own")
    parser.add_argument("--dim", type=int, default=256, help="dimension of embeddings")
    parser.add_argument("--kinds", nargs="+", default=["hnsw", "sq8", "ivf_pq", "flat"], help="kinds of index")
    parser.add_argument("--min-recall", type=float, default=0.98, help="recall@10 that search is widened for")
    parser.add_argument("--queries", type=int, default=2000, help="queries timed")
    parser.add_argument("--filter-queries", type=int, default=100, help="queries timed with each filter")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side, taking turns")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/index_speed"), help="where vectors and indexes go")
    parser.add_argument("--output", type=Path, default=Path("experiments/index_speed"), help="where results.json goes")
    return parser.parse_args()


def describe(sizes: argparse.Namespace) -> dict[str, Any]:
    return {
        "rows": sizes.rows,
        "dimension": sizes.dim,
        "threads": sizes.threads,
        "queries": sizes.queries,
        "cpu": f"{cpu()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "faiss": faiss.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def make_vectors(sizes: argparse.Namespace) -> np.ndarray:
    """Write vectors (N, D) part by part, and return them memory-mapped."""
    path = sizes.folder / f"vectors-{sizes.rows}-{sizes.dim}.npy"
    if not path.is_file():
        partial = path.with_suffix(".partial")
        whole = np.lib.format.open_memmap(partial, "w+", np.float32, (sizes.rows, sizes.dim))
        start = 0
        for part in vector_parts(sizes.rows, sizes.dim):
            whole[start : start + len(part)] = part
            start += len(part)
        whole.flush()
        partial.rename(path)
    return np.load(path, mmap_mode="r")


def vector_parts(rows: int, dim: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    spread = np.arange(1, dim + 1, dtype=np.float32) ** -0.25
    turn = np.linalg.qr(generator.standard_normal((dim, dim)))[0].astype(np.float32)
    centers = spread * generator.standard_normal((max(1, rows // ROWS_A_CLUSTER), dim), dtype=np.float32)
    for start in range(0, rows, 2**16):
        count = min(2**16, rows - start)
        part = centers[generator.integers(len(centers), size=count)]
        part = (part + spread * generator.standard_normal((count, dim), dtype=np.float32)) @ turn
        yield part / np.linalg.norm(part, axis=1, keepdims=True)


def build(kind: str, vectors: np.ndarray, sizes: argparse.Namespace) -> tuple[FaissIndex, dict[str, float]]:
    """Return a built index, and the CPU seconds of all threads that training and filling took."""
    ids = [f"product-{number:09d}" for number in range(len(vectors))]
    settings = IndexSettings(kind=kind, min_recall=sizes.min_recall, num_threads=sizes.threads)
    facts = ModelFacts("0" * 16, "product", sizes.dim)
    steps: dict[str, float] = {"fill_index": 0.0, "extend_index": 0.0}  # the first trains, then calls the second

    def noting(module: ModuleType, name: str) -> Any:
        step = getattr(module, name)

        def note(*args: Any) -> Any:
            started = time.process_time()
            try:
                return step(*args)
            finally:
                steps[name] += time.process_time() - started

        return patch.object(module, name, note)

    with noting(segment, "fill_index"), noting(faiss_types, "extend_index"):
        index = create_index(vectors, ids, columns_of(ids), settings, facts, sizes.folder / kind)
    assert isinstance(index, FaissIndex)
    filling = steps["extend_index"]
    return index, {"train_cpu_seconds": steps["fill_index"] - filling, "fill_cpu_seconds": filling}


def columns_of(ids: list[str]) -> pa.Table:
    generator = np.random.default_rng(2)
    columns = {
        "product_id": ids,
        "title": [f"thing number {number}" for number in range(len(ids))],
        "category": [f"category {number}" for number in generator.integers(CATEGORIES, size=len(ids))],
        "price": generator.uniform(0, 1, len(ids)),
    }
    return pa.table(columns)


def describe_index(index: FaissIndex) -> dict[str, Any]:
    card = index.card
    told = {"why": card.why, "recall": card.recall.value, "build_seconds": card.build_seconds}
    files = {part: stored.num_bytes for part, stored in card.files.items()}
    print(f"{card.kind}: recall@10 {card.recall.value:.4f}, built in {card.build_seconds:,.0f} s, {files}", flush=True)
    return {**told, "settings": dict(card.settings), "files": files}


def compare_speed(index: FaissIndex, queries: np.ndarray, batch: int, repeats: int) -> dict[str, Any]:
    """Time searches through our interface and by FAISS alone, taking turns every few hundred queries; medians of runs.

    Where codes are coarse, FAISS is asked for the candidates that we put in order besides; else for the k rows. The
    two are given other queries at a time, whose rows the other has not just fetched into the caches.
    """
    main = index._segments[0]
    asked = num_candidates(main.kind, main.settings, K)
    searches = {"faiss": lambda part: main.index.search(part, asked), "ours": lambda part: index.search(part, K)}
    asks = {"faiss": queries, "ours": np.roll(queries, len(queries) // 2, axis=0)}
    runs: dict[str, list[np.ndarray]] = {side: [] for side in searches}
    for _ in range(repeats):
        spent = {side: np.zeros(2) for side in searches}
        for turn in range(0, len(queries), TURN):
            for side in sorted(searches, reverse=bool(turn // TURN % 2)):
                spent[side] += timed(search_batches, searches[side], asks[side][turn : turn + TURN], batch)
        for side, seconds in spent.items():
            runs[side].append(seconds / len(queries))
    medians = {side: dict(zip(("clock", "cpu"), np.median(runs[side], axis=0).tolist(), strict=True)) for side in runs}
    clock, cpu = (medians["faiss"][by] / medians["ours"][by] for by in ("clock", "cpu"))
    told = f"{1 / medians['ours']['clock']:,.0f} queries/s, {clock:.2f} of FAISS's by the clock, {cpu:.2f} by CPU time"
    print(f"  {batch} at a time: {told}", flush=True)
    return {"batch": batch, **medians}


def search_batches(search: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> None:
    for start in range(0, len(queries), batch):
        search(queries[start : start + batch])


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """Return seconds by the clock and of all threads."""
    clock, cpu = time.perf_counter(), time.process_time()
    function(*args)
    return time.perf_counter() - clock, time.process_time() - cpu


def measure_filter(index: FaissIndex, queries: np.ndarray, share: float) -> dict[str, Any]:
    """Time a filter that leaves a fraction of the rows: by our choice, by comparing allowed rows, and by the index."""
    where = {"price": {"max": share}}
    first, _ = timed(index.search, queries[:1], K, where)
    ways = {"ours": segment._EXACT_GAIN, "one by one": np.inf, "index": 0.0}
    if share < LEAST_BY_INDEX:
        del ways["index"]
    seconds, found = {}, {}
    for way, gain in ways.items():
        with patch.object(segment, "_EXACT_GAIN", gain):
            seconds[way], found[way] = search_one_by_one(index, queries, where)
    recall = None
    if "index" in found:
        rows = zip(found["index"], found["one by one"], strict=True)
        recall = float(np.mean([np.isin(row, truth).mean() for row, truth in rows]))
    told = ", ".join(f"{way} {1e3 * value:.2f} ms" for way, value in seconds.items())
    print(f"  {share:.1%} allowed: {told}; first time {1e3 * first:.1f} ms", flush=True)
    return {"share": share, "seconds": seconds, "first_seconds": first, "index_recall": recall}


def search_one_by_one(index: FaissIndex, queries: np.ndarray, where: dict[str, Any]) -> tuple[float, list[np.ndarray]]:
    """Return the median seconds of a query, and the hits of each."""
    seconds, found = [], []
    for query in queries:
        clock = time.perf_counter()
        found.append(index.search(query[None], K, where).product_ids[0])
        seconds.append(time.perf_counter() - clock)
    return median(seconds), found


def measure_opening(folder: Path, queries: np.ndarray) -> dict[str, Any]:
    """Open the index in a new process, and measure how its memory grows with searches."""
    path = folder.with_suffix(".queries.npy")
    np.save(path, queries)
    result = run_measurement("-c", OPEN_AND_SEARCH, folder, path)
    before, opened, searched = (state["RssAnon"] + state["RssFile"] for state in result["resident"])
    opening = {"open_seconds": result["open_seconds"], "opened_bytes": opened - before}
    grown = f"{(opened - before) / 2**20:,.0f} MiB, {(searched - before) / 2**20:,.0f} after {len(queries)} queries"
    print(f"  opened and searched once in {opening['open_seconds']:.2f} s, resident {grown}", flush=True)
    return {**opening, "searched_bytes": searched - before, "resident": result["resident"]}


if __name__ == "__main__":
    main()
