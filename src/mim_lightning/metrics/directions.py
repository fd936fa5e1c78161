"""Evaluation of directions on tables of embeddings: which queries count, their vectors, and their relevant products.

It needs no encoder, so a finished evaluation can be repeated with other fusion weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mim_lightning.fields import QUERY_IMAGE, QUERY_TEXT
from mim_lightning.metrics import EmbeddingTable, Gallery, NothingToRankError, Queries, evaluate_direction
from mim_lightning.metrics.collectives import any_of_ranks, gather_rows, world
from mim_lightning.metrics.row_vectors import RowVectors, SharedVectors
from mim_lightning.model.fusion import Fusion, Fusions, as_fusion
from mim_lightning.model.score_combination import NUM_REFERENCE_PRODUCTS, combination_of
from mim_lightning.types import (
    NO_KEY,
    QUERY_FIELDS,
    REFERENCE,
    Batch,
    Direction,
    QueryCounts,
    RetrievalReport,
)
from mim_lightning.widths import truncate

IDS = ("query_keys", "product_keys", "asked_keys", "asked_grades", "shown_keys", "category_keys")  # as stored
RELEVANT_COLUMNS = IDS[2:5]  # with a value for each relevant product
HAS, IMAGE = "has_", "picture_keys"

GALLERY_COLUMNS = ("product_keys", "category_keys", IMAGE)  # all that ranking reads of the gallery
PHOTO, WORDS = QUERY_IMAGE, QUERY_TEXT


def column_names(fields: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of the columns of a table, with those of declared query fields."""
    return (*IDS, *(f"{HAS}{name}" for name in dict.fromkeys((*QUERY_FIELDS, *fields))), IMAGE)


COLUMNS = column_names()


def columns_of(batch: Batch, fields: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return the columns `column_names` of an evaluation batch, whose rows are all queries or all products."""
    ids = batch.query_keys, batch.product_keys, batch.target_keys, batch.target_grades, batch.reference_keys
    columns = dict(zip(IDS, (*ids, batch.category_keys), strict=True))
    none = torch.full_like(batch.query_keys, NO_KEY)
    taken = {name: rows >= 0 for name, rows in batch.rows.items()} | batch.has_field
    columns |= {
        f"{HAS}{name}": taken.get(name, torch.zeros_like(batch.is_padding)) for name in (*QUERY_FIELDS, *fields)
    }
    return columns | {IMAGE: next(iter(batch.image_keys.values()), none)}


def counts_row(
    direction: Direction, fields: Set[str], fusions: Fusions, fields_of: Mapping[str, Sequence[str]] | None = None
) -> bool:
    """Return whether a direction counts a query with these towers and fields, if the gallery has a relevant product.

    Args:
        fields: the row's, with the towers that it has inputs for.
        fields_of: of the towers that read other fields than that of their own name.
    """
    has_input = bool(fields & {*direction.parts(fusions)})
    is_such = fields >= {*direction.needs(fusions, fields_of or {})} and not fields & {*direction.excludes}
    return has_input and is_such


def evaluate_directions(
    directions: Mapping[str, Direction],
    queries: EmbeddingTable,
    gallery: EmbeddingTable,
    fusions: Fusions,
    fields: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> dict[str, RetrievalReport]:
    """Evaluate each direction on tables with the columns `COLUMNS`; those of older versions may have `IDS` only.

    Several processes all call it, each with its own rows of both tables, as `EmbeddingCollector` gives them: none that
    another has, maybe none at all. All get the reports of one process that has the whole tables. No process gets the
    vectors of another, but for a block of queries at a time; ids of queries are exchanged whole.

    Args:
        directions: by name.
        queries, gallery: vectors by tower; rows without the direction's tower are left out.
        fusions: the sides that are no tower.
        fields: of the towers that read other fields than that of their own name.
        options: of `evaluate_direction`; `device`, on which vectors are ranked, else where they are stored; `width`, to
            which vectors are cut, those of a fusion after it was computed.

    Raises:
        NothingToRankError: a direction counts no query.
        ValueError: no row of the gallery has the tower or fusion of a direction.
    """
    shared = SharedQueries.of(queries)
    return {
        name: _evaluate(name, direction, shared, gallery, fusions, fields or {}, options)
        for name, direction in directions.items()
    }


def evaluate_countable(
    directions: Mapping[str, Direction],
    queries: EmbeddingTable,
    gallery: EmbeddingTable,
    fusions: Fusions,
    fields: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> tuple[dict[str, RetrievalReport], dict[str, str]]:
    """Evaluate the directions that count a query, as `evaluate_directions`, and return why the others count none."""
    reports: dict[str, RetrievalReport] = {}
    shared = SharedQueries.of(queries)
    empty: dict[str, str] = {}
    for name, direction in directions.items():
        try:
            reports[name] = _evaluate(name, direction, shared, gallery, fusions, fields or {}, options)
        except NothingToRankError as error:
            empty[name] = str(error)
    return reports, empty


@dataclass(frozen=True)
class SharedQueries:
    """The queries of all processes: ids and presence in each, the vectors where they were embedded."""

    ids: EmbeddingTable  # of all, ascending by key, without vectors
    own: EmbeddingTable  # of this process
    owners: Tensor | None  # (Q,) the rank that has each; None: this process has all
    places: Tensor  # (Q,) its position in the table of that rank

    @classmethod
    def of(cls, queries: EmbeddingTable) -> SharedQueries:
        """Exchange the ids; all processes must call it."""
        places = torch.arange(len(queries), device=queries.row_keys.device)
        rank, world_size = world()
        if world_size == 1:
            return cls(EmbeddingTable(queries.row_keys, {}, queries.present, queries.columns), queries, None, places)
        whole = EmbeddingTable(
            gather_rows(queries.row_keys),
            {},
            {name: gather_rows(part) for name, part in queries.present.items()},
            {name: gather_rows(part) for name, part in queries.columns.items()},
        )
        owners, places = gather_rows(torch.full_like(places, rank)), gather_rows(places)
        order = whole.row_keys.argsort()
        return cls(whole.take(order), queries, owners[order], places[order])

    def vectors(self, own: RowVectors) -> RowVectors | SharedVectors:
        """Return the vectors of all queries, of those of this process's rows."""
        return own if self.owners is None else SharedVectors(own, self.owners, self.places)


def _evaluate(
    name: str,
    direction: Direction,
    shared: SharedQueries,
    gallery: EmbeddingTable,
    fusions: Fusions,
    fields: Mapping[str, Sequence[str]],
    options: Mapping[str, Any],
) -> RetrievalReport:
    options = dict(options)
    device, cut = torch.device(options.pop("device", None) or shared.own.row_keys.device), options.pop("width", None)
    width = next(iter(shared.own.vectors.values())).shape[1]
    built = {fused: as_fusion(fused, given, width) for fused, given in fusions.items()}
    read = direction.reads(built, fields)
    num_rows, gallery_columns, queries = len(shared.ids), gallery.columns, _with_fields(shared.ids)
    query_fusion, gallery_fusion = built.get(direction.query), built.get(direction.gallery)
    combination = combination_of(query_fusion, gallery_fusion)
    present = presence_of(direction.query, queries, query_fusion)
    is_offered = presence_of(direction.gallery, gallery, gallery_fusion)
    is_counted = present & _is_of_kind(direction, queries, built, fields)
    num_other_kind = num_rows - int(is_counted.sum())
    if not is_counted.any():
        needs = direction.needs(built, fields)
        wanted = " and a ".join(needs) if needs else " or a ".join(direction.parts(built))
        without = "".join(f" and no {field}" for field in direction.excludes)
        raise NothingToRankError(f"directions.{name}: no validation query has a {wanted}{without}")
    if not any_of_ranks(is_offered.any()):
        raise ValueError(
            f"directions.{name}: no product has a {direction.gallery}; choose a model without it, "
            f"or directions.{name}=null"
        )
    query_vectors = shared.vectors(read_vectors(direction.query, shared.own, query_fusion, device, cut))[is_counted]
    queries = queries.take(is_counted)
    truth, grades = truth_of_queries(direction, queries)
    is_in_gallery = _is_in_gallery(direction, queries, truth, gallery_columns, PHOTO in read)
    is_first = torch.ones_like(is_in_gallery)
    if read == {PHOTO}:
        is_first = is_in_gallery | _is_first_of_its_photo(queries, truth, grades)
    kept = is_first & ~is_in_gallery
    if not kept.any():
        raise NothingToRankError(
            f"directions.{name}: the image of every query is in the gallery: such queries would find themselves"
        )
    candidates = Queries(
        vectors=query_vectors,
        keys=queries.columns["query_keys"],
        relevant_keys=truth,
        category_keys=queries.columns["category_keys"],
        grades=grades,
        left_out_keys=queries.columns["shown_keys"] if direction.leave_out == REFERENCE else None,
    )
    offered = Gallery(
        read_vectors(direction.gallery, gallery, gallery_fusion, device, cut)[is_offered],
        gallery.columns["product_keys"][is_offered],
        gallery.columns["category_keys"][is_offered],
    )
    if combination is not None:
        reference = reference_vectors(offered, gallery.row_keys[is_offered])
        options["score"] = partial(combination, reference=combination.reference_parts(reference))
    try:
        report = evaluate_direction(name, candidates.take(kept), offered, **options)
    except NothingToRankError:
        what = (
            "asks for another product than its image shows" if direction.leave_out else "has an answer in the gallery"
        )
        raise NothingToRankError(f"directions.{name}: none of {int(kept.sum())} queries {what}") from None
    has_text = _has(WORDS, queries).cpu()[torch.isin(queries.columns["query_keys"].cpu(), report.hits.query_keys)]
    counts = QueryCounts(
        num_with_text=int(has_text.sum()),
        num_without_text=int((~has_text).sum()),
        num_other_kind=num_other_kind,
        num_in_gallery=int(is_in_gallery.sum()),
        num_repeated=int((~is_first).sum()),
        photo_truth=direction.truth if PHOTO in read else "",
    )
    return replace(report, counts=counts)


def reference_vectors(offered: Gallery, row_keys_N: Tensor) -> Tensor:
    """Return the vectors (M, E) of the products over which a combination of scores standardizes them, in all processes.

    Those with the smallest keys, which are digests: a random choice that every catalog of these products makes.
    """
    assert isinstance(offered.vectors, RowVectors)
    smallest = gather_rows(offered.product_keys.unique()[:NUM_REFERENCE_PRODUCTS]).unique()[:NUM_REFERENCE_PRODUCTS]
    is_such_N = offered.product_keys <= smallest[-1]
    row_keys, vectors = gather_rows(row_keys_N[is_such_N]), gather_rows(offered.vectors[is_such_N].read())
    return vectors[row_keys.argsort().to(vectors.device)]


def presence_of(name: str, table: EmbeddingTable, fusion: Fusion | None) -> Tensor:
    """Return which rows have a tower or fusion."""
    if fusion is None:
        return table.present[name]
    return torch.stack([table.present[part] for part in fusion if part in table.present]).any(0)


def read_vectors(
    name: str, table: EmbeddingTable, fusion: Fusion | None, device: torch.device, width: int | None = None
) -> RowVectors:
    """Return the vectors of a tower or fusion, to be read in blocks; of all towers where scores are combined.

    Args:
        width: to which each is cut; None: as they are.
    """
    stored = [table.vectors[name]] if fusion is None else [table.vectors[p] for p in fusion if p in table.vectors]
    num_parts = 1 if fusion is None or fusion.needs_one_vector else len(fusion)

    @torch.no_grad()
    def make(rows: Tensor | slice) -> Tensor:
        if fusion is None:
            return table.vectors[name][rows].to(device, torch.float32)
        parts = [part for part in fusion if part in table.vectors]
        vectors = {part: table.vectors[part][rows].to(device, torch.float32) for part in parts}
        present = {part: table.present[part][rows].to(device) for part in parts}
        return fusion(vectors, present) if fusion.needs_one_vector else fusion.stack_parts(vectors, present)

    is_stored = fusion is None and stored[0].dtype == torch.float32 and stored[0].device == device
    places = torch.arange(len(table), device=table.row_keys.device)
    vectors = RowVectors(make, places, stored[0].shape[1] * num_parts, device, is_stored)
    if width is None:
        return vectors
    return replace(
        vectors,
        make=lambda rows: truncate(make(rows), width, num_parts),
        width=width * num_parts,
        is_stored=False,
    )


def read_side(name: str, table: EmbeddingTable, fusions: Fusions) -> tuple[Tensor, Tensor]:
    """Return the vectors (N, D) of the rows that have a tower or fusion, and the keys (N,) of their products."""
    width = next(iter(table.vectors.values())).shape[1]
    fusion = as_fusion(name, fusions[name], width) if name in fusions else None
    present_N = presence_of(name, table, fusion)
    vectors = read_vectors(name, table, fusion, table.row_keys.device)[present_N]
    return vectors.read(), table.columns["product_keys"][present_N]


def _is_of_kind(
    direction: Direction, queries: EmbeddingTable, fusions: Fusions, fields: Mapping[str, Sequence[str]]
) -> Tensor:
    is_such = torch.ones_like(queries.row_keys, dtype=torch.bool)
    for field in direction.needs(fusions, fields):
        is_such &= _has(field, queries)
    for field in direction.excludes:
        is_such &= ~_has(field, queries)
    return is_such


def _with_fields(queries: EmbeddingTable) -> EmbeddingTable:
    """Return the table with a column for each field; in one of an older version, those that its towers read."""
    nothing = torch.zeros_like(queries.row_keys, dtype=torch.bool)
    fields = {f"{HAS}{name}": queries.present.get(name, nothing) for name in QUERY_FIELDS}
    return EmbeddingTable(queries.row_keys, queries.vectors, queries.present, fields | queries.columns)


def _has(field: str, queries: EmbeddingTable) -> Tensor:
    column = queries.columns.get(f"{HAS}{field}")
    return queries.present[field] if column is None else column.bool()


def truth_of_queries(direction: Direction, queries: EmbeddingTable) -> tuple[Tensor, Tensor | None]:
    """Return the products that are relevant to each query (Q, R), and their grades; None: all 1."""
    if direction.truth == REFERENCE:
        return queries.columns["shown_keys"], None
    return queries.columns["asked_keys"], queries.columns["asked_grades"]


def _is_in_gallery(
    direction: Direction,
    queries: EmbeddingTable,
    truth_QR: Tensor,
    gallery_columns: Mapping[str, Tensor],
    reads_image: bool,
) -> Tensor:
    """Return which queries would find themselves: their image is in the gallery.

    If the truth is what the image shows, any gallery image counts; else only the images of relevant products.
    """
    images_Q = queries.columns.get(IMAGE)
    if images_Q is None or IMAGE not in gallery_columns or not reads_image:  # in all processes alike
        return torch.zeros_like(queries.row_keys, dtype=torch.bool)
    known = gallery_columns[IMAGE] != NO_KEY
    images_N, products_N = gallery_columns[IMAGE][known], gallery_columns["product_keys"][known]
    has_image_Q = torch.isin(images_Q, images_N)
    if direction.truth == REFERENCE:
        return any_of_ranks(has_image_Q)
    if not has_image_Q.any():
        return any_of_ranks(torch.zeros_like(has_image_Q))
    distinct, products = images_N.unique(), products_N.unique()

    def pair(images: Tensor, keys: Tensor) -> Tensor:
        return torch.searchsorted(distinct, images) * len(products) + torch.searchsorted(products, keys)

    is_pair_QR = has_image_Q[:, None] & torch.isin(truth_QR, products)
    pairs_QR = pair(images_Q[:, None].expand_as(truth_QR).contiguous(), truth_QR.contiguous())
    return any_of_ranks((is_pair_QR & torch.isin(pairs_QR, pair(images_N, products_N))).any(dim=1))


def _is_first_of_its_photo(queries: EmbeddingTable, truth_QR: Tensor, grades_QR: Tensor | None) -> Tensor:
    """Return one query for each image and truth: without text if there is one, else the first by key."""
    images_Q = queries.columns.get(IMAGE)
    if images_Q is None:
        return torch.ones_like(queries.row_keys, dtype=torch.bool)
    truth_QR, order_QR = truth_QR.sort(dim=1)
    parts = [images_Q[:, None], truth_QR]
    if grades_QR is not None:
        parts.append(grades_QR.gather(1, order_QR))
    _, group_Q = torch.unique(torch.cat(parts, dim=1), dim=0, return_inverse=True)
    place_Q = torch.arange(len(queries), device=group_Q.device) + len(queries) * _has(WORDS, queries).long()
    first = torch.full_like(place_Q, 2 * len(queries)).scatter_reduce_(0, group_Q, place_Q, "amin")
    return (images_Q == NO_KEY) | (first[group_Q] == place_Q)
