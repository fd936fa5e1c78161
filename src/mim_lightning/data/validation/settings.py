"""Settings of the validation: what is invalid, what happens to invalid rows, and how many are allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mim_lightning.data.manifest.table import validate_name
from mim_lightning.data.shards.cache import parse_size
from mim_lightning.data.validation.findings import KINDS

ON_INVALID = ("raise", "drop")
PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")
MIN_MEMORY = 256 * 10**6  # bytes
MAX_DISTANCE = 8  # bits; different images can be that close


@dataclass(frozen=True)
class ValidationSettings:
    """What is invalid, what happens to invalid rows, and how many are allowed.

    Args:
        on_invalid: "raise" stops with an error, "drop" drops invalid rows and lists them.
        max_invalid: rows of each table that may be dropped: a percentage such as "1%", or a number.
        treat_as_invalid: kinds of findings that are errors, and by default warnings.
        blank_image_fraction: fraction of pixels of almost one color from which an image is blank.
        max_hash_distance: bits of 64 in which the perceptual hashes of equal images may differ.
        num_processes: that inspect images; None: the cores this process may use, at most 16.
        memory_limit: of the database in which rows are compared and sorted, as "4GB" or a number of bytes; what exceeds
            it is on the disk of the prepared data. None: a quarter of the machine's or the container's memory.

    Raises:
        ValueError: a value is none of the choices or out of range.
    """

    on_invalid: str = "raise"
    max_invalid: str | int = "1%"
    treat_as_invalid: Sequence[str] = ()
    blank_image_fraction: float = 0.995
    max_hash_distance: int = 4
    num_processes: int | None = None
    memory_limit: str | int | None = None

    def __post_init__(self) -> None:
        validate_name(str(self.on_invalid), ON_INVALID, "data.validation.on_invalid", "choice")
        self.ceiling(0)
        for kind in self.treat_as_invalid:
            choices = tuple(name for name, known in KINDS.items() if known.can_be_error)
            validate_name(kind, choices, "data.validation.treat_as_invalid", "kind of finding to choose")
        if not 0.5 <= self.blank_image_fraction <= 1:
            raise ValueError(f"data.validation.blank_image_fraction={self.blank_image_fraction}: must be 0.5 to 1")
        if not 0 <= self.max_hash_distance <= MAX_DISTANCE:
            raise ValueError(
                f"data.validation.max_hash_distance={self.max_hash_distance}: must be 0 to {MAX_DISTANCE} bits"
            )
        if self.num_processes is not None and self.num_processes < 1:
            raise ValueError(f"data.validation.num_processes={self.num_processes}: must be at least 1")
        if self.memory_bytes is not None and self.memory_bytes < MIN_MEMORY:
            raise ValueError(f"data.validation.memory_limit={self.memory_limit}: must be at least 256MB")

    @property
    def memory_bytes(self) -> int | None:
        """The bytes of `memory_limit`."""
        return None if self.memory_limit is None else parse_size("data.validation.memory_limit", self.memory_limit)

    def is_error(self, kind: str) -> bool:
        """Is a finding of this kind an error, or a warning?"""
        return KINDS[kind].is_error or kind in self.treat_as_invalid

    def drops(self, kind: str) -> str:
        """Return `Finding.drops` of a row with such a finding."""
        return "row" if self.is_error(kind) else ""

    def ceiling(self, num_rows: int) -> int:
        """Return how many of `num_rows` rows may be dropped."""
        text = str(self.max_invalid).strip()
        percent = PERCENT.fullmatch(text)
        if percent and float(percent[1]) <= 100:
            # 0.1 % is not exact in binary: 1 of 1,000 rows must not become 0.9999
            return math.floor(num_rows * float(percent[1]) / 100 + 1e-9)
        if text.isdecimal() and not isinstance(self.max_invalid, bool):
            return int(text)
        raise ValueError(
            f"data.validation.max_invalid={self.max_invalid}: give a percentage such as 1%, or a whole number of rows"
        )
