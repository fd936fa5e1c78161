"""The fields of a row: the images and texts that a tower may read.

One table lists the four built-in fields; everything else iterates over it. A source may declare further text fields
(`data.source.fields`), which are stored by name and need no row here. Separate from `types`, so that processes that
only read and write files need no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SIDES = QUERY, PRODUCT = "query", "product"
IMAGE, TEXT = "image", "text"
TABLES = {QUERY: "queries", PRODUCT: "products"}  # of a manifest, by side
RESERVED = ("query_id", "product_id")  # keys of a sample that are no fields
DECLARED = "fields"  # key of a sample's JSON under which the texts of declared fields are stored


def side_of(name: str) -> str:
    """Return "query" or "product", the side that a field, tower or fusion belongs to.

    Raises:
        ValueError: the name starts with neither word.
    """
    side = name.split("_", 1)[0]
    if side not in SIDES:
        raise ValueError(f"tower or fusion '{name}': its name must start with 'query' or 'product'")
    return side


@dataclass(frozen=True)
class Field:
    """One input of a row.

    Attributes:
        name: starts with its side; also the name of the tower that reads it, unless the tower's config says otherwise.
        modality: IMAGE, stored as a member of a shard's tar file, or TEXT, stored in a sample's JSON member.
        column: of the manifest's table.
    """

    name: str
    modality: str
    column: str

    @property
    def side(self) -> str:
        return side_of(self.name)

    @property
    def table(self) -> str:
        """The manifest's table that has the column."""
        return TABLES[self.side]

    @property
    def id_name(self) -> str:
        """The key of a sample that names the row of that table."""
        return f"{self.side}_id"


FIELDS = {
    field.name: field
    for field in (
        Field("query_image", IMAGE, "image"),
        Field("product_image", IMAGE, "image"),
        Field("product_text", TEXT, "title"),
        Field("query_text", TEXT, "text"),
    )
}
IMAGE_FIELDS = tuple(name for name, field in FIELDS.items() if field.modality == IMAGE)
TEXT_FIELDS = tuple(name for name, field in FIELDS.items() if field.modality == TEXT)
QUERY_FIELDS = tuple(name for name, field in FIELDS.items() if field.side == QUERY)


def field_name(side: str, modality: str) -> str:
    """Return the name of a side's built-in image or text field."""
    return next(name for name, field in FIELDS.items() if (field.side, field.modality) == (side, modality))


QUERY_IMAGE, QUERY_TEXT = field_name(QUERY, IMAGE), field_name(QUERY, TEXT)
PRODUCT_IMAGE, PRODUCT_TEXT = field_name(PRODUCT, IMAGE), field_name(PRODUCT, TEXT)


def texts_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the text fields, built-in and declared, of a sample's JSON member by name, without empty ones."""
    texts = {name: text for name, text in facts.get(DECLARED, {}).items() if isinstance(text, str)}
    texts |= {name: facts.get(name, "") for name in TEXT_FIELDS}
    return {name: text for name, text in texts.items() if text}


def validate_declared(names: Iterable[str]) -> None:
    """Raise a ValueError for a name that a declared field cannot have."""
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or not name.startswith(tuple(f"{s}_" for s in SIDES)):
            raise ValueError(f"data.source.fields: '{name}' is no field; give a name such as query_category")
        if name in FIELDS or name in RESERVED:
            raise ValueError(f"data.source.fields.{name}: is built in; name its column in data.source.columns")
