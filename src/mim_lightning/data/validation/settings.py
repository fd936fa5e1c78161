"""How strict the check is: what happens to bad rows, how many may be left out, and what counts as bad.

Built from the section `check` of a data config; `check_manifest`, `require_good` and `keep_good` follow it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mim_lightning.data.manifest.table import validate_name
from mim_lightning.data.validation.findings import KINDS

ON_INVALID = ("raise", "drop")
SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")
MAX_DISTANCE = 8  # bits; different pictures are that near to each other


@dataclass(frozen=True)
class ValidationSettings:
    """What is done about bad rows, and from where on a picture is remarkable.

    Args:
        on_invalid: "raise" refuses the data, "drop" leaves invalid rows out and lists them.
        max_invalid: the rows of each table that may be left out: a share such as "1%", or a number.
        treat_as_invalid: kinds of findings that are bad too, though they are only told as a rule.
        blank_image_fraction: share of the pixels in almost one colour from which a picture is near-empty.
        max_hash_distance: bits of 64 in which the perceptual hashes of the same picture may differ.
        num_processes: that look at pictures; None: the cores this process may use, at most 16.

    Raises:
        ValueError: a value is none of the choices or out of range.
    """

    on_invalid: str = "raise"
    max_invalid: str | int = "1%"
    treat_as_invalid: Sequence[str] = ()
    blank_image_fraction: float = 0.995
    max_hash_distance: int = 4
    num_processes: int | None = None

    def __post_init__(self) -> None:
        validate_name(str(self.on_invalid), ON_INVALID, "data.validation.on_invalid", "choice")
        self.ceiling(0)
        for kind in self.treat_as_invalid:
            choices = tuple(name for name, known in KINDS.items() if known.may_be_bad)
            validate_name(kind, choices, "data.validation.treat_as_invalid", "kind of finding that can be chosen")
        if not 0.5 <= self.blank_image_fraction <= 1:
            raise ValueError(f"data.validation.blank_image_fraction={self.blank_image_fraction}: must be from 0.5 to 1")
        if not 0 <= self.max_hash_distance <= MAX_DISTANCE:
            raise ValueError(
                f"data.validation.max_hash_distance={self.max_hash_distance}: must be 0 to {MAX_DISTANCE} bits"
            )
        if self.num_processes is not None and self.num_processes < 1:
            raise ValueError(f"data.validation.num_processes={self.num_processes}: must be at least 1")

    def is_bad(self, kind: str) -> bool:
        """Is a finding of this kind a fault, or only told?"""
        return KINDS[kind].is_bad or kind in self.treat_as_invalid

    def ceiling(self, num_rows: int) -> int:
        """Return how many of `num_rows` rows may be left out."""
        text = str(self.max_invalid).strip()
        share = SHARE.fullmatch(text)
        if share and float(share[1]) <= 100:
            # a share such as 0.1 % is no binary fraction: 1 of 1,000 rows must not become 0.9999
            return math.floor(num_rows * float(share[1]) / 100 + 1e-9)
        if text.isdecimal() and not isinstance(self.max_invalid, bool):
            return int(text)
        raise ValueError(
            f"data.validation.max_invalid={self.max_invalid}: give a fraction such as 1%, or a whole number of rows"
        )
