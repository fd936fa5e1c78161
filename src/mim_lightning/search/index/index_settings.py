"""Settings of an index, and the facts of the model that embedded its rows."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("auto", "flat", "hnsw", "ivf_pq", "sq8")
RECALL_K = 10  # recall is measured at this depth
_MINIMA = {
    **dict.fromkeys(("recall_queries", "ef_construction", "ef_search", "nprobe", "rerank"), 1),
    "hnsw_m": 2,
    **dict.fromkeys(("nlist", "pq_m", "seed", "num_threads"), 0),
}


@dataclass(frozen=True)
class ModelFacts:
    """The model and gallery that the vectors of an index come from; queries must come from the same model."""

    fingerprint: str
    gallery: str  # the tower or fusion that was embedded, for example "product"
    dimension: int


@dataclass(frozen=True)
class IndexSettings:
    """How an index is built and searched.

    `ef_search`, `nprobe` and `rerank` are initial values: the build raises them while recall is below `min_recall`, and
    the card has the final ones. Sources: HNSW, Malkov and Yashunin 2018; product quantization, Jegou et al. 2011; the
    defaults are our choice.
    """

    kind: str = "auto"  # auto, flat, hnsw, ivf_pq or sq8
    min_recall: float = 0.95  # recall@10 against exact search; the build fails below it
    recall_queries: int = 1000  # number of queries that recall is measured with
    hnsw_m: int = 32  # neighbors per row on the upper levels, twice as many on the lowest
    ef_construction: int = 100  # candidates kept while a row is inserted
    ef_search: int = 64  # candidates kept during a search
    nlist: int = 0  # inverted lists; 0: about four times the square root of the number of rows
    nprobe: int = 16  # inverted lists read per query
    pq_m: int = 0  # bytes per row; 0: one for about four dimensions
    rerank: int = 10  # rows compared exactly for each requested one, where codes are coarse
    seed: int = 0
    num_threads: int = 0  # for building; 0: all. Only a graph built by one thread is reproducible

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"index.kind={self.kind}: choose from {', '.join(KINDS)}")
        if not 0 <= self.min_recall <= 1:
            raise ValueError(f"index.min_recall={self.min_recall}: must be between 0 and 1")
        for key, minimum in _MINIMA.items():
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise ValueError(f"index.{key}={value}: must be an integer, at least {minimum}")
