"""What is wrong with a row of the user's tables, and what is done about it.

A source reports each row that it cannot use to an OnIssue: `raise_issue` stops at the first one, `list.append` collects
them all. Code decides by an issue's `kind`; its `reason` is text for people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class IssueType(StrEnum):
    """What can be wrong with a row, as far as its source can find out."""

    DUPLICATE_ID = "duplicate_id"
    UNKNOWN_PRODUCT = "unknown_product"  # a query names a product that no table has
    DROPPED_PRODUCT = "answer_left_out"  # a query names a product whose own row cannot be used
    INVALID_ROW = "faulty_row"  # any other issue


@dataclass(frozen=True)
class RowIssue:
    """Why a row, or one image of it, cannot be used."""

    table: str  # "products" or "queries"
    origin: str  # "queries.csv, row 7"
    column: str  # "": the row as a whole
    row_id: str  # product or query id; "": it has none
    reason: str  # one line
    kind: IssueType = IssueType.INVALID_ROW

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> RowIssue:
        """Return the issue whose `dataclasses.asdict` went through JSON."""
        return cls(**{**fields, "kind": IssueType(fields["kind"])})

    def __str__(self) -> str:
        place = f"{self.origin}, column '{self.column}'" if self.column else self.origin
        return f"{place}: {self.reason}"


OnIssue = Callable[[RowIssue], None]


class RowError(ValueError):
    """What is wrong with a row, raised where its table and number are not known; see `at`."""

    def __init__(self, column: str, reason: str, kind: IssueType = IssueType.INVALID_ROW) -> None:
        super().__init__(reason)
        self.column, self.reason, self.kind = column, reason, kind

    def at(self, table: str, origin: str, row_id: str) -> RowIssue:
        """Return the issue of the row that this error is about."""
        return RowIssue(table, origin, self.column, row_id, self.reason, self.kind)


class NothingRelevantError(RowError):
    """Every product of a query has grade 0."""


def raise_issue(issue: RowIssue) -> None:
    """Stop reading at the first issue.

    Raises:
        ValueError: always; the issue in one line.
    """
    raise ValueError(str(issue))
