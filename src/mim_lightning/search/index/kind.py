"""Which kind of index a catalogue gets, and what follows from the kind: bytes, lists, candidates, effort.

Settings and sizes come in, numbers and reasons go out; plain rules, which speak for both backends. `faiss_kinds` makes
the indexes themselves.
"""

from __future__ import annotations

import math
from dataclasses import replace

from mim_lightning.search.index.settings import RECALL_K, IndexSettings

FLAT_ROWS = 20_000  # compared one by one, as fast as any index: a millisecond or two
HNSW_BYTES = 8 * 2**30  # a graph and its vectors fit into an ordinary machine's memory
SQ8_BYTES = 32 * 2**30  # so do the 8-bit codes into a large one's
COARSE = ("ivf_pq", "sq8")  # their codes find candidates, which the vectors themselves put in order
PQ_CENTROIDS = 256
_WIDEST_RERANK = 80  # rows compared exactly for each that is wanted
_WIDEST = 1024  # candidates of a graph search


def choose_kind(settings: IndexSettings, num_rows: int, dimension: int) -> tuple[str, str]:
    """Return the kind of index, and a line that says why."""
    if settings.kind != "auto":
        return settings.kind, f"{settings.kind}: asked for by index.kind"
    rows = f"{num_rows:,} rows"
    if num_rows <= FLAT_ROWS:
        return "flat", f"flat: {rows}, up to {FLAT_ROWS:,} are compared one by one, exactly"
    sizes = {kind: num_rows * bytes_per_row(kind, settings, dimension) for kind in ("hnsw", "sq8", "ivf_pq")}
    sizes_told = {kind: f"{size / 2**30:,.1f} GiB" for kind, size in sizes.items()}
    if sizes["hnsw"] <= HNSW_BYTES:
        limit = f"up to {HNSW_BYTES // 2**30} GiB"
        return "hnsw", f"hnsw: {rows} are more than {FLAT_ROWS:,}; graph and vectors take {sizes_told['hnsw']}, {limit}"
    if sizes["sq8"] <= SQ8_BYTES:
        return "sq8", f"sq8: {rows}, a graph would take {sizes_told['hnsw']}; 8-bit codes take {sizes_told['sq8']}"
    return "ivf_pq", f"ivf_pq: {rows}, 8-bit codes would take {sizes_told['sq8']}; these take {sizes_told['ivf_pq']}"


def bytes_per_row(kind: str, settings: IndexSettings, dimension: int) -> int:
    """Return the memory that a row takes while searching; coarse kinds read a few whole vectors from disk besides."""
    if kind == "hnsw":  # vector, twice m links of four bytes on the lowest level, place and level
        return 4 * dimension + 8 * settings.hnsw_m + 16
    return {"flat": 4 * dimension, "sq8": dimension + 8, "ivf_pq": num_code_bytes(settings, dimension) + 8}[kind]


def num_code_bytes(settings: IndexSettings, dimension: int) -> int:
    """Return how many bytes a row's product-quantised code has; each stands for an equal part of the vector."""
    if settings.pq_m:
        if dimension % settings.pq_m:
            raise ValueError(f"index.pq_m={settings.pq_m}: must divide the dimension, {dimension}")
        return settings.pq_m
    return max(m for m in range(1, max(1, dimension // 4) + 1) if dimension % m == 0)


def num_lists(settings: IndexSettings, num_rows: int) -> int:
    return settings.nlist or max(1, min(num_rows // 39, 2 ** round(math.log2(4 * math.sqrt(num_rows)))))


def least_rows(kind: str, settings: IndexSettings, num_rows: int) -> int:
    """Return how many rows the kind is trained with at least."""
    if kind not in COARSE:
        return 1
    return max(num_lists(settings, num_rows), PQ_CENTROIDS if kind == "ivf_pq" else 1)


def num_candidates(kind: str, settings: IndexSettings, num_fetched: int) -> int:
    """Return how many rows an index is asked for to have so many; of few, no fewer than recall was measured with."""
    return settings.rerank * max(num_fetched, RECALL_K + 1) if kind in COARSE else num_fetched


def widen(kind: str, settings: IndexSettings, num_rows: int) -> IndexSettings | None:
    """Return settings that search twice as wide, or None where that would not be worth an index."""
    if kind == "hnsw" and settings.ef_search < min(_WIDEST, num_rows):
        return replace(settings, ef_search=2 * settings.ef_search)
    lists = num_lists(settings, num_rows)
    if kind in COARSE and (settings.nprobe < lists or settings.rerank < _WIDEST_RERANK):
        # either may be what the recall lacks
        nprobe = settings.nprobe * (2 if settings.nprobe < lists else 1)
        return replace(settings, nprobe=nprobe, rerank=settings.rerank * (2 if settings.rerank < _WIDEST_RERANK else 1))
    return None


def rows_read(kind: str, settings: IndexSettings, num_rows: int) -> float:
    """Return about how many rows a query is compared with."""
    if kind == "hnsw":
        return min(num_rows, settings.ef_search * settings.hnsw_m)
    if kind == "flat":
        return num_rows
    return num_rows * min(1, settings.nprobe / num_lists(settings, num_rows))
