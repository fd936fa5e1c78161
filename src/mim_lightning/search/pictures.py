"""Pictures of products for people to look at: read from the catalogue's shards that an index was built from.

An index card comes in, encoded pictures go out; service, page and the search door show them. A catalogue that is no
longer there only means that no picture is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

from mim_lightning.data.shards.sample_finder import find_samples
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import PRODUCT_IMAGE
from mim_lightning.search.index.card import IndexCard

CATALOGUES = "catalogues"  # key of the card's `extra`: folders of shard sets, the newest last


class ProductPictures:
    """The first picture of each product."""

    def __init__(self, card: IndexCard) -> None:
        self._sets = []
        for folder in reversed(card.extra.get(CATALOGUES, [])):
            try:
                self._sets.append(ShardSet(folder))
            except ValueError:
                continue

    def read(self, product_ids: Sequence[str]) -> dict[str, bytes]:
        """Return the encoded picture of every product that has one."""
        # of what is damaged or gone, the title is shown
        samples = find_samples(self._sets, product_ids, having=PRODUCT_IMAGE, skip_damaged=True)
        pictures = {product_id: sample.inputs[PRODUCT_IMAGE] for product_id, sample in samples.items()}
        return {product_id: picture for product_id, picture in pictures.items() if isinstance(picture, bytes)}
