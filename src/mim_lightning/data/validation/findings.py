"""Findings: what the validation reports of a row, an error or a warning, with table, row, column and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.display.numbers import format_count

MAX_KEPT = 100_000  # warnings of a kind that are kept; all are counted


@dataclass(frozen=True)
class FindingType:
    """A kind of finding.

    Attributes:
        noun, rest: its name: "query", "with an unknown product".
        is_error: a row with it is invalid; else it is a warning.
        advice: what to do about it.
        can_be_error: `treat_as_invalid` may name it.
    """

    noun: str
    rest: str
    is_error: bool
    advice: str
    can_be_error: bool = False

    @property
    def title(self) -> str:
        """Its name in the plural."""
        return self.describe(2).split(" ", 1)[1]

    def describe(self, count: int) -> str:
        """Return "1 query with an unknown product" or "3 queries with an unknown product"."""
        return f"{format_count(count, self.noun)} {self.rest}".rstrip()


KINDS = {
    "duplicate_id": FindingType("duplicate id", "", True, "keep one row of each"),
    "unknown_product": FindingType("query", "with an unknown product", True, "add the product, or remove the query"),
    "faulty_row": FindingType("other invalid row", "", True, "mend the row"),
    "unreadable_image": FindingType("unreadable image", "", True, "replace the file"),
    "truncated_image": FindingType("truncated image", "", True, "copy or download the file again"),
    "huge_image": FindingType("oversized image", "", True, "make the image smaller; it was not decoded"),
    "answer_left_out": FindingType("query", "without a valid product", True, "mend the product"),
    "near_empty_image": FindingType("blank image", "", False, "inspect them: a placeholder teaches nothing", True),
    "image_in_two_splits": FindingType(
        "image", "in two splits", False, "the model is evaluated on images that it was trained on; drop the rows", True
    ),
    "photo_in_catalogue": FindingType(
        "query image", "equal to an image of a target product", False, "such queries are trivial", True
    ),
    "reference_in_catalogue": FindingType(
        *("query image", "equal to an image of another product", False),
        "references of composed queries; not counted in directions whose target is the product in the image",
    ),
    "product_in_two_splits": FindingType(
        "product", "in two splits", False, "choose data/splits=product_disjoint to evaluate on unseen products"
    ),
    "product_without_image": FindingType("product", "without image", False, "found by their texts alone", True),
    "product_without_text": FindingType("product", "without text", False, "found by their images alone", True),
    "html_in_text": FindingType("text", "with HTML", False, "data.source.clean_html=true removes it", True),
    "text_over_limit": FindingType(
        "text", "longer than the tokenizer's limit", False, "a larger encoder.text.max_length reads the rest", True
    ),
}
IN_CATALOG = ("photo_in_catalogue", "reference_in_catalogue")


@dataclass(frozen=True, slots=True)
class Finding:
    """One error or warning of one row.

    Attributes:
        drops: what is dropped for it: "row", "image" (one of several of a product), or "" for a warning.
        image: the image concerned.
        other_origin, other_image: the row and image that it equals.
    """

    kind: str
    table: str  # "products" or "queries"
    origin: str  # "products.csv, row 7"
    row_id: str
    column: str
    reason: str
    drops: str = ""
    image: ImageRef | None = None
    other_origin: str = ""
    other_image: ImageRef | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Table and origin: a row of a file may be both a product and a query, and ids may be repeated."""
        return self.table, self.origin

    @property
    def is_error(self) -> bool:
        return bool(self.drops)

    def __str__(self) -> str:
        place = f"{self.origin}, column '{self.column}'" if self.column else self.origin
        return f"{place}: {self.reason}"


class Findings:
    """Collects findings: counts all, keeps the errors and the first warnings of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kept: list[Finding] = []

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.counts[finding.kind] += 1
            if finding.is_error or self.counts[finding.kind] <= MAX_KEPT:
                self.kept.append(finding)

    def add_all(self, others: Findings) -> None:
        """Add what others collected."""
        self.counts += others.counts
        self.kept += others.kept


def finding_of(issue: RowIssue, is_row_kept: bool) -> Finding:
    """Return the finding of an issue that a source reported: of a dropped row, or of one image of a kept row."""
    drops = "image" if is_row_kept else "row"
    return Finding(issue.kind, issue.table, issue.origin, issue.row_id, issue.column, issue.reason, drops)
