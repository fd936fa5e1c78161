"""The rules of each index type: which one a catalog gets, its memory, inverted lists, candidates and search effort.

Plain functions of settings and sizes, valid for every backend. A kind is a structure with codes of a precision: what
`index.kind` and `precision` name together, see `index_settings.FAMILIES`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from mim_lightning.search.index.index_settings import FAMILIES, RECALL_K, IndexSettings

FLAT_ROWS = 20_000  # exact search of so many rows is as fast as any index: a millisecond or two
BINARY_FLAT_ROWS = 1_000_000  # bits of so many rows are compared in a few milliseconds
HNSW_BYTES = 8 * 2**30  # a graph and its vectors fit into the memory of an ordinary machine
SQ8_BYTES = 32 * 2**30  # 8-bit codes fit into the memory of a large machine
BINARY = ("binary_flat", "binary_ivf")  # codes are signs, compared by the number of bits that differ
COARSE = ("ivf_pq", "sq8", "int8_flat", "int8_hnsw", *BINARY)  # codes select candidates, reranked by their vectors
LISTS = ("ivf_pq", "sq8", "binary_ivf")  # rows are in inverted lists
GRAPHS = ("hnsw", "int8_hnsw")
PQ_CENTROIDS = 256
_MAX_RERANK = 80  # rows compared exactly for each requested one
_MAX_RERANK_BINARY = 320
_MAX_EF_SEARCH = 1024
# of a row compared exactly, the cost of comparing its code
_CODE_COST = {"int8_flat": 0.5, "binary_flat": 1 / 16}


def choose_kind(settings: IndexSettings, num_rows: int, dimension: int) -> tuple[str, str]:
    """Return the index type, and the reason for it as one line."""
    if settings.kind != "auto":
        kind = FAMILIES[settings.precision][settings.kind]
        named = f"set by index.kind{'' if kind == settings.kind else f'={settings.kind}'}"
        return kind, f"{kind}: {named}{_of_precision(settings)}"
    rows, of_precision = f"{num_rows:,} rows", _of_precision(settings)
    if settings.precision == "binary":
        if num_rows <= BINARY_FLAT_ROWS:
            return "binary_flat", f"binary_flat: {rows}; the bits of up to {BINARY_FLAT_ROWS:,} rows are all compared"
        return "binary_ivf", f"binary_ivf: {rows}, more than {BINARY_FLAT_ROWS:,}"
    flat, graph = ("flat", "hnsw") if settings.precision == "float32" else ("int8_flat", "int8_hnsw")
    if num_rows <= FLAT_ROWS:
        how = "exactly" if flat == "flat" else "row by row"
        return flat, f"{flat}: {rows}; up to {FLAT_ROWS:,} rows are searched {how}{of_precision}"
    num_bytes = {kind: num_rows * bytes_per_row(kind, settings, dimension) for kind in (graph, "sq8", "ivf_pq")}
    size = {kind: f"{value / 2**30:,.1f} GiB" for kind, value in num_bytes.items()}
    if num_bytes[graph] <= HNSW_BYTES:
        limit = f"limit {HNSW_BYTES // 2**30} GiB{of_precision}"
        return graph, f"{graph}: {rows}, more than {FLAT_ROWS:,}; graph and vectors take {size[graph]}, {limit}"
    if num_bytes["sq8"] <= SQ8_BYTES or settings.precision == "int8":
        return "sq8", f"sq8: {rows}; a graph would take {size[graph]}, 8-bit codes take {size['sq8']}"
    return "ivf_pq", f"ivf_pq: {rows}; 8-bit codes would take {size['sq8']}, product codes take {size['ivf_pq']}"


def _of_precision(settings: IndexSettings) -> str:
    return "" if settings.precision == "float32" else f", precision={settings.precision}"


def bytes_per_row(kind: str, settings: IndexSettings, dimension: int) -> int:
    """Return the memory per row during a search; coarse types also read a few vectors from disk."""
    links = 8 * settings.hnsw_m + 16  # 2 * m links of four bytes on the lowest level, position and level
    num_bits = 8 * -(-dimension // 8)
    return {
        "flat": 4 * dimension,
        "hnsw": 4 * dimension + links,
        "int8_flat": dimension,
        "int8_hnsw": dimension + links,
        "sq8": dimension + 8,
        "ivf_pq": (num_code_bytes(settings, dimension) if kind == "ivf_pq" else 0) + 8,
        "binary_flat": num_bits // 8,
        "binary_ivf": num_bits // 8 + 8,
    }[kind]


def disk_bytes_per_row(kind: str, settings: IndexSettings, dimension: int) -> int:
    """Return the bytes per row of codes and vectors on disk, without the product's record."""
    of_vector = dimension + 4 if settings.rescore == "int8" else 4 * dimension
    return bytes_per_row(kind, settings, dimension) + (of_vector if kind in COARSE else 0)


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
    if kind not in LISTS:
        return 1
    return max(num_lists(settings, num_rows), PQ_CENTROIDS if kind == "ivf_pq" else 1)


def num_candidates(kind: str, settings: IndexSettings, num_fetched: int) -> int:
    """Return how many rows to request for reranking; never fewer than recall was measured with."""
    return settings.rerank * max(num_fetched, RECALL_K + 1) if kind in COARSE else num_fetched


def scale_effort(kind: str, settings: IndexSettings, num_rows: int) -> IndexSettings | None:
    """Return settings that search twice as wide, or None at the limit beyond which an index is not worth it."""
    wider: dict[str, Any] = {}  # any of them can limit recall, so all are raised
    if kind in GRAPHS and settings.ef_search < min(_MAX_EF_SEARCH, num_rows):
        wider["ef_search"] = 2 * settings.ef_search
    if kind in LISTS and settings.nprobe < num_lists(settings, num_rows):
        wider["nprobe"] = 2 * settings.nprobe
    if kind in COARSE and settings.rerank < (_MAX_RERANK_BINARY if kind in BINARY else _MAX_RERANK):
        wider["rerank"] = 2 * settings.rerank
    return replace(settings, **wider) if wider else None


def num_rows_read(kind: str, settings: IndexSettings, num_rows: int) -> float:
    """Return approximately how many rows a query is compared with, as many as it takes the time of."""
    if kind in GRAPHS:
        return min(num_rows, settings.ef_search * settings.hnsw_m)
    if kind in LISTS:
        return num_rows * min(1, settings.nprobe / num_lists(settings, num_rows))
    return num_rows * _CODE_COST.get(kind, 1)
