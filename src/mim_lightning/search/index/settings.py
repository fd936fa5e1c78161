"""What is asked of an index, and what is known of the model that embedded its rows.

`index` of conf/build_index.yaml comes in as plain values, checked IndexSettings go out to `kind` and both backends; a
wrong value is told by its config key.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("auto", "flat", "hnsw", "ivf_pq", "sq8")
RECALL_K = 10  # recall is measured at so many products


@dataclass(frozen=True)
class ModelFacts:
    """What made the vectors of an index: a search must be made with the same."""

    fingerprint: str
    gallery: str  # the tower or fusion that was embedded, "product" for example
    dimension: int


@dataclass(frozen=True)
class IndexSettings:
    """How an index is built and searched.

    `ef_search`, `nprobe` and `rerank` say where the search begins; building raises them while recall stays below
    `min_recall`, and the card tells where they ended. Sources: HNSW, Malkov and Yashunin 2018; product quantisation,
    Jegou et al. 2011; the defaults are our choice.
    """

    kind: str = "auto"  # auto, flat, hnsw, ivf_pq or sq8
    min_recall: float = 0.95  # recall@10 against exact search; an index below it is refused
    recall_queries: int = 1000  # that recall is measured with
    hnsw_m: int = 32  # neighbours a row on the upper levels, twice as many on the lowest
    ef_construction: int = 100  # candidates held while a row is put in
    ef_search: int = 64  # candidates held while searching
    nlist: int = 0  # inverted lists; 0: about four times the square root of the rows
    nprobe: int = 16  # inverted lists that a query reads
    pq_m: int = 0  # bytes a row; 0: one for about four dimensions
    rerank: int = 10  # rows compared exactly for each that is wanted, where codes are coarse
    seed: int = 0
    num_threads: int = 0  # while building; 0: all. Only a graph built by one thread is the same again

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"index.kind={self.kind}: there are {', '.join(KINDS)}")
        if not 0 <= self.min_recall <= 1:
            raise ValueError(f"index.min_recall={self.min_recall}: must lie between 0 and 1")
        for key in ("recall_queries", "ef_construction", "ef_search", "nprobe", "rerank"):
            self._require(key, 1)
        self._require("hnsw_m", 2)
        for key in ("nlist", "pq_m", "seed", "num_threads"):
            self._require(key, 0)

    def _require(self, key: str, least: int) -> None:
        value = getattr(self, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"index.{key}={value}: must be a whole number, {least} or more")
