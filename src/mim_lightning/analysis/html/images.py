"""Images of queries and products for HTML pages: small JPEGs as data URIs, from prepared shards.

If the shards are missing or damaged there are no images, and `missing` says why: the page is useful without them.
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
from mim_lightning.data.shards.lookup import find_samples
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.display.text import plain
from mim_lightning.fields import IMAGE, TEXT, field_name

SIDE, QUALITY = 144, 78  # pixels of the longer side; of JPEG
MAX_TITLE = 60  # characters


@dataclass(frozen=True)
class PageImage:
    """The image of an item on a page; `uri` is "" if there is none."""

    uri: str
    title: str


class PageImages:
    """Images of the queries and products of one prepared folder, each read and encoded once."""

    def __init__(self, queries: ShardSet | None, products: Sequence[ShardSet], missing: str = "") -> None:
        self._queries, self._products = [queries] if queries else [], list(products)
        self.missing = missing
        # cached by instance: a page shows a product several times
        self.query = cache(self._query)
        self.product = cache(self._product)

    def _query(self, query_id: str) -> PageImage:
        return _image(self._queries, "query", query_id)

    def _product(self, product_id: str) -> PageImage:
        return _image(self._products, "product", product_id)


def open_images(
    data_folder: str,
    val_split: str,
    distractors: str | None = None,
    versions: tuple[int | None, int | None] = (None, None),
) -> PageImages:
    """Open the shard sets of an evaluation; the result has no images if they are missing.

    Args:
        versions: of the data and of the distractors; None: the newest.
    """
    try:
        products = open_products(data_folder, distractors, versions=versions)
        return PageImages(open_prepared(data_folder, version=versions[0]).queries(val_split), products)
    except (ValueError, OSError) as error:
        return PageImages(None, [], str(error))


def open_images_of(facts: RunFacts) -> PageImages:
    """Open the shard sets of a recorded evaluation."""
    return open_images(*_data_of(facts))


class ImageCache:
    """Images of any number of evaluations; each prepared folder is opened once."""

    def __init__(self) -> None:
        self._open = cache(open_images)
        self.missing: list[str] = []  # why there are no images, by folder

    def of(self, facts: RunFacts) -> PageImages:
        images = self._open(*_data_of(facts))
        if images.missing and images.missing not in self.missing:
            self.missing.append(images.missing)
        return images


def _data_of(facts: RunFacts) -> tuple[str, str, str | None, tuple[int, int]]:
    distractors = (facts.config.get("data") or {}).get("distractors")
    versions = facts.data_version("main"), facts.data_version("distractors")
    return facts.data_folder, facts.val_split, distractors, versions


def _image(sets: Sequence[ShardSet], side: str, item_id: str) -> PageImage:
    sample = find_samples(sets, [item_id], skip_damaged=True).get(item_id)
    if sample is None:
        return PageImage("", item_id)
    data, text = sample.inputs.get(field_name(side, IMAGE)), str(sample.inputs.get(field_name(side, TEXT), ""))
    title = text.split(". ")[0].strip() or item_id
    return PageImage(data_uri(data) if isinstance(data, bytes) else "", plain(title, MAX_TITLE))


def data_uri(data: bytes, is_whole: bool = True) -> str:
    """Return an encoded image as a data URI of a small JPEG; of a truncated one, the part that decodes.

    Raises:
        ValueError: see `decode_image`.
    """
    image = Image.fromarray(decode_image(data, SIDE, SIDE) if is_whole else decode_truncated(data))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
