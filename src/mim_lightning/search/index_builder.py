"""Build an index of an embedded catalog, add a catalog to an index, or delete products from one.

The card of the index also records what a search needs besides the rows: where the model and the product images are,
the filters to offer, and golden samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import PRODUCT, PRODUCT_IMAGE
from mim_lightning.inference.model import LoadedModel
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


def add_products(place: str, embedded: EmbeddedCatalog) -> IndexCard:
    """Add the products of an embedded catalog to an existing index; known products are replaced.

    Raises:
        ValueError: no index, or an index of another model or gallery.
    """
    index = open_index(place, embedded.facts.fingerprint)
    if index.card.gallery != embedded.facts.gallery:
        raise ValueError(f"{place}: is an index of '{index.card.gallery}', not of '{embedded.facts.gallery}'")
    extra, catalog = index.card.extra, embedded.facts.catalog
    changed = {
        CATALOGS: [*(folder for folder in extra.get(CATALOGS, []) if folder != catalog), catalog],
        FACETS: extend_facets(extra.get(FACETS, {}), embedded.products),
    }
    index.add(embedded.vectors, embedded.product_ids, embedded.products, changed)
    index.save()
    return index.card


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
