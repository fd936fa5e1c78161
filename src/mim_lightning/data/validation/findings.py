"""What the check finds: one finding a fault, with table, row, column and reason.

The files beside this one make findings; the report, `skipped.csv`, the terminal and the page show them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mim_lightning.data.images.reader import ImageRef
from mim_lightning.data.manifest.rows import RowIssue

MAX_TOLD = 100_000  # findings kept of a kind that is only told; all are counted


@dataclass(frozen=True)
class Kind:
    """What a kind of finding is called, and what it means for the row.

    Attributes:
        is_bad: a row with it cannot be used.
        may_be_bad: `treat_as_invalid` may name it.
        advice: what to do about it.
    """

    title: str
    is_bad: bool
    advice: str
    may_be_bad: bool = False


KINDS = {
    "duplicate_id": Kind("duplicate ids", True, "keep one row of each"),
    "unknown_product": Kind("queries whose product is missing", True, "add the product, or leave the query out"),
    "faulty_row": Kind("other faults of rows", True, "mend the row"),
    "unreadable_image": Kind("unreadable images", True, "replace the file"),
    "truncated_image": Kind("truncated images", True, "copy or download the file again"),
    "huge_image": Kind("absurdly large images", True, "make the picture smaller; it was not decoded"),
    "answer_left_out": Kind("queries whose product is left out", True, "mend the product"),
    "near_empty_image": Kind("near-empty images", False, "look at them: placeholders teach nothing", True),
    "image_in_two_splits": Kind(
        "images in two splits", False, "what is evaluated was trained on; leave the row out", True
    ),
    "photo_in_catalogue": Kind(
        "query images in the catalogue that show what is asked for", False, "such queries answer themselves", True
    ),
    "reference_in_catalogue": Kind(
        "query images in the catalogue that show another product than is asked for",
        False,
        "the references of composed queries; they count in no direction that asks for what the photo shows",
    ),
    "product_in_two_splits": Kind(
        "products in two splits", False, "choose data/splits=product_disjoint to evaluate on unseen products"
    ),
    "product_without_image": Kind("products without image", False, "they are found by their words alone", True),
    "product_without_text": Kind("products without text", False, "they are found by their pictures alone", True),
    "html_in_text": Kind("texts with HTML", False, "data.source.clean_html=true reads them without", True),
    "text_over_limit": Kind(
        "texts over the tokeniser's limit", False, "a larger encoder.text.max_length reads the rest", True
    ),
}
IN_CATALOGUE = ("photo_in_catalogue", "reference_in_catalogue")
IMAGE_KINDS = ("unreadable_image", "truncated_image", "huge_image", "near_empty_image")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know of one row.

    Attributes:
        drops: what is left out for it: "row", "picture" (one of several of a product), or "" where it is only told.
        image: the picture concerned.
        other_origin, other_image: the row and picture it is the same as.
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
        """Table and origin: one row of a file may be a product and a query, and an id may stand in two rows."""
        return self.table, self.origin

    @property
    def is_bad(self) -> bool:
        return bool(self.drops)

    def __str__(self) -> str:
        place = f"{self.origin}, column '{self.column}'" if self.column else self.origin
        return f"{place}: {self.reason}"


class Findings:
    """Collects findings: counts them all, keeps the bad ones and the first of the others."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kept: list[Finding] = []

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.counts[finding.kind] += 1
            if finding.is_bad or self.counts[finding.kind] <= MAX_TOLD:
                self.kept.append(finding)


def finding_of(issue: RowIssue, is_row_kept: bool) -> Finding:
    """Return the finding of an issue that a source reported: of a row it left out, or of one image of a row it kept."""
    drops = "picture" if is_row_kept else "row"
    return Finding(issue.kind, issue.table, issue.origin, issue.row_id, issue.column, issue.reason, drops)
