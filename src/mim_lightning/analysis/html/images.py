"""Pictures of queries and products for a page that stands alone: small JPEGs as data URIs, from prepared shards.

The facts of a run come in, data URIs and titles by id go out; `page` calls it. Where the shards are gone or damaged
there are no pictures, and `missing` says why: numbers are worth a page without them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image

from mim_lightning.analysis.record import RunFacts
from mim_lightning.data.images.codec import decode_image, decode_truncated
from mim_lightning.data.preparation.prepared import open_prepared, open_products
from mim_lightning.data.shards.sample_finder import find_samples
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.display.text import plain
from mim_lightning.fields import IMAGE, TEXT, field_name

SIDE, QUALITY = 144, 78  # pixels of a picture's longer side; JPEG
MAX_TITLE = 60  # characters


@dataclass(frozen=True)
class Picture:
    """How an item is shown; `uri` is "" where there is no picture."""

    uri: str
    title: str


class Pictures:
    """The queries and products of one prepared folder, each read and encoded once."""

    def __init__(self, queries: ShardSet | None, products: Sequence[ShardSet], missing: str = "") -> None:
        self._queries, self._products = [queries] if queries else [], list(products)
        self.missing = missing
        # by instance: a page shows a product in many places
        self.query = cache(self._query)
        self.product = cache(self._product)

    def _query(self, query_id: str) -> Picture:
        return _picture(self._queries, "query", query_id)

    def _product(self, product_id: str) -> Picture:
        return _picture(self._products, "product", product_id)


def open_pictures(data_folder: str, val_split: str, distractors: str | None = None) -> Pictures:
    """Open the shard sets that an evaluation showed; without pictures if they are not there."""
    try:
        products = open_products(data_folder, distractors)
        return Pictures(open_prepared(data_folder).queries(val_split), products)
    except (ValueError, OSError) as error:
        return Pictures(None, [], str(error))


def open_pictures_of(facts: RunFacts) -> Pictures:
    """Open the shard sets that a recorded evaluation showed."""
    distractors = (facts.config.get("data") or {}).get("distractors")
    return open_pictures(facts.data_folder, facts.val_split, distractors)


class Album:
    """The pictures of any number of evaluations; each prepared folder is opened once."""

    def __init__(self) -> None:
        self._open = cache(open_pictures)
        self.missing: list[str] = []  # why there are no pictures, by folder

    def of(self, facts: RunFacts) -> Pictures:
        data = facts.config.get("data") or {}
        pictures = self._open(facts.data_folder, facts.val_split, data.get("distractors"))
        if pictures.missing and pictures.missing not in self.missing:
            self.missing.append(pictures.missing)
        return pictures


def _picture(sets: Sequence[ShardSet], side: str, item_id: str) -> Picture:
    sample = find_samples(sets, [item_id], skip_damaged=True).get(item_id)
    if sample is None:
        return Picture("", item_id)
    data, text = sample.inputs.get(field_name(side, IMAGE)), str(sample.inputs.get(field_name(side, TEXT), ""))
    title = text.split(". ")[0].strip() or item_id
    return Picture(data_uri(data) if isinstance(data, bytes) else "", plain(title, MAX_TITLE))


def data_uri(data: bytes, is_whole: bool = True) -> str:
    """Return an encoded picture as a small JPEG that stands in the page itself; of one that is cut off, what is there.

    Raises:
        ValueError: see `decode_image`.
    """
    image = Image.fromarray(decode_image(data, SIDE, SIDE) if is_whole else decode_truncated(data))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
