"""The manifest: a table of products and a table of queries, read into checked rows.

CSV, Parquet or JSONL comes in, a Manifest goes out; every fault is one ValueError that names file, row and
column. Sources end here, `shards` and the `prepare` door begin here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mim_lightning.data.tables import ColumnNames, TableSpec, read_rows, require_name, table_id

PRODUCTS = TableSpec(
    "products",
    known=("product_id", "image", "title", "description", "category"),
    required=("product_id", "image", "title"),
    others="metadata",
)
QUERIES = TableSpec(
    "queries",
    known=("query_id", "split", "image", "text", "product_id", "grade", "shown_product_id"),
    required=("split", "image", "product_id"),
)
LIST_SEPARATOR = "|"  # several values in one CSV cell


@dataclass(frozen=True)
class Product:
    """A catalogue item; `text` is the title, a full stop and the description."""

    product_id: str
    images: tuple[Path, ...]
    text: str | None
    title: str | None
    category: str | None
    metadata: Mapping[str, str | float]  # further columns, to show and filter by; empty cells are left out
    origin: str  # "products.csv, row 7", for errors


@dataclass(frozen=True)
class Query:
    """A shopper's photo, a few words, or both, and the products that answer it."""

    query_id: str
    split: str
    image: Path | None
    text: str | None
    asked_ids: tuple[str, ...]
    asked_grades: tuple[int, ...]  # how relevant each asked product is, 1 or more
    shown_ids: tuple[str, ...]
    segments: Mapping[str, str]  # further columns by which results are told apart
    origin: str


@dataclass(frozen=True)
class Manifest:
    products: dict[str, Product]
    queries: list[Query]
    products_path: Path
    queries_path: Path | None  # None: a catalogue alone, to be searched

    def split(self, name: str) -> list[Query]:
        """Return the queries of one split, at least one.

        Raises:
            ValueError: the split is empty.
        """
        rows = [query for query in self.queries if query.split == name]
        if not rows:
            splits = sorted({query.split for query in self.queries})
            raise ValueError(f"{self.queries_path}: column 'split' has no row '{name}'; it has {splits}")
        return rows


class Source(Protocol):
    """Where a manifest comes from; `work_dir` is a folder the source may fill with files of its own."""

    def read(self, work_dir: Path) -> Manifest: ...

    def describe(self) -> dict[str, Any]:
        """Return what tells this source's data from another's: arguments, or the tables' `table_id`."""
        ...


class ManifestSource:
    """A manifest in two files.

    Args:
        products, queries: the tables; no queries: a catalogue alone, to be searched but not trained on.
        columns: our column name -> the file's, by table; None: there is none.
        image_root: where relative image paths start; None: at their table.
        segments: further columns of the queries by which results are told apart.
        metadata: further columns of the products to keep, to show and filter by; None: all.
    """

    def __init__(
        self,
        products: str,
        queries: str | None,
        columns: Mapping[str, ColumnNames] | None = None,
        image_root: str | None = None,
        segments: Sequence[str] = (),
        metadata: Sequence[str] | None = None,
    ) -> None:
        self.products, self.queries = Path(products), Path(queries) if queries else None
        self.columns, self.segments = columns or {}, tuple(segments)
        self.image_root = Path(image_root) if image_root else None
        self.metadata = None if metadata is None else tuple(metadata)

    def read(self, work_dir: Path) -> Manifest:
        return read_manifest(self.products, self.queries, self.columns, self.image_root, self.segments, self.metadata)

    def describe(self) -> dict[str, Any]:
        metadata = {} if self.metadata is None else {"metadata": list(self.metadata)}
        return metadata | {
            "products": table_id(self.products),
            "queries": table_id(self.queries) if self.queries else None,
            "image_root": str(self.image_root) if self.image_root else None,
            "columns": {table: dict(names) for table, names in self.columns.items()},
            "segments": list(self.segments),
        }


def read_manifest(
    products_path: Path,
    queries_path: Path | None,
    columns: Mapping[str, ColumnNames] | None = None,
    image_root: Path | None = None,
    segments: Sequence[str] = (),
    metadata: Sequence[str] | None = None,
) -> Manifest:
    """Read and check both tables; relative image paths start at `image_root`, else at their table's folder.

    `segments` and `metadata` are further columns to keep of queries and products, see there.

    Raises:
        ValueError: a file or column is missing, an id is empty, repeated or unknown.
    """
    columns = columns or {}
    for table in columns:
        require_name(table, (PRODUCTS.name, QUERIES.name), "data.source.columns", "table")
    products = _read_products(products_path, columns.get("products", {}), image_root, metadata)
    queries: list[Query] = []
    seen: dict[str, str] = {}
    wanted = replace(QUERIES, known=(*QUERIES.known, *segments), required=(*QUERIES.required, *segments))
    query_rows = read_rows(queries_path, wanted, columns.get("queries", {})) if queries_path else ()
    for origin, row in query_rows:
        assert queries_path is not None
        kept = {name: _plain(row[name]) or "none" for name in segments}
        query = _query(row, image_root or queries_path.parent, kept, origin, len(queries))
        for column, ids in (("product_id", query.asked_ids), ("shown_product_id", query.shown_ids)):
            _require_known(ids, products, f"{origin}, column '{column}'", products_path)
        if query.query_id in seen:
            raise ValueError(
                f"{origin}, column 'query_id': '{query.query_id}' stands already in {seen[query.query_id]}"
            )
        seen[query.query_id] = origin
        queries.append(query)
    return Manifest(products, queries, products_path, queries_path)


def _read_products(
    path: Path, columns: ColumnNames, image_root: Path | None, metadata: Sequence[str] | None
) -> dict[str, Product]:
    products: dict[str, Product] = {}
    for origin, row in read_rows(path, PRODUCTS, columns):
        for name in metadata or ():
            if name not in row["metadata"]:
                raise ValueError(f"{origin}: missing column '{name}', named by data.source.metadata")
        product = _product(row, image_root or path.parent, origin, metadata)
        if product.product_id in products:
            first = products[product.product_id].origin
            raise ValueError(f"{origin}, column 'product_id': '{product.product_id}' stands already in {first}")
        products[product.product_id] = product
    if not products:
        raise ValueError(f"{path}: the table has no rows")
    return products


def _product(row: Mapping[str, Any], root: Path, origin: str, kept: Sequence[str] | None) -> Product:
    product_id = _text(row, "product_id")
    if product_id is None:
        raise ValueError(f"{origin}, column 'product_id': empty")
    texts = [text for column in ("title", "description") if (text := _text(row, column))]
    images = tuple(root / image for image in _values(row, "image"))
    if not images and not texts:
        raise ValueError(f"{origin}: product '{product_id}' has neither image nor title")
    others = row["metadata"] if kept is None else {name: row["metadata"][name] for name in kept}
    metadata = {name: value for name, cell in others.items() if (value := _metadata_value(cell)) is not None}
    title, category = _text(row, "title"), _text(row, "category")
    return Product(product_id, images, ". ".join(texts) or None, title, category, metadata, origin)


def _metadata_value(cell: Any) -> str | float | None:
    """Return a cell as JSON has it: numbers stay numbers, all else becomes text, empty cells nothing."""
    if isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell):
        return cell
    return _plain(cell) or None


def _query(row: Mapping[str, Any], root: Path, segments: Mapping[str, str], origin: str, number: int) -> Query:
    asked = _graded(row, origin)
    split = _text(row, "split")
    if not asked or split is None:
        raise ValueError(f"{origin}, column '{'split' if asked else 'product_id'}': empty")
    if "/" in split or split.startswith("."):
        raise ValueError(f"{origin}, column 'split': '{split}' cannot be the name of a folder")
    images = _values(row, "image")
    if len(images) > 1:
        raise ValueError(f"{origin}, column 'image': a query has one image, here are {len(images)}")
    text = _text(row, "text")
    if not images and text is None:
        raise ValueError(f"{origin}: the query has neither image nor text")
    return Query(
        query_id=_text(row, "query_id") or f"query-{number:09d}",
        split=split,
        image=root / images[0] if images else None,
        text=text,
        asked_ids=tuple(asked),
        asked_grades=tuple(asked.values()),
        shown_ids=_values(row, "shown_product_id") or tuple(asked),
        segments=segments,
        origin=origin,
    )


def _graded(row: Mapping[str, Any], origin: str) -> dict[str, int]:
    """Return the relevant products with their grades: 1 without any, and those of grade 0 left out."""
    ids = _values(row, "product_id")
    # a column of whole numbers with gaps comes as floats
    texts = [_plain(part).removesuffix(".0") for part in _parts(row, "grade")]
    if not any(texts):
        return dict.fromkeys(ids, 1)
    if len(texts) != len(ids) or not all(text.isdecimal() for text in texts):
        raise ValueError(
            f"{origin}, column 'grade': '{row['grade']}': give a whole number from 0 for each of {len(ids)} products"
        )
    graded = {product_id: int(text) for product_id, text in zip(ids, texts, strict=True) if int(text) > 0}
    if not graded:
        raise ValueError(f"{origin}, column 'grade': no product of the query is relevant")
    return graded


def _require_known(ids: tuple[str, ...], products: Mapping[str, Product], where: str, path: Path) -> None:
    for product_id in ids:
        if product_id not in products:
            raise ValueError(f"{where}: product '{product_id}' is not in {path}")


def _text(row: Mapping[str, Any], column: str) -> str | None:
    return _plain(row.get(column)) or None


def _values(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for part in _parts(row, column) if (text := _plain(part))))


def _parts(row: Mapping[str, Any], column: str) -> list[Any]:
    value = row.get(column)
    return value if isinstance(value, list) else _plain(value).split(LIST_SEPARATOR)


def _plain(value: Any) -> str:
    """Return a cell as text; null and NaN, which some writers put for it, are empty."""
    return "" if value is None or value != value else str(value).strip()
