"""Inputs of a retrieval task: queries with their relevant products, the gallery by row, and its distinct products.

Everything is matched by key, never by position.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mim_lightning.metrics.collectives import any_of_ranks
from mim_lightning.metrics.row_vectors import RowVectors, SharedVectors
from mim_lightning.types import NO_KEY


@dataclass(frozen=True)
class Queries:
    """The queries of a direction that are present, with their relevant products; the same in all processes."""

    vectors: Tensor | RowVectors | SharedVectors  # (Q, D)
    keys: Tensor  # (Q,) distinct
    relevant_keys: Tensor  # (Q, R) product keys, NO_KEY where a query has fewer
    category_keys: Tensor  # (Q,) NO_KEY where unknown
    grades: Tensor | None = None  # (Q, R) int64 relevance; below 1: not relevant; None: all 1
    left_out_keys: Tensor | None = None  # (Q, L) products that are not in the gallery of this query; None: all are

    def __post_init__(self) -> None:
        _check_rows("queries", self)
        if self.grades is not None and self.grades.shape != self.relevant_keys.shape:
            shapes = tuple(self.relevant_keys.shape), tuple(self.grades.shape)
            raise ValueError(f"queries: relevant_keys {shapes[0]} and grades {shapes[1]} must have one shape")

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Tensor | slice) -> Queries:
        """Return the rows chosen by a bool mask, positions or a slice."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        taken: dict[str, Any] = {name: None if part is None else part[rows] for name, part in parts.items()}
        return Queries(**taken)


@dataclass(frozen=True)
class Gallery:
    """The gallery rows of a direction that are present; several rows (images) may belong to one product.

    Of several processes each has its own rows; rows of one product may be in several.
    """

    vectors: Tensor | RowVectors  # (N, D)
    product_keys: Tensor  # (N,)
    category_keys: Tensor  # (N,) NO_KEY where unknown

    def __post_init__(self) -> None:
        _check_rows("gallery", self)


@dataclass(frozen=True)
class Catalog:
    """The distinct products of a gallery, ascending by key; a category is known if one of the rows has it.

    Of several processes each has the products of its own rows.
    """

    product_keys: Tensor  # (P,)
    category_keys: Tensor  # (P,) NO_KEY where unknown

    def __len__(self) -> int:
        return len(self.product_keys)

    @classmethod
    def of(cls, gallery: Gallery) -> Catalog:
        keys_P, idx_N = gallery.product_keys.unique(return_inverse=True)
        categories_P = torch.full_like(keys_P, NO_KEY).scatter_reduce_(0, idx_N, gallery.category_keys, "amax")
        return cls(keys_P, categories_P)

    def categories_of(self, product_keys: Tensor) -> Tensor:
        """Return the category of each product, in the shape of the keys; NO_KEY has none, nor an unknown product."""
        if not len(self):
            return torch.full_like(product_keys, NO_KEY)
        places = torch.searchsorted(self.product_keys, product_keys.contiguous()).clamp_(max=len(self) - 1)
        is_known = (self.product_keys[places] == product_keys) & (product_keys != NO_KEY)
        return self.category_keys[places].where(is_known, NO_KEY)


def select_answerable(queries: Queries, catalog: Catalog) -> Queries:
    """Return the queries with a relevant product in the catalog of any process, ascending by key.

    Their relevant keys ascend in each row, NO_KEY first, with their grades, 0 for NO_KEY. Products that are not in the
    catalog, that are left out for the query, or that have no grade are removed; a key that is given twice counts once,
    with its highest grade.
    """
    relevant_QR, grades_QR = _in_order(queries.relevant_keys, queries.grades)
    is_known = any_of_ranks(torch.isin(relevant_QR, catalog.product_keys)) & (grades_QR > 0)
    if queries.left_out_keys is not None:
        for left_out_Q in queries.left_out_keys.unbind(dim=1):
            is_known &= relevant_QR != left_out_Q[:, None]
    is_known[:, :-1] &= relevant_QR[:, :-1] != relevant_QR[:, 1:]  # the last of equal keys has the highest grade
    relevant_QR, grades_QR = _in_order(relevant_QR.where(is_known, NO_KEY), grades_QR.where(is_known, 0))
    in_order = queries.keys.argsort(stable=True)
    kept = in_order[is_known.any(dim=1)[in_order]]
    return replace(queries, relevant_keys=relevant_QR, grades=grades_QR).take(kept)


def cluster_keys_of(answerable: Queries) -> Tensor:
    """Return the relevant product of the smallest key of each answerable query (Q,): its cluster for the bootstrap."""
    keys = answerable.relevant_keys
    return keys.where(keys != NO_KEY, torch.iinfo(keys.dtype).max).amin(dim=1)


def grades_of_hits(products_QK: Tensor, relevant_QR: Tensor, grades_QR: Tensor) -> Tensor:
    """Return the grade of each hit (Q, K), 0 if not relevant; relevant keys in the order of `select_answerable`."""
    # binary search in each sorted row: comparing all with all would take Q * K * R values
    place_QK = torch.searchsorted(relevant_QR, products_QK).clamp_(max=relevant_QR.shape[1] - 1)
    is_relevant = relevant_QR.gather(1, place_QK) == products_QK
    return grades_QR.gather(1, place_QK).masked_fill_(~is_relevant, 0)


def _in_order(keys_QR: Tensor, grades_QR: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both ascending by key in each row, equal keys ascending by grade."""
    grades_QR = (keys_QR != NO_KEY).long() if grades_QR is None else grades_QR.to(keys_QR)
    grades_QR, by_grade = grades_QR.sort(dim=1)
    keys_QR, by_key = keys_QR.gather(1, by_grade).sort(dim=1, stable=True)
    return keys_QR, grades_QR.gather(1, by_key)


def _check_rows(what: str, side: Queries | Gallery) -> None:
    sizes = {f.name: len(part) for f in fields(side) if (part := getattr(side, f.name)) is not None}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{what}: every part needs as many rows, not {sizes}")
