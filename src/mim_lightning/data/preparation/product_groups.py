"""Products that may stand for each other, so that none is a negative of another's query: same picture, same group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet

from mim_lightning.data.preparation.prepared import PreparedData
from mim_lightning.data.validation.duplicates import MAX_COMPARED, are_colors_close, near_equal
from mim_lightning.data.validation.image_hashes import find_hash_files
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.ids import hash_id
from mim_lightning.io.damaged_file import errors_as_damaged_file


@dataclass(frozen=True, eq=False)
class ProductGroups:
    """Groups of two or more products, which do not overlap."""

    product_keys: np.ndarray = field(repr=False)  # (P,) int64, ascending
    group_keys: np.ndarray = field(repr=False)  # (P,) of each: the smallest key of its group

    def __len__(self) -> int:
        """Return the number of products that are in a group."""
        return len(self.product_keys)


def find_product_groups(
    prepared: PreparedData,
    group_column: str | None,
    skip_duplicates: bool,
    settings: ValidationSettings | None = None,
    section: str = "mining",
) -> ProductGroups:
    """Return the products of a catalog that share a value of a column, or a picture, also by way of a third product.

    Pictures are compared as in validation: perceptual hashes at most `max_hash_distance` bits apart, and close colors.

    Args:
        group_column: of the stored metadata, or `category`; None: none.
        skip_duplicates: compare pictures, where `prepare` kept their hashes: in a local folder.
        section: of the config, whose `group_column` it is.

    Raises:
        ValueError: no product has the column.
    """
    parents: dict[int, int] = {}

    def root(key: int) -> int:
        while (parent := parents.setdefault(key, key)) != key:
            parents[key] = parents[parent]
            key = parents[key]
        return key

    pairs = _in_one_group(prepared, group_column, section) if group_column is not None else iter(())
    for found in (pairs, _with_one_picture(prepared, settings or ValidationSettings()) if skip_duplicates else ()):
        for left, right in found:
            low, high = sorted((root(left), root(right)))
            parents[high] = low
    product_keys = np.array(sorted(parents), dtype=np.int64)
    return ProductGroups(product_keys, np.array([root(key) for key in product_keys.tolist()], dtype=np.int64))


def _in_one_group(prepared: PreparedData, column: str, section: str) -> Iterator[tuple[int, int]]:
    """Yield each product with the first one that has the same value."""
    first: dict[str, int] = {}
    known: set[str] = {"category"}
    for facts in prepared.catalog().all_facts():
        metadata = facts.get("metadata", {})
        known |= metadata.keys()
        value = facts.get(column) if column == "category" else metadata.get(column)
        if value not in (None, ""):
            key = hash_id(facts["product_id"])
            if (other := first.setdefault(str(value), key)) != key:
                yield other, key
    if not first:
        raise ValueError(f"{section}.group_column={column}: no product has a value of it; there are {', '.join(known)}")


def _with_one_picture(prepared: PreparedData, settings: ValidationSettings) -> Iterator[tuple[int, int]]:
    """Yield the pairs of products whose pictures are nearly equal; of one hash, MAX_COMPARED are compared."""
    files = find_hash_files(prepared.folder, prepared.version) if isinstance(prepared.folder, Path) else []
    images: dict[str, list[tuple[int, str]]] = {}
    for path in files:  # a product that came again has its images in the later file
        with errors_as_damaged_file(path):
            rows = pyarrow.parquet.read_table(path, columns=["split", "id", "hash", "colors", "uniform_fraction"])
            found: dict[str, list[tuple[int, str]]] = defaultdict(list)
            for row in rows.filter(rows["split"].is_null()).to_pylist():
                is_image = row["hash"] is not None and row["uniform_fraction"] < settings.blank_image_fraction
                found[row["id"]] += [(row["hash"], row["colors"])] if is_image else []
            images |= found
    by_hash: dict[int, dict[str, str]] = defaultdict(dict)
    for product_id, own in images.items():
        for value, colors in own:
            if len(by_hash[value]) < MAX_COMPARED:
                by_hash[value][product_id] = colors
    hashes = np.array(sorted(by_hash), dtype=np.uint64)
    for left, right, _ in near_equal(hashes, hashes, settings.max_hash_distance) if len(hashes) else ():
        if left > right:
            continue
        lefts, rights = (by_hash[int(hashes[place])].items() for place in (left, right))
        pairs = combinations(lefts, 2) if left == right else ((one, other) for one in lefts for other in rights)
        for (one, colors), (other, other_colors) in pairs:
            if one != other and are_colors_close(colors, other_colors):
                yield hash_id(one), hash_id(other)
