"""An embedded catalogue made into an index, added to one, or taken from it.

An EmbeddedCatalogue and its shard set come in, the index's card goes out; the build_index door calls it. What a
search needs besides the rows goes with them: where the model and the pictures are, filters, canaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.inference.model import LoadedModel
from mim_lightning.search.canaries import choose_canaries, encode_canaries, write_canaries
from mim_lightning.search.embedded import EmbeddedCatalogue
from mim_lightning.search.facets import FACETS, describe_facets, extend_facets
from mim_lightning.search.index.card import IndexCard
from mim_lightning.search.index.product_index import build_index, is_address, open_index
from mim_lightning.search.index.settings import IndexSettings, ModelFacts
from mim_lightning.search.opening import CANARIES, MODEL
from mim_lightning.search.pictures import CATALOGUES


def make_index(
    place: str,
    model: LoadedModel,
    checkpoint: str,
    embedded: EmbeddedCatalogue,
    catalogue: ShardSet,
    settings: IndexSettings,
) -> IndexCard:
    """Build an index of an embedded catalogue in `place`.

    Args:
        place: folder, or Milvus address (then there are no canaries).
        model: that embedded it.
        checkpoint: where the model is, kept in the card.

    Raises:
        ValueError: as `product_index.build_index`; nothing is left behind then.
    """
    gallery = embedded.facts.gallery
    extra: dict[str, Any] = {
        MODEL: _absolute(checkpoint),
        CATALOGUES: [embedded.facts.catalogue],
        FACETS: describe_facets(embedded.products),
    }
    if not is_address(place):
        extra[CANARIES] = f"canaries-{model.fingerprint}.safetensors"
        inputs = choose_canaries(catalogue, list(model.fusions.get(gallery, {gallery: 1.0})))
        Path(place).mkdir(parents=True, exist_ok=True)
        # before the card that names them
        write_canaries(Path(place) / extra[CANARIES], encode_canaries(model, inputs))
    facts = ModelFacts(model.fingerprint, gallery, model.dimension)
    rows = embedded.vectors, embedded.product_ids, embedded.products
    return build_index(*rows, settings, facts, place, extra).card


def add_to_index(place: str, embedded: EmbeddedCatalogue) -> IndexCard:
    """Add the products of an embedded catalogue to the index that is there; known ones are replaced.

    Its pictures and its choices to filter by are found from then on.

    Raises:
        ValueError: no index there, or another model's or gallery's.
    """
    index = open_index(place, embedded.facts.fingerprint)
    if index.card.gallery != embedded.facts.gallery:
        raise ValueError(f"{place}: is an index of '{index.card.gallery}', not of '{embedded.facts.gallery}'")
    told, catalogue = index.card.extra, embedded.facts.catalogue
    extra = {
        CATALOGUES: [*(folder for folder in told.get(CATALOGUES, []) if folder != catalogue), catalogue],
        FACETS: extend_facets(told.get(FACETS, {}), embedded.products),
    }
    index.add(embedded.vectors, embedded.product_ids, embedded.products, extra)
    index.save()
    return index.card


def delete_from_index(place: str, product_ids: Sequence[str]) -> tuple[IndexCard, int]:
    """Remove products from the index that is there, and return its card and how many there were."""
    index = open_index(place)
    num_removed = index.delete(product_ids)
    index.save()
    return index.card, num_removed


def _absolute(checkpoint: str) -> str:
    return checkpoint if "://" in checkpoint else str(Path(checkpoint).absolute())
