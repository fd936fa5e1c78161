"""What an evaluation pass needs of each process's memory, from counts that are known before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from mim_lightning.display.numbers import format_bytes, format_count
from mim_lightning.metrics.row_vectors import READ_ROWS

_ROW_BYTES = 120  # a gallery row while a direction is ranked: positions, products and their distinct keys, as integers
_SCORE_BYTES = 150  # a gallery row while a query is ranked in full, or by a combination of scores
_SEARCH_BYTES = 2**24  # a matrix product: its vectors, and the copies of them that a BLAS makes
_RESULT_BYTES = 400  # a query in the report of a direction: its metrics, first hits and rank


@dataclass(frozen=True)
class EvaluationMemory:
    """Rows of one pass and what is kept of each; of several processes, those of the one that has most.

    Attributes:
        num_queries, num_gallery: of all processes.
        own_queries, own_gallery: whose vectors one process keeps.
        query_towers, gallery_towers: vectors of a row.
        width: of a vector.
        value_bytes: 4 for float32, 2 for float16.
        query_ids, gallery_ids: integers of a row.
        num_directions: whose results are kept for every query.
        working_bytes: that ranking may use at most, in addition to what is kept.
    """

    num_queries: int
    num_gallery: int
    own_queries: int
    own_gallery: int
    query_towers: int
    gallery_towers: int
    width: int
    value_bytes: int
    query_ids: int
    gallery_ids: int
    num_directions: int
    working_bytes: int

    @property
    def payload_bytes(self) -> int:
        """Return the bytes of the vectors that one process keeps."""
        rows = self.own_queries * self.query_towers + self.own_gallery * self.gallery_towers
        return rows * self.width * self.value_bytes

    @property
    def kept_bytes(self) -> int:
        """Return what one process keeps until the last direction is ranked: vectors, presence and ids of its rows."""
        queries = self.own_queries * (8 * self.query_ids + self.query_towers)
        gallery = self.own_gallery * (8 * self.gallery_ids + self.gallery_towers)
        return self.payload_bytes + queries + gallery

    @property
    def ranking_bytes(self) -> int:
        """Return what ranking needs more: ids and results of all queries, integers of its rows, working memory."""
        ids = self.num_queries * (2 * 8 * self.query_ids + _RESULT_BYTES * self.num_directions)
        # a fusion of rows: its parts, their sum, and copies of it
        reading = READ_ROWS * self.width * 4 * (self.gallery_towers + 3)
        # small sets need less than they may
        most = self.num_queries * self.num_gallery * _SCORE_BYTES + self.own_gallery * self.width * 4
        return ids + self.own_gallery * _ROW_BYTES + reading + _SEARCH_BYTES + min(self.working_bytes, most)

    def describe(self, place: str) -> str:
        """Return one line; `place` is where the vectors are kept."""
        kind = {2: "float16", 4: "float32"}[self.value_bytes]
        return (
            f"evaluation keeps {format_bytes(self.kept_bytes)} a process in {place}: "
            f"{format_count(self.own_gallery, 'row')} of the gallery's {format_count(self.num_gallery)} and "
            f"{format_count(self.own_queries, 'query')} of {format_count(self.num_queries)}, {self.gallery_towers} and "
            f"{self.query_towers} vectors of {self.width} {kind} each; ranking adds at most "
            f"{format_bytes(self.ranking_bytes)}"
        )
