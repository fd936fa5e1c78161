"""What is wrong with a row of the user's tables, and whom it is told.

Sources find faults while they read and `check` finds more; whoever calls says by an OnFault whether the first one
stops everything (`raise_fault`) or the row is left out and listed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Why a row, or one picture of it, cannot be used."""

    table: str  # "products" or "queries"
    origin: str  # "queries.csv, row 7"
    column: str  # "": the row as a whole
    row_id: str  # product or query id; "": it has none
    reason: str  # one line

    def __str__(self) -> str:
        place = f"{self.origin}, column '{self.column}'" if self.column else self.origin
        return f"{place}: {self.reason}"


OnFault = Callable[[Fault], None]


class RowError(ValueError):
    """What is wrong with a row, said where its place is not known; the caller makes a Fault of it."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column, self.reason = column, reason


class NothingRelevantError(RowError):
    """A query of whose products every one has grade 0."""


def raise_fault(fault: Fault) -> None:
    """Let the first fault stop the reading.

    Raises:
        ValueError: always; the fault in one line.
    """
    raise ValueError(str(fault))
