"""Rows of a manifest: a Product, a Query, how they are parsed from cells, and what can be wrong with them.

Each row is validated by itself here. What takes several rows (repeated ids, unknown products) is in `builder`. A source
reports invalid rows to an OnIssue: `raise_issue` stops at the first one, `list.append` collects all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NoReturn

from mim_lightning.data.images.reader import ImageRef, TableCell, TarMember
from mim_lightning.data.manifest.html_text import clean_html
from mim_lightning.display.text import plain
from mim_lightning.fields import DECLARED
from mim_lightning.io.paths import PathOrUrl, join

LIST_SEPARATOR = "|"  # several values in one CSV cell
MISSING = ("nan", "NaN", "NULL", "null", "None", "<NA>", "\\N")  # what databases and data frames write for no value
KIND = "kind"  # a column of queries that is always a segment
TEXTS = ("title", "description", "category", "text")  # columns of text
MAX_SPLIT = 200  # bytes: it names a folder
MAX_GRADE = 1_000_000  # of a relevant product
EXACT = 1 << 53  # integers below it are exact as floats

Row = Mapping[str, Any]  # cells by our column names; images stored in a table or tar file are refs already


class Origin(str):
    """Where a row stands, as text for errors ("queries.csv, row 7"), with the file and number that it is made of."""

    __slots__ = ("file", "number")  # a table may have tens of millions of rows
    file: str
    number: int

    def __new__(cls, file: str, number: int) -> Origin:
        origin = super().__new__(cls, f"{file}, row {number}")
        origin.file, origin.number = file, number
        return origin

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override] # for pickles, copies
        return self.file, self.number


class IssueType(StrEnum):
    """What can be wrong with a row, as far as its source can detect it; values are written to findings.csv."""

    DUPLICATE_ID = "duplicate_id"
    UNKNOWN_PRODUCT = "unknown_product"  # a query names a product that no table has
    DROPPED_PRODUCT = "answer_left_out"  # a query names a product whose own row is invalid
    INVALID_ROW = "faulty_row"  # any other issue


@dataclass(frozen=True)
class RowIssue:
    """Why a row, or one image of it, is invalid; code decides by `kind`, `reason` is for people."""

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
    """An invalid row, raised where its table and number are not known; see `at`."""

    def __init__(self, column: str, reason: str, kind: IssueType = IssueType.INVALID_ROW) -> None:
        super().__init__(reason)
        self.column, self.reason, self.kind = column, reason, kind

    def at(self, table: str, origin: str, row_id: str) -> RowIssue:
        """Return the issue of the row."""
        return RowIssue(table, origin, self.column, row_id, self.reason, self.kind)


class NothingRelevantError(RowError):
    """Every product of a query has grade 0."""


def raise_issue(issue: RowIssue) -> NoReturn:
    """Raise the issue as a ValueError of one line; the OnIssue that stops at the first one."""
    raise ValueError(str(issue))


@dataclass(frozen=True)
class Product:
    """A catalog item; `text` is the title, a full stop and the description."""

    product_id: str
    images: tuple[ImageRef, ...]
    text: str | None
    title: str | None
    category: str | None
    metadata: Mapping[str, str | int | float]  # further columns, to display and filter by, without empty cells
    origin: str  # "products.csv, row 7", for errors
    fields: Mapping[str, str] = field(default_factory=dict)  # texts of declared fields, without empty ones


@dataclass(frozen=True)
class Query:
    """An image, a text, or both, and the products that are relevant to it."""

    query_id: str
    split: str
    image: ImageRef | None
    text: str | None
    target_ids: tuple[str, ...]
    target_grades: tuple[int, ...]  # relevance of each, 1 or more
    reference_ids: tuple[str, ...]
    segments: Mapping[str, str]  # further columns, for metrics by segment
    origin: str
    weight: float = 1.0  # in training, above 0
    product_weights: Mapping[str, float] = field(default_factory=dict)  # of products whose row has another one
    fields: Mapping[str, str] = field(default_factory=dict)  # texts of declared fields, without empty ones


def without_html(row: Row) -> Row:
    """Return a row whose texts, metadata included, have no HTML."""
    cleaned: dict[str, Any] = {name: clean_html(cell) for name in TEXTS if isinstance(cell := row.get(name), str)}
    for group in ("metadata", DECLARED):
        if group in row:
            cells = row[group].items()
            cleaned[group] = {name: clean_html(cell) if isinstance(cell, str) else cell for name, cell in cells}
    return {**row, **cleaned}


def parse_product(row: Row, root: PathOrUrl, origin: str, kept: Sequence[str] | None) -> Product:
    """Return the product of a row with the `kept` columns of row["metadata"], None: all.

    Raises:
        RowError: the row lacks an id, or has neither image nor text.
    """
    product_id = text_of(row, "product_id")
    if product_id is None:
        raise RowError("product_id", "empty")
    title, category = text_of(row, "title"), text_of(row, "category")
    texts = [text for text in (title, text_of(row, "description")) if text]
    images, fields = _images(row, root), _fields(row)
    if not images and not texts and not fields:
        raise RowError("", f"product '{product_id}' has neither image nor title")
    others = row["metadata"] if kept is None else {name: row["metadata"].get(name) for name in kept}
    metadata = {name: value for name, cell in others.items() if (value := _metadata_value(cell)) is not None}
    return Product(product_id, images, ". ".join(texts) or None, title, category, metadata, origin, fields)


def parse_query(row: Row, root: PathOrUrl, origin: str, number: int, segments: Sequence[str]) -> Query:
    """Return the query of a row, whose default id is its `number` in the table.

    Raises:
        RowError: no split, no relevant product (NothingRelevantError), or neither image nor text.
    """
    targets, split = _graded(row), text_of(row, "split")
    if not targets or split is None:
        raise RowError("split" if targets else "product_id", "empty")
    if "/" in split or split.startswith(".") or not split.isprintable() or len(split.encode()) > MAX_SPLIT:
        raise RowError("split", f"'{plain(split)}' cannot be the name of a folder")
    images, text, fields = _images(row, root), text_of(row, "text"), _fields(row)
    if len(images) > 1:
        raise RowError("image", f"a query has one image, this one has {len(images)}")
    if not images and text is None and not fields:
        raise RowError("", "the query has neither image nor text")
    kind, weights = text_of(row, KIND), _weights(row, tuple(targets))
    return Query(
        query_id=text_of(row, "query_id") or f"query-{number:09d}",
        split=split,
        image=images[0] if images else None,
        text=text,
        target_ids=tuple(targets),
        target_grades=tuple(targets.values()),
        reference_ids=ids_of(row, "shown_product_id") or tuple(targets),
        segments=({KIND: kind} if kind else {}) | {name: text_of(row, name) or "none" for name in segments},
        origin=origin,
        weight=next(iter(weights.values())),
        product_weights=_others(weights),
        fields=fields,
    )


def join_query(first: Query, again: Query) -> Query:
    """Return a query with the products of two of its rows, each with its row's grade and weight.

    Raises:
        RowError: the rows differ in more than their products, or the second one names no further product.
    """
    # images in two cells of a table are not compared: that would mean reading them
    are_cells = isinstance(first.image, TableCell) and isinstance(again.image, TableCell)
    are_default = first.reference_ids == first.target_ids and again.reference_ids == again.target_ids
    differences = {
        "split": first.split != again.split,
        "image": first.image != again.image and not are_cells,
        "text": first.text != again.text,
        "shown_product_id": first.reference_ids != again.reference_ids and not are_default,
        **{name: first.segments.get(name) != label for name, label in again.segments.items()},
        **{name: first.fields.get(name) != again.fields.get(name) for name in (*first.fields, *again.fields)},
    }
    column = next((name for name, is_different in differences.items() if is_different), None)
    if column is not None or {*again.target_ids} <= {*first.target_ids}:
        other = f", with another {column}" if column is not None else ""
        reason = f"'{again.query_id}' is already in {first.origin}{other}"
        raise RowError("query_id", reason, IssueType.DUPLICATE_ID)
    return merge_query(first, again)


def merge_query(first: Query, again: Query) -> Query:
    """Return a query with the products of two of its rows; all else is taken from the first."""
    grades = dict(zip(again.target_ids, again.target_grades, strict=True))
    grades |= dict(zip(first.target_ids, first.target_grades, strict=True))
    targets = tuple(dict.fromkeys((*first.target_ids, *again.target_ids)))
    references = tuple(dict.fromkeys((*first.reference_ids, *again.reference_ids)))
    weights = {name: again.weight for name in again.target_ids if again.weight != first.weight}
    return replace(
        first,
        target_ids=targets,
        target_grades=tuple(grades[name] for name in targets),
        reference_ids=references,
        product_weights={name: weight for name, weight in weights.items() if name not in first.target_ids}
        | dict(first.product_weights),
    )


def text_of(row: Row, column: str) -> str | None:
    """Return a cell as text, None if it is empty.

    Raises:
        RowError: it is none: bytes, a list or an object; names the column.
    """
    return _scalar(row.get(column), column) or None


def known_id(row: Row, column: str) -> str:
    """Return the id of an invalid row for messages, "" where it has none."""
    try:
        return text_of(row, column) or ""
    except RowError:
        return ""


def _images(row: Row, root: PathOrUrl) -> tuple[ImageRef, ...]:
    images: list[ImageRef] = []
    for part in _parts(row, "image"):
        if isinstance(part, TableCell | TarMember):
            images.append(part)
        elif isinstance(part, Mapping):
            raise RowError("image", f"an image is a path or a URL, not {type(part).__name__}")
        elif text := _plain(part):
            images.append(join(root, text))
    return tuple(dict.fromkeys(images))


def _fields(row: Row) -> dict[str, str]:
    return {name: text for name, cell in row.get(DECLARED, {}).items() if (text := _plain(cell))}


def _weights(row: Row, targets: Sequence[str]) -> dict[str, float]:
    """Return the weight of each relevant product: one cell for all, or one for each product of the row."""
    parts = _parts(row, "weight")
    if len(parts) == 1:
        return dict.fromkeys(targets, _weight(_scalar(parts[0], "weight")))
    ids = ids_of(row, "product_id")
    if len(parts) != len(ids):
        raise RowError("weight", f"{len(parts)} weights of {len(ids)} products; give one, or one for each")
    weights = {name: _weight(_scalar(part, "weight")) for name, part in zip(ids, parts, strict=True)}
    return {name: weights[name] for name in targets}


def _others(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights that are not the first one."""
    first = next(iter(weights.values()))
    return {name: weight for name, weight in weights.items() if weight != first}


def _weight(text: str) -> float:
    if not text:
        return 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        decimal = f" with a decimal point: {text.replace(',', '.')}" if text.count(",") == 1 else ""
        raise RowError("weight", f"'{text}': give a number above 0{decimal}")
    return weight


def _graded(row: Row) -> dict[str, int]:
    """Return the relevant products with their grades: 1 by default, and without those of grade 0."""
    ids = ids_of(row, "product_id")
    texts = [_plain(part).removesuffix(".0") for part in _parts(row, "grade")]
    if not any(texts):
        return dict.fromkeys(ids, 1)
    if len(texts) != len(ids) or not all(map(_is_grade, texts)):
        reason = f"'{plain(row['grade'])}': give a whole number from 0 to {MAX_GRADE:,} for each of {len(ids)} products"
        raise RowError("grade", reason)
    graded = {product_id: int(text) for product_id, text in zip(ids, texts, strict=True) if int(text) > 0}
    if not graded:
        raise NothingRelevantError("grade", "no product of the query is relevant")
    return graded


def _is_grade(text: str) -> bool:
    return text.isdecimal() and len(text) <= len(str(MAX_GRADE)) and int(text) <= MAX_GRADE


def _metadata_value(cell: Any) -> str | int | float | None:
    """Return a cell as JSON has it: numbers stay numbers, all else becomes text, None for an empty cell."""
    cell = _whole(cell)
    if isinstance(cell, float) and math.isfinite(cell):
        return cell
    if isinstance(cell, int) and not isinstance(cell, bool) and abs(cell) < 1 << 63:
        return cell
    return _plain(cell) or None


def _whole(value: Any) -> Any:
    """Return a whole number as an int: a column of them with gaps is read as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < EXACT else value


def ids_of(row: Row, column: str) -> tuple[str, ...]:
    """Return the ids of a cell without repeats.

    Raises:
        RowError: one is a list or an object; names the column.
    """
    return tuple(dict.fromkeys(text for part in _parts(row, column) if (text := _scalar(part, column))))


def _parts(row: Row, column: str) -> list[Any]:
    value = row.get(column)
    if isinstance(value, str):
        return list(value.split(LIST_SEPARATOR))
    return value if isinstance(value, list) else [value]


def _scalar(value: Any, column: str) -> str:
    if isinstance(value, list | Mapping):
        raise RowError(column, f"{'a list' if isinstance(value, list) else 'an object'}, not a text")
    try:
        return _plain(value)
    except RowError as error:
        raise RowError(column, error.reason) from None


def _plain(value: Any) -> str:
    """Return a cell as text; null, and the words that writers use for it, is empty."""
    if isinstance(value, bytes):  # text of engines that do not mark it as text
        try:
            return value.decode().strip()
        except UnicodeDecodeError:
            raise RowError("", "a cell contains bytes that are not text") from None
    text = "" if value is None else str(_whole(value)).strip()
    return "" if text in MISSING else text
