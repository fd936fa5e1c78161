"""The products and queries of a manifest in a `RowStore`: their columns, and the mapping and sequence they look like.

Queries over all rows name the columns; what no query asks for is packed into `body`.
"""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from mim_lightning.data.images.reader import ImageRef, TableCell, TarMember
from mim_lightning.data.manifest.decoding import is_text
from mim_lightning.data.manifest.row_store import RowStore, current_store
from mim_lightning.data.manifest.rows import Product, Query

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode  # `json.loads` takes twice as long for texts as short as these
# `position` is that of the row among all rows of the source; `images` and `image` are image keys; null references are
# the targets
PRODUCTS = (
    "position BIGINT, product_id VARCHAR, origin VARCHAR, category VARCHAR, has_text BOOLEAN, has_markup BOOLEAN, "
    "fields VARCHAR[], images VARCHAR[], body VARCHAR"
)
QUERIES = (
    "position BIGINT, query_id VARCHAR, origin VARCHAR, split VARCHAR, has_text BOOLEAN, has_markup BOOLEAN, "
    "fields VARCHAR[], image VARCHAR, targets VARCHAR[], reference_ids VARCHAR[], body VARCHAR"
)


def named_products(queries: str) -> str:
    """Return the query for the products that each row of a table of queries names."""
    return f"SELECT position, unnest(targets || ifnull(reference_ids, [])) AS product_id FROM {queries}"


def image_key(ref: ImageRef) -> str:
    """Return a reference as text; equal references have equal keys."""
    if isinstance(ref, Path):
        return _pack("file", str(ref))
    if isinstance(ref, str):
        return _pack("url", ref)
    if isinstance(ref, TableCell):
        return _pack("cell", ref.path, ref.row, ref.column, ref.item)
    return _pack("member", ref.path, ref.name, ref.offset, ref.size)


def image_of(key: str) -> ImageRef:
    """Return the reference of a key."""
    kind, *values = _unpack(key)
    if kind == "file":
        return Path(values[0])
    return values[0] if kind == "url" else (TableCell if kind == "cell" else TarMember)(*values)


def pack_product(position: int, product: Product) -> tuple[Any, ...]:
    """Return the row of a product, see PRODUCTS."""
    texts = product.text, product.title, product.category, *product.fields.values()
    head = position, product.product_id, str(product.origin), product.category, product.text is not None
    flags = _has_markup(texts), list(product.fields)
    images = [image_key(image) for image in product.images]
    return *head, *flags, images, _pack(product.text, product.title, dict(product.metadata), dict(product.fields))


def unpack_product(row: Sequence[Any]) -> Product:
    """Return the product of a row."""
    _, product_id, origin, category, _, _, _, images, body = row
    text, title, metadata, fields = _unpack(body)
    return Product(product_id, tuple(map(image_of, images)), text, title, category, metadata, origin, fields)


def pack_query(position: int, query: Query) -> tuple[Any, ...]:
    """Return the row of a query, see QUERIES."""
    head = position, query.query_id, str(query.origin), query.split, query.text is not None
    flags = _has_markup((query.text, *query.fields.values())), list(query.fields)
    weights = query.weight, dict(query.product_weights)
    body = _pack(query.text, query.target_grades, dict(query.segments), *weights, dict(query.fields))
    image = None if query.image is None else image_key(query.image)
    references = None if query.reference_ids == query.target_ids else list(query.reference_ids)
    return *head, *flags, image, list(query.target_ids), references, body


def unpack_query(row: Sequence[Any]) -> Query:
    """Return the query of a row."""
    _, query_id, origin, split, _, _, _, image, targets, references, body = row
    text, grades, segments, weight, product_weights, fields = _unpack(body)
    target_ids = tuple(targets)
    return Query(
        query_id,
        split,
        None if image is None else image_of(image),
        text,
        target_ids,
        tuple(grades),
        target_ids if references is None else tuple(references),
        segments,
        origin,
        weight,
        product_weights,
        fields,
    )


def _has_markup(texts: Iterable[str | None]) -> bool:
    """Return whether one of the texts may have HTML."""
    return any("<" in text or "&" in text for text in texts if text)


def _pack(*body: Any) -> str:
    text = _encode(body)
    return text if is_text(text) else json.dumps(body)


def _unpack(body: str) -> Any:
    return _decode(body)[0]


@dataclass(frozen=True)
class StoredRows:
    """The tables of a manifest's products and queries; tables do not change, another version has others."""

    store: RowStore
    products: str
    queries: str

    def read_products(self, condition: str = "true", values: Sequence[Any] = ()) -> Iterator[Product]:
        """Yield the products for which an SQL condition holds, in their order."""
        return map(unpack_product, self.store.read(f"FROM {self.products} WHERE {condition}", values))

    def read_queries(self, condition: str = "true", values: Sequence[Any] = ()) -> Iterator[Query]:
        """Yield the queries for which an SQL condition holds, in their order."""
        return map(unpack_query, self.store.read(f"FROM {self.queries} WHERE {condition}", values))

    def product_ids(self) -> set[str]:
        """Return the ids of all products, about a hundred bytes each."""
        return {product_id for (product_id,) in self.store.read(f"SELECT product_id FROM {self.products}")}

    def image_refs(self) -> Iterator[ImageRef]:
        """Yield the images of products, then of queries, in the order of the tables."""
        for (images,) in self.store.read(f"SELECT images FROM {self.products} WHERE len(images) > 0"):
            yield from map(image_of, images)
        for (image,) in self.store.read(f"SELECT image FROM {self.queries} WHERE image IS NOT NULL"):
            yield image_of(image)


def store_rows(products: Iterable[Product], queries: Iterable[Query], store: RowStore | None = None) -> StoredRows:
    """Write rows that were in memory to a store, by default `current_store`."""
    store = store or current_store()
    rows = StoredRows(store, store.create("products", PRODUCTS), store.create("queries", QUERIES))
    store.write(rows.products, (pack_product(*numbered) for numbered in enumerate(products)))
    store.write(rows.queries, (pack_query(*numbered) for numbered in enumerate(queries)))
    return rows


class StoredProducts(Mapping[str, Product]):
    """The products of stored rows by id, in their order; each look-up is a query."""

    def __init__(self, rows: StoredRows) -> None:
        self.rows = rows

    def __getitem__(self, product_id: str) -> Product:
        found = self.rows.store.run(f"FROM {self.rows.products} WHERE product_id = ?", [product_id])
        if not found:
            raise KeyError(product_id)
        return unpack_product(found[0])

    def __iter__(self) -> Iterator[str]:
        return (row[0] for row in self.rows.store.read(f"SELECT product_id FROM {self.rows.products}"))

    def __len__(self) -> int:
        return self.rows.store.number(f"SELECT count(*) FROM {self.rows.products}")

    def values(self) -> ValuesView[Product]:
        return _Products(self)

    def items(self) -> ItemsView[str, Product]:
        return _Items(self)


class _Products(ValuesView[Product]):
    _mapping: StoredProducts

    def __iter__(self) -> Iterator[Product]:
        return self._mapping.rows.read_products()


class _Items(ItemsView[str, Product]):
    _mapping: StoredProducts

    def __iter__(self) -> Iterator[tuple[str, Product]]:
        return ((product.product_id, product) for product in self._mapping.rows.read_products())


class StoredQueries(Sequence[Query]):
    """The queries of stored rows in their order; each look-up is a query."""

    def __init__(self, rows: StoredRows) -> None:
        self.rows = rows

    @overload
    def __getitem__(self, idx: int) -> Query: ...

    @overload
    def __getitem__(self, idx: slice) -> list[Query]: ...

    def __getitem__(self, idx: int | slice) -> Query | list[Query]:
        if isinstance(idx, slice):
            return [self[i] for i in range(*idx.indices(len(self)))]
        place = idx + len(self) if idx < 0 else idx
        found = self.rows.store.run(f"FROM {self.rows.queries} LIMIT 1 OFFSET ?", [place]) if place >= 0 else []
        if not found:
            raise IndexError(idx)
        return unpack_query(found[0])

    def __iter__(self) -> Iterator[Query]:
        return self.rows.read_queries()

    def __len__(self) -> int:
        return self.rows.store.number(f"SELECT count(*) FROM {self.rows.queries}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
