"""Where everything stands in a grid of hits, in pixels; sizes that are still read at half of it.

The numbers of models, hits and queries come in, corners go out; `hits_grid` draws there.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_MODELS = 5
HITS_BY_MODELS = {1: 5, 2: 4, 3: 3, 4: 2, 5: 2}  # keeps the picture readable at half its size
CELL, GAP, MARGIN, FRAME = 150, 10, 24, 6  # pixels
BLOCK_GAP = 34  # between models
TITLE, HEADER, NOTE, CAPTION_LINES, CAPTION_LINE = 104, 46, 30, 3, 20  # heights
HEADER_LINE, MAX_LABEL_LINES = 26, 2
TITLE_SIZE, HEADER_SIZE, TEXT_SIZE, CAPTION_SIZE = 28, 21, 17, 16  # of letters
ROW = NOTE + CELL + CAPTION_LINES * CAPTION_LINE + 14


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in pixels."""

    num_models: int
    num_hits: int
    num_queries: int
    label_lines: int  # of the models' names

    @property
    def size(self) -> tuple[int, int]:
        width = self.block_left(self.num_models) - BLOCK_GAP + MARGIN
        return width, self.query_corner(self.num_queries)[1] - NOTE + MARGIN // 2

    def block_left(self, model: int) -> int:
        return MARGIN + 2 * (CELL + GAP) - GAP + BLOCK_GAP + model * (self.block_width + BLOCK_GAP)

    @property
    def block_width(self) -> int:
        return self.num_hits * (CELL + GAP) - GAP

    @property
    def header_base(self) -> int:
        """Where the letters of the headers' last line stand."""
        return TITLE + self.label_lines * HEADER_LINE + HEADER_LINE

    def query_corner(self, row: int) -> tuple[int, int]:
        return MARGIN, TITLE + self.label_lines * HEADER_LINE + HEADER + row * ROW + NOTE

    def truth_corner(self, row: int) -> tuple[int, int]:
        return MARGIN + CELL + GAP, self.query_corner(row)[1]

    def hit_corner(self, row: int, model: int, place: int) -> tuple[int, int]:
        """Return the upper left corner of a cell, `place` 0 being the first hit."""
        return self.block_left(model) + place * (CELL + GAP), self.query_corner(row)[1]
