"""Settings of an index, and the facts of the model that embedded its rows."""

from __future__ import annotations

from dataclasses import dataclass

# precision of the codes that are searched -> `index.kind` -> the index type; the first is the default
FAMILIES = {
    "float32": {"flat": "flat", "hnsw": "hnsw", "ivf_pq": "ivf_pq", "sq8": "sq8"},
    "int8": {"flat": "int8_flat", "hnsw": "int8_hnsw", "ivf": "sq8", "sq8": "sq8"},
    "binary": {"flat": "binary_flat", "ivf": "binary_ivf"},
}
KINDS = ("auto", "flat", "hnsw", "ivf", "ivf_pq", "sq8")
RESCORE = ("float32", "int8")
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
    dimension: int  # of its vectors, which the index may cut


@dataclass(frozen=True)
class IndexSettings:
    """How an index is built and searched.

    `ef_search`, `nprobe` and `rerank` are initial values: the build raises them while recall is below `min_recall`, and
    the card has the final ones. Sources: HNSW, Malkov and Yashunin 2018; product quantization, Jegou et al. 2011; the
    defaults are our choice.
    """

    kind: str = "auto"  # auto, flat, hnsw, ivf, ivf_pq or sq8
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
    dimension: int | None = None  # numbers of a vector that are kept, at unit length again; None: all
    precision: str = "float32"  # of the codes that are searched: float32, int8 or binary (signs)
    rescore: str = "float32"  # of the vectors on disk that candidates are compared by, where codes are coarse: or int8

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"index.kind={self.kind}: choose from {', '.join(KINDS)}")
        for key, choices in (("precision", FAMILIES), ("rescore", RESCORE)):
            if getattr(self, key) not in choices:
                name = key if key == "precision" else f"index.{key}"
                raise ValueError(f"{name}={getattr(self, key)}: choose from {', '.join(choices)}")
        kinds = ("auto", *FAMILIES[self.precision])
        if self.kind not in kinds:
            raise ValueError(f"index.kind={self.kind}: precision={self.precision} has {', '.join(kinds)}")
        if not 0 <= self.min_recall <= 1:
            raise ValueError(f"index.min_recall={self.min_recall}: must be between 0 and 1")
        for key, minimum in _MINIMA.items():
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise ValueError(f"index.{key}={value}: must be an integer, at least {minimum}")

    def validate_dimension(self, full: int) -> None:
        """Raise ValueError for a dimension that vectors with this number of numbers cannot be cut to."""
        if self.dimension is not None and not (type(self.dimension) is int and 1 <= self.dimension <= full):
            raise ValueError(f"dimension={self.dimension}: give a whole number from 1 to {full}, or null for all")
