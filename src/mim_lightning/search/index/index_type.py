"""The rules of each index type: which one a catalog gets, its memory, inverted lists, candidates and search effort.

Plain functions of settings and sizes, valid for every backend.
"""

from __future__ import annotations

import math
from dataclasses import replace

from mim_lightning.search.index.index_settings import RECALL_K, IndexSettings

FLAT_ROWS = 20_000  # exact search of so many rows is as fast as any index: a millisecond or two
HNSW_BYTES = 8 * 2**30  # a graph and its vectors fit into the memory of an ordinary machine
SQ8_BYTES = 32 * 2**30  # 8-bit codes fit into the memory of a large machine
COARSE = ("ivf_pq", "sq8")  # codes select candidates, which are reranked by their vectors
PQ_CENTROIDS = 256
_MAX_RERANK = 80  # rows compared exactly for each requested one
_MAX_EF_SEARCH = 1024


def choose_kind(settings: IndexSettings, num_rows: int, dimension: int) -> tuple[str, str]:
    """Return the index type, and the reason for it as one line."""
    if settings.kind != "auto":
        return settings.kind, f"{settings.kind}: set by index.kind"
    rows = f"{num_rows:,} rows"
    if num_rows <= FLAT_ROWS:
        return "flat", f"flat: {rows}; up to {FLAT_ROWS:,} rows are searched exactly"
    num_bytes = {kind: num_rows * bytes_per_row(kind, settings, dimension) for kind in ("hnsw", "sq8", "ivf_pq")}
    size = {kind: f"{value / 2**30:,.1f} GiB" for kind, value in num_bytes.items()}
    if num_bytes["hnsw"] <= HNSW_BYTES:
        limit = f"limit {HNSW_BYTES // 2**30} GiB"
        return "hnsw", f"hnsw: {rows}, more than {FLAT_ROWS:,}; graph and vectors take {size['hnsw']}, {limit}"
    if num_bytes["sq8"] <= SQ8_BYTES:
        return "sq8", f"sq8: {rows}; a graph would take {size['hnsw']}, 8-bit codes take {size['sq8']}"
    return "ivf_pq", f"ivf_pq: {rows}; 8-bit codes would take {size['sq8']}, product codes take {size['ivf_pq']}"


def bytes_per_row(kind: str, settings: IndexSettings, dimension: int) -> int:
    """Return the memory per row during a search; coarse types also read a few vectors from disk."""
    if kind == "hnsw":  # vector, 2 * m links of four bytes on the lowest level, position and level
        return 4 * dimension + 8 * settings.hnsw_m + 16
    return {"flat": 4 * dimension, "sq8": dimension + 8, "ivf_pq": num_code_bytes(settings, dimension) + 8}[kind]


def num_code_bytes(settings: IndexSettings, dimension: int) -> int:
    """Return the bytes of a row's product-quantized code; each encodes an equal part of the vector."""
    if settings.pq_m:
        if dimension % settings.pq_m:
            raise ValueError(f"index.pq_m={settings.pq_m}: must divide the dimension, {dimension}")
        return settings.pq_m
    return max(m for m in range(1, max(1, dimension // 4) + 1) if dimension % m == 0)


def num_lists(settings: IndexSettings, num_rows: int) -> int:
    return settings.nlist or max(1, min(num_rows // 39, 2 ** round(math.log2(4 * math.sqrt(num_rows)))))


def min_rows(kind: str, settings: IndexSettings, num_rows: int) -> int:
    """Return how many rows training the index type needs."""
    if kind not in COARSE:
        return 1
    return max(num_lists(settings, num_rows), PQ_CENTROIDS if kind == "ivf_pq" else 1)


def num_candidates(kind: str, settings: IndexSettings, num_fetched: int) -> int:
    """Return how many rows to request for reranking; never fewer than recall was measured with."""
    return settings.rerank * max(num_fetched, RECALL_K + 1) if kind in COARSE else num_fetched


def scale_effort(kind: str, settings: IndexSettings, num_rows: int) -> IndexSettings | None:
    """Return settings that search twice as wide, or None at the limit beyond which an index is not worth it."""
    if kind == "hnsw" and settings.ef_search < min(_MAX_EF_SEARCH, num_rows):
        return replace(settings, ef_search=2 * settings.ef_search)
    lists = num_lists(settings, num_rows)
    if kind in COARSE and (settings.nprobe < lists or settings.rerank < _MAX_RERANK):
        # either can limit recall, so both are raised
        nprobe = settings.nprobe * (2 if settings.nprobe < lists else 1)
        return replace(settings, nprobe=nprobe, rerank=settings.rerank * (2 if settings.rerank < _MAX_RERANK else 1))
    return None


def num_rows_read(kind: str, settings: IndexSettings, num_rows: int) -> float:
    """Return approximately how many rows a query is compared with."""
    if kind == "hnsw":
        return min(num_rows, settings.ef_search * settings.hnsw_m)
    if kind == "flat":
        return num_rows
    return num_rows * min(1, settings.nprobe / num_lists(settings, num_rows))
