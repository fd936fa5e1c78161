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

from mim_lightning.artifact_paths import is_address
from mim_lightning.data.images.crops import CropSettings
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import PRODUCT, PRODUCT_IMAGE
from mim_lightning.ids import hash_id
from mim_lightning.inference.model import LoadedModel
from mim_lightning.model.fusion import Fusion
from mim_lightning.search.catalog_difference import CatalogDifference, compare_catalogs, is_version_of
from mim_lightning.search.combined_scores import REFERENCE, reference_products
from mim_lightning.search.embedding_store import EmbeddedCatalog
from mim_lightning.search.facets import FACETS, describe_facets, extend_facets
from mim_lightning.search.golden_samples import encode_golden_samples, select_inputs, write_golden_samples
from mim_lightning.search.index.card import CATALOG_DIGESTS, CATALOG_VERSIONS, COST, CROPS, TRAINED_WIDTHS, IndexCard
from mim_lightning.search.index.factory import create_index, open_index, read_index_card
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.product_images import CATALOGS
from mim_lightning.search.searcher import GOLDEN_SAMPLES, MODEL
from mim_lightning.search.size_cost import SizeCurve
from mim_lightning.types import AnyOf, TowerSpec, fields_of
from mim_lightning.widths import validate_widths

WHOLE = CropSettings()


def build_product_index(
    place: str,
    model: LoadedModel,
    checkpoint: str,
    embedded: EmbeddedCatalog,
    catalog: ShardSet,
    settings: IndexSettings,
    crops: CropSettings = WHOLE,
    curve: SizeCurve | None = None,
) -> IndexCard:
    """Build an index of an embedded catalog.

    Args:
        place: folder, or Milvus address (without golden samples).
        model: the model that embedded the catalog.
        checkpoint: where the model is, recorded in the card.
        crops: parts of the images that were embedded too, recorded in the card.
        curve: of this model, whose point of this size is kept in the card.

    Raises:
        ValueError: as `factory.create_index`; nothing is left behind then.
    """
    gallery = embedded.facts.gallery
    fusion, specs = model.fusions.get(gallery), {name: encoder.spec for name, encoder in model.encoders.items()}
    validate_gallery(settings, crops, gallery, fusion, embedded.facts.dimension, specs)
    if curve is not None:
        width = settings.dimension or embedded.facts.dimension
        curve.validate(model.fingerprint, width, settings.precision)
    extra: dict[str, Any] = {
        MODEL: checkpoint if "://" in checkpoint else str(Path(checkpoint).absolute()),
        CATALOGS: [embedded.facts.catalog],
        CATALOG_VERSIONS: {embedded.facts.catalog: catalog.version},
        CATALOG_DIGESTS: {embedded.facts.catalog: catalog.digest},
        FACETS: describe_facets(embedded.products),
    }
    if not crops.is_whole:
        extra[CROPS] = crops.to_json()
    if settings.dimension is not None:
        extra[TRAINED_WIDTHS] = [*validate_widths("loss.widths", (model.config.get("loss") or {}).get("widths"))]
    towers = _single_fields({name: specs[name] for name in fusion or (gallery,)})
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
    index = create_index(*rows, settings, facts, place, extra)
    if curve is not None:
        cost = curve.cost_of(index.card)
        if cost is None:
            print(f"curve={curve.path}: has no point of {index.card.kind}, so the card says no cost")
        else:
            index.set_extra({COST: cost})
            index.save()
    card = index.card
    if card.full_dimension and card.full_recall and card.dimension not in extra[TRAINED_WIDTHS]:
        print(
            f"dimension={card.dimension}: the model was not trained at this width (loss.widths); the index finds "
            f"{card.full_recall.value:.2f} of the best {card.full_recall.k} products by the full vectors"
        )
    return card


def validate_gallery(
    settings: IndexSettings,
    crops: CropSettings,
    gallery: str,
    fusion: Fusion | None,
    full: int,
    specs: Mapping[str, TowerSpec],
) -> None:
    """Raise ValueError for a gallery without crops, or a dimension that its vectors cannot be cut to.

    Args:
        fusion: the gallery, if it is one.
        full: dimension of its vectors.
        specs: what the towers of the model read.
    """
    settings.validate_dimension(full)
    if not crops.is_whole:
        needs_one_vector = fusion is None or fusion.needs_one_vector
        reads_image = any(PRODUCT_IMAGE in fields_of(tower, specs[tower]) for tower in fusion or (gallery,))
        if not needs_one_vector or not reads_image:
            why = "has no product_image" if needs_one_vector else "keeps a vector of each tower"
            raise ValueError(
                f"crops: {crops}, but the gallery '{gallery}' {why}; give another gallery, or leave it out"
            )
    if settings.dimension is not None and fusion is not None and not fusion.needs_one_vector:
        raise ValueError(
            f"dimension={settings.dimension}: the gallery '{gallery}' keeps a vector of each tower, whose scores are "
            "combined; give gallery=<a tower>, or leave the dimension out"
        )


def validate_update(place: str, settings: IndexSettings, crops: CropSettings = WHOLE) -> tuple[IndexCard, CropSettings]:
    """Return the card of the index to update, and its crops.

    Raises:
        ValueError: no index, or a dimension, precision or crops that are given and are not those of the index.
    """
    card = read_index_card(place)
    own = CropSettings(**card.extra.get(CROPS, {}))
    if crops not in (own, WHOLE):
        raise ValueError(
            f"crops: {crops}; {place} has {own}, which update=true keeps; leave it out, or build a new index"
        )
    for key, ours in (("dimension", card.dimension), ("precision", card.precision)):
        if (given := getattr(settings, key)) not in (ours, getattr(IndexSettings, key)):
            raise ValueError(
                f"{key}={given}: {place} has {key}={ours}, which update=true keeps; leave it out, or build a new index"
            )
    return card, own


def had_boxes(card: IndexCard, catalog: ShardSet) -> bool:
    """Return whether an index has boxes of a former version of a catalog, as far as is known.

    A catalog that was never there need not have any; one that had some and has none is a mistake.
    """
    if catalog.place not in card.extra.get(CATALOGS, []):
        return False
    column = card.extra.get(CROPS, {}).get("boxes")
    version, digest = (card.extra.get(key, {}).get(catalog.place) for key in (CATALOG_VERSIONS, CATALOG_DIGESTS))
    try:
        former = ShardSet(catalog.folder, catalog.cache, version)
        return former.digest != digest or any(fact.get("metadata", {}).get(column) for fact in former.all_facts())
    except (ValueError, OSError):  # it was removed
        return True


def _single_fields(specs: Mapping[str, TowerSpec]) -> list[str]:
    """Return the towers that read the field of their own name, and the fields that a tower may read alone."""
    names: list[str] = []
    for name, spec in specs.items():
        names += [*spec] if isinstance(spec, AnyOf) else [] if isinstance(spec, Mapping) else [name]
    return names


@dataclass(frozen=True)
class IndexUpdate:
    """How many products of an index an update kept, added, replaced and deleted, and why it may have kept too many."""

    num_kept: int
    num_added: int
    num_replaced: int
    num_deleted: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = (
            f"kept {self.num_kept:,} products, added {self.num_added:,}, replaced {self.num_replaced:,}, "
            f"deleted {self.num_deleted:,}"
        )
        return "; ".join((counts, *self.notes))


def add_products(place: str, embedded: EmbeddedCatalog, catalog: ShardSet) -> tuple[IndexCard, IndexUpdate]:
    """Add the products of an embedded catalog to an existing index; known products are replaced.

    If the index was made of a former version of the catalog, only products that differ are added or replaced, and those
    that the catalog has no more are deleted, unless another catalog of the index has them.

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
        CATALOG_DIGESTS: {**extra.get(CATALOG_DIGESTS, {}), folder: catalog.digest},
        FACETS: extend_facets(extra.get(FACETS, {}), embedded.products),
    }
    difference, notes = _find_difference(extra, catalog)
    before, gone = index.card.num_products, list[str]()
    num_deleted = 0
    rows, product_ids, products = embedded.vectors, embedded.product_ids, embedded.products
    if difference is not None:
        wanted = {*difference.added, *difference.replaced}
        is_wanted = np.array([product_id in wanted for product_id in product_ids], dtype=bool)
        rows, product_ids = rows[is_wanted], [one for one in product_ids if one in wanted]
        products = products.filter(pc.is_in(products["product_id"], value_set=pa.array(sorted(wanted), pa.string())))
        # a product that is still there may have no row with a vector any more
        without_row = sorted({*difference.replaced} - {*product_ids})
        gone, more = _without_held([*difference.deleted, *without_row], extra, catalog)
        notes += more
        num_deleted = index.delete(gone)
    num_left = index.card.num_products
    if len(rows):
        index.add(rows, product_ids, products)
    if REFERENCE in extra:
        changed[REFERENCE] = reference_products({*extra[REFERENCE], *embedded.product_ids} - {*gone})
    index.set_extra(changed)
    index.save()
    num_added = index.card.num_products - num_left
    num_replaced = len(set(product_ids)) - num_added
    update = IndexUpdate(before - num_deleted - num_replaced, num_added, num_replaced, num_deleted, notes)
    return index.card, update


def _find_difference(extra: Mapping[str, Any], catalog: ShardSet) -> tuple[CatalogDifference | None, tuple[str, ...]]:
    """Return how a catalog differs from the version that an index has of it.

    None if it has none or this one, or if it is not known: then with a note that says why.
    """
    if catalog.place not in extra.get(CATALOGS, []):
        return None, ()
    version = extra.get(CATALOG_VERSIONS, {}).get(catalog.place, 1)
    digest = extra.get(CATALOG_DIGESTS, {}).get(catalog.place)
    if digest == catalog.digest:
        return None, ()
    reason = "the catalog was prepared again since"
    if digest is None:
        reason = "the index does not say which preparation of the catalog it has"
    elif catalog.version != version:
        try:
            former = ShardSet(catalog.folder, catalog.cache, version)
        except (ValueError, OSError):
            former = None
            reason = f"version {version} of the catalog, which the index has, was removed or cannot be read"
        if former is not None and former.digest == digest:
            if is_version_of(former, catalog):
                return compare_catalogs(former, catalog), ()
            reason = f"version {catalog.version} of the catalog does not follow version {version}, which the index has"
    return None, (f"all products were added and none deleted: {reason}; build the index again to leave old ones out",)


def _without_held(
    product_ids: Sequence[str], extra: Mapping[str, Any], catalog: ShardSet
) -> tuple[list[str], tuple[str, ...]]:
    """Return which products no other catalog of an index has, and a note if the others were kept."""
    held: set[str] = set()
    keys = {hash_id(product_id): product_id for product_id in product_ids}
    for place in extra.get(CATALOGS, []):
        if place == catalog.place or not keys:
            continue
        try:
            other = ShardSet(place, catalog.cache, extra.get(CATALOG_VERSIONS, {}).get(place))
            held |= {keys[key] for key in other.find([*keys])}
        except (ValueError, OSError) as error:
            return [], (f"none was deleted, as another catalog of the index may have them and cannot be read: {error}",)
    notes = (f"not deleted, as another catalog of the index has them: {len(held):,}",) if held else ()
    return [product_id for product_id in product_ids if product_id not in held], notes


def delete_products(place: str, product_ids: Sequence[str]) -> tuple[IndexCard, int]:
    """Delete products from an existing index, and return its card and how many there were."""
    index = open_index(place)
    num_deleted = index.delete(product_ids)
    index.save()
    return index.card, num_deleted


def choose_gallery(wanted: str | None, names: Sequence[str], key: str = "gallery") -> str:
    """Return the tower or fusion to embed: the wanted one, `product`, or the tower `product_image`.

    Args:
        names: of the model's towers and fusions.
        key: of the config, which an error names.

    Raises:
        ValueError: the model has no such tower or fusion.
    """
    gallery = wanted or (PRODUCT if PRODUCT in names else PRODUCT_IMAGE)
    if gallery not in names:
        raise ValueError(f"{key}={gallery}: the model has no such tower or fusion; it has {', '.join(names)}")
    return gallery
