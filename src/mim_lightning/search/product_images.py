"""Images of products for display, read from the shard sets that an index was built from."""

from __future__ import annotations

from collections.abc import Sequence

from mim_lightning.data.shards.lookup import find_samples
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import PRODUCT_IMAGE
from mim_lightning.search.index.card import IndexCard

CATALOGS = "catalogues"  # key of the card's `extra`: folders of shard sets, the newest last


class ProductImages:
    """The first image of each product; without the shard sets there are no images, which is no error."""

    def __init__(self, card: IndexCard) -> None:
        self._sets = []
        for folder in reversed(card.extra.get(CATALOGS, [])):
            try:
                self._sets.append(ShardSet(folder))
            except ValueError:
                continue

    def read(self, product_ids: Sequence[str]) -> dict[str, bytes]:
        """Return the encoded image of every product that has one; damaged and missing ones are left out."""
        samples = find_samples(self._sets, product_ids, having=PRODUCT_IMAGE, skip_damaged=True)
        images = {product_id: sample.inputs[PRODUCT_IMAGE] for product_id, sample in samples.items()}
        return {product_id: image for product_id, image in images.items() if isinstance(image, bytes)}
