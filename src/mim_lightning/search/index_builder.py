"""Build an index of an embedded catalog, add a catalog to an index, or delete products from one.

The card of the index also records what a search needs besides the rows: where the model and the product images are,
the filters to offer, and golden samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import PRODUCT, PRODUCT_IMAGE
from mim_lightning.inference.model import LoadedModel
from mim_lightning.search.catalog_difference import CatalogDifference, compare_catalogs, is_version_of
from mim_lightning.search.combined_scores import REFERENCE, reference_products
from mim_lightning.search.embedding_store import EmbeddedCatalog
from mim_lightning.search.facets import FACETS, describe_facets, extend_facets
from mim_lightning.search.golden_samples import encode_golden_samples, select_inputs, write_golden_samples
from mim_lightning.search.index.card import IndexCard
from mim_lightning.search.index.factory import create_index, is_address, open_index
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.product_images import CATALOGS
from mim_lightning.search.searcher import GOLDEN_SAMPLES, MODEL
from mim_lightning.types import AnyOf, TowerSpec

CATALOG_VERSIONS = "catalog_versions"  # key of the card's `extra`: by folder of CATALOGS, the version in the index


def build_product_index(
    place: str,
    model: LoadedModel,
    checkpoint: str,
    embedded: EmbeddedCatalog,
    catalog: ShardSet,
    settings: IndexSettings,
) -> IndexCard:
    """Build an index of an embedded catalog.

    Args:
        place: folder, or Milvus address (without golden samples).
        model: the model that embedded the catalog.
        checkpoint: where the model is, recorded in the card.

    Raises:
        ValueError: as `factory.create_index`; nothing is left behind then.
    """
    gallery = embedded.facts.gallery
    extra: dict[str, Any] = {
        MODEL: checkpoint if "://" in checkpoint else str(Path(checkpoint).absolute()),
        CATALOGS: [embedded.facts.catalog],
        CATALOG_VERSIONS: {embedded.facts.catalog: catalog.version},
        FACETS: describe_facets(embedded.products),
    }
    fusion = model.fusions.get(gallery)
    towers = _single_fields({name: model.encoders[name].spec for name in fusion or (gallery,)})
    if towers and not is_address(place):  # golden samples are inputs of one field
        extra[GOLDEN_SAMPLES] = f"canaries-{model.fingerprint}.safetensors"
        inputs = select_inputs(catalog, towers)
        Path(place).mkdir(parents=True, exist_ok=True)
        # before the card that names them
        write_golden_samples(Path(place) / extra[GOLDEN_SAMPLES], encode_golden_samples(model, inputs))
    if any(not fusion.needs_one_vector for fusion in model.fusions.values()):
        extra[REFERENCE] = reference_products(embedded.product_ids)
    facts = ModelFacts(model.fingerprint, gallery, embedded.facts.dimension)
    rows = embedded.vectors, embedded.product_ids, embedded.products
    return create_index(*rows, settings, facts, place, extra).card


def _single_fields(specs: Mapping[str, TowerSpec]) -> list[str]:
    """Return the towers that read the field of their own name, and the fields that a tower may read alone."""
    names: list[str] = []
    for name, spec in specs.items():
        names += [*spec] if isinstance(spec, AnyOf) else [] if isinstance(spec, Mapping) else [name]
    return names


@dataclass(frozen=True)
class IndexUpdate:
    """How many products of an index an update kept, added, replaced and deleted."""

    num_kept: int
    num_added: int
    num_replaced: int
    num_deleted: int

    def __str__(self) -> str:
        return (
            f"kept {self.num_kept:,} products, added {self.num_added:,}, replaced {self.num_replaced:,}, "
            f"deleted {self.num_deleted:,}"
        )


def add_products(place: str, embedded: EmbeddedCatalog, catalog: ShardSet) -> tuple[IndexCard, IndexUpdate]:
    """Add the products of an embedded catalog to an existing index; known products are replaced.

    If the index was made of a former version of the catalog, only products that differ are added or replaced, and those
    that the catalog has no more are deleted.

    Raises:
        ValueError: no index, or an index of another model or gallery.
    """
    index = open_index(place, embedded.facts.fingerprint)
    if index.card.gallery != embedded.facts.gallery:
        raise ValueError(f"{place}: is an index of '{index.card.gallery}', not of '{embedded.facts.gallery}'")
    extra, folder = index.card.extra, embedded.facts.catalog
    changed: dict[str, Any] = {
        CATALOGS: [*(one for one in extra.get(CATALOGS, []) if one != folder), folder],
        CATALOG_VERSIONS: {**extra.get(CATALOG_VERSIONS, {}), folder: catalog.version},
        FACETS: extend_facets(extra.get(FACETS, {}), embedded.products),
    }
    difference = _difference(extra, catalog)
    before, num_deleted = index.card.num_products, 0
    rows, product_ids, products = embedded.vectors, embedded.product_ids, embedded.products
    if difference is not None:
        wanted = {*difference.added, *difference.replaced}
        is_wanted = np.array([product_id in wanted for product_id in product_ids], dtype=bool)
        rows, product_ids = rows[is_wanted], [one for one in product_ids if one in wanted]
        products = products.filter(pc.is_in(products["product_id"], value_set=pa.array(sorted(wanted), pa.string())))
        # a product that is still there may have no row with a vector any more
        without_row = sorted({*difference.replaced} - {*product_ids})
        num_deleted = index.delete([*difference.deleted, *without_row])
    num_left = index.card.num_products
    if len(rows):
        index.add(rows, product_ids, products)
    index.set_extra(changed)
    index.save()
    num_added = index.card.num_products - num_left
    num_replaced = len(set(product_ids)) - num_added
    update = IndexUpdate(before - num_deleted - num_replaced, num_added, num_replaced, num_deleted)
    return index.card, update


def _difference(extra: Mapping[str, Any], catalog: ShardSet) -> CatalogDifference | None:
    """Return how a catalog differs from the version that an index has of it; None: it has none, or another catalog."""
    if catalog.place not in extra.get(CATALOGS, []):
        return None
    version = extra.get(CATALOG_VERSIONS, {}).get(catalog.place, 1)
    if catalog.version == version:
        return None  # it may have been prepared again
    try:
        former = ShardSet(catalog.folder, catalog.cache, version)
    except ValueError:
        return None
    return compare_catalogs(former, catalog) if is_version_of(former, catalog) else None


def delete_products(place: str, product_ids: Sequence[str]) -> tuple[IndexCard, int]:
    """Delete products from an existing index, and return its card and how many there were."""
    index = open_index(place)
    num_deleted = index.delete(product_ids)
    index.save()
    return index.card, num_deleted


def choose_gallery(wanted: str | None, names: Sequence[str]) -> str:
    """Return the tower or fusion to embed: the wanted one, `product`, or the tower `product_image`.

    Args:
        names: of the model's towers and fusions.

    Raises:
        ValueError: the model has no such tower or fusion.
    """
    gallery = wanted or (PRODUCT if PRODUCT in names else PRODUCT_IMAGE)
    if gallery not in names:
        raise ValueError(f"gallery={gallery}: the model has no such tower or fusion; it has {', '.join(names)}")
    return gallery
