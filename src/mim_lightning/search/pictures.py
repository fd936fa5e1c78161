"""Pictures of products for people to look at: read from the catalogue's shards that an index was built from.

An index card comes in, encoded pictures go out; service, page and the search door show them. A catalogue that is no
longer there only means that no picture is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mim_lightning.data.shards import ShardSet
from mim_lightning.search.index_card import IndexCard
from mim_lightning.types import id_key

CATALOGUES = "catalogues"  # key of the card's `extra`: folders of shard sets, the newest last


class ProductPictures:
    """The first picture of each product."""

    def __init__(self, card: IndexCard) -> None:
        self._sets = []
        for folder in reversed(card.extra.get(CATALOGUES, [])):
            try:
                self._sets.append(ShardSet(Path(folder)))
            except ValueError:
                continue

    def read(self, product_ids: Sequence[str]) -> dict[str, bytes]:
        """Return the encoded picture of every product that has one."""
        by_key = {id_key(product_id): product_id for product_id in product_ids}
        pictures: dict[str, bytes] = {}
        for shards in self._sets:
            wanted = [key for key, product_id in by_key.items() if product_id not in pictures]
            for key, number in shards.find(wanted).items():
                try:
                    picture = shards.read([number])[0].inputs.get("product_image")
                except ValueError:
                    continue  # damaged or gone; its title is shown
                if isinstance(picture, bytes):
                    pictures[by_key[key]] = picture
        return pictures
