"""Adding to an index: what a search needs besides rows, images and filters, grows with it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from mim_lightning.build_index import build_index
from mim_lightning.config import compose
from mim_lightning.data.images.crops import CropSettings
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.search.embedding_store import EmbeddedCatalog, EmbeddingFacts
from mim_lightning.search.facets import FACETS
from mim_lightning.search.index.card import CATALOG_DIGESTS, CATALOG_VERSIONS, CROPS
from mim_lightning.search.index.factory import open_index
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index_builder import WHOLE, add_products, had_boxes, validate_gallery, validate_update
from mim_lightning.search.product_images import CATALOGS, ProductImages
from mim_lightning.types import ImageSpec, TextSpec
from tests.search.service.color_shop import FINGERPRINT, color_index, square
from tests.shard_sets import write_shard_set


def embedded(folder: Path, rows: dict[str, bytes], category: str, price: float) -> EmbeddedCatalog:
    """Write the shard set of further products, by id with an image each, and return it as if it were embedded."""
    products = [{"product_id": product_id, "title": product_id, "category": category} for product_id in rows]
    records = [
        Record({"product_image": rows[product["product_id"]]}, {**product, "product_text": "x"}) for product in products
    ]
    write_shard_set(folder, records, len(records), samples_per_shard=10)
    facts = EmbeddingFacts(FINGERPRINT, "product_image", 3, str(folder), [len(records)], 0)
    table = pa.Table.from_pylist([{**product, "price": price} for product in products])
    vectors = np.eye(3, dtype=np.float32)[: len(rows)]
    return EmbeddedCatalog(facts, vectors, list(rows), table, 0)


def test_added_products_have_images_and_can_be_filtered_by(tmp_path: Path) -> None:
    color_index(tmp_path)
    place, new = str(tmp_path / "index"), square("green", "PNG")
    more = embedded(tmp_path / "more", {"teal-1": new, "red-1": new}, "seasonal", 99.0)
    for _ in range(2):  # the second time, all of it is known
        card, update = add_products(place, more, ShardSet(tmp_path / "more"))
        assert card.extra[CATALOGS] == [str(tmp_path / "catalogue"), str(tmp_path / "more")]
    assert str(update) == "kept 3 products, added 0, replaced 2, deleted 0"
    index = open_index(place)
    assert index.card == card and card.num_products == 5
    assert card.extra[FACETS] == {
        "category": {"values": ["cold", "seasonal", "warm"]},
        "price": {"min": 0.0, "max": 99.0},
    }
    pictures = ProductImages(card).read(["teal-1", "red-1", "blue-1", "nobody"])
    assert pictures == {"teal-1": new, "red-1": new, "blue-1": square("blue")}
    found = index.search(np.eye(3, dtype=np.float32)[:1], 5, {"category": "seasonal"})
    assert {product_id for product_id in found.product_ids[0] if product_id} == {"teal-1", "red-1"}


@pytest.mark.parametrize(("given", "ours"), [("dimension=2", "dimension=3"), ("precision=int8", "precision=float32")])
def test_an_update_keeps_dimension_and_precision(given: str, ours: str, tmp_path: Path) -> None:
    card, place = color_index(tmp_path).card, tmp_path / "index"
    checkpoint = tmp_path / "never_read.ckpt"
    checkpoint.touch()
    words = [f"checkpoint={checkpoint}", f"output={place}", "update=true", "trainer=cpu", given]
    config = compose("build_index", words)
    with pytest.raises(ValueError, match=f"^{given}: {place} has {ours}, which update=true keeps; leave it out"):
        build_index(config)
    assert validate_update(str(place), IndexSettings(dimension=3)) == (card, WHOLE)


def test_crops_need_a_gallery_that_reads_the_image() -> None:
    image, text = ImageSpec((4, 4)), TextSpec(lambda texts: torch.zeros(len(texts), 1), 1)
    specs = {"product_text": text, "product": {"product_image": image, "product_text": text}}
    check = partial(validate_gallery, IndexSettings(), CropSettings(grid=2), fusion=None, full=3, specs=specs)
    check("product")  # a tower that reads both
    with pytest.raises(ValueError, match=r"^crops: 2 x 2 parts, but the gallery 'product_text' has no product_image"):
        check("product_text")


def test_a_next_version_of_a_catalog_may_not_lose_its_boxes(tmp_path: Path) -> None:
    card = color_index(tmp_path).card
    for name, metadata in (("boxed", {"parts": "0,0,1,0.5"}), ("plain", {})):
        product = {"product_id": "p", "category": "cup", "metadata": metadata}
        write_shard_set(tmp_path / name, [Record({"product_image": square("red")}, product)], 1, samples_per_shard=1)
    boxed, plain = ShardSet(tmp_path / "boxed"), ShardSet(tmp_path / "plain")
    versions = {CATALOG_VERSIONS: {boxed.place: boxed.version, plain.place: plain.version}}
    extra = {CROPS: {"boxes": "parts"}, CATALOGS: [boxed.place, plain.place], **versions}
    known = replace(card, extra={**extra, CATALOG_DIGESTS: {boxed.place: boxed.digest, plain.place: plain.digest}})
    assert had_boxes(known, boxed) and not had_boxes(known, plain)
    assert not had_boxes(replace(known, extra={**known.extra, CATALOGS: []}), boxed), "an index that has it not"
    for unknown in ({CATALOG_DIGESTS: {plain.place: "of another preparation"}}, {CATALOG_VERSIONS: {plain.place: 7}}):
        assert had_boxes(replace(known, extra={**known.extra, **unknown}), plain)


def test_another_gallery_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    before = color_index(tmp_path).card
    more = embedded(tmp_path / "more", {"teal-1": square("green")}, "seasonal", 99.0)
    other = EmbeddingFacts(**{**vars(more.facts), "gallery": "product"})
    with pytest.raises(ValueError, match="is an index of 'product_image', not of 'product'"):
        add_products(
            str(tmp_path / "index"), EmbeddedCatalog(**{**vars(more), "facts": other}), ShardSet(tmp_path / "more")
        )
    assert open_index(tmp_path / "index").card == before
