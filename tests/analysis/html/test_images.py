"""Images of a page: the right ones, small, and none if the shards are missing."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mim_lightning.analysis.html.images import SIDE, ImageCache, open_images
from mim_lightning.analysis.record import RunFacts
from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.preparation import prepare_shards
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings
from tests.shop import write_shop


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    products, queries = write_shop(tmp_path / "shop")
    return prepare_shards(ManifestSource(str(products), str(queries)), tmp_path / "prepared", ShardSettings())


def pixels(uri: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=int)


def is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and float(np.abs(one - other).mean()) < 4  # encoded twice


def test_every_item_has_its_own_image_and_title(prepared: PreparedData, tmp_path: Path) -> None:
    pictures = open_images(str(prepared.folder), "val")
    assert not pictures.missing
    for number in range(6):
        shown = pictures.product(f"{number:03d}")
        stored = np.asarray(Image.open(tmp_path / "shop" / f"shop{number}.jpg").convert("RGB"), dtype=int)
        assert is_same(pixels(shown.uri), stored)
        facts = prepared.catalog().read_facts(number)
        assert (facts["product_id"], facts["product_text"]) == (f"{number:03d}", shown.title)
    (sample,) = prepared.queries("val").read([4])
    stored = np.asarray(Image.open(io.BytesIO(sample.inputs["query_image"])), dtype=int)
    assert is_same(pixels(pictures.query(sample.query_id).uri), stored)
    assert not is_same(pixels(pictures.query(sample.query_id).uri), pixels(pictures.product("001").uri))


def test_an_unknown_item_is_shown_by_its_id(prepared: PreparedData) -> None:
    shown = open_images(str(prepared.folder), "val").product("nobody")
    assert (shown.uri, shown.title) == ("", "nobody")


def test_large_images_become_small(tmp_path: Path) -> None:
    products, queries = write_shop(tmp_path / "shop")
    Image.new("RGB", (900, 450), "#3050c0").save(tmp_path / "shop" / "shop2.jpg")
    prepare_shards(ManifestSource(str(products), str(queries)), tmp_path / "prepared", ShardSettings())
    picture = pixels(open_images(str(tmp_path / "prepared"), "val").product("002").uri)
    assert picture.shape == (SIDE // 2, SIDE, 3)
    assert np.abs(picture - [0x30, 0x50, 0xC0]).max() < 8


def test_a_deleted_folder_is_reported_once(tmp_path: Path) -> None:
    facts = RunFacts("run", {}, "weights", "val/a_to_b/hit@1", str(tmp_path / "gone"), "val")
    album = ImageCache()
    assert album.of(facts).product("001").uri == "" and album.of(facts).query("q").title == "q"
    assert len(album.missing) == 1 and "gone" in album.missing[0]


def test_distractors_have_their_own_folder(prepared: PreparedData, tmp_path: Path) -> None:
    products, queries = write_shop(tmp_path / "more")
    for table in (products, queries):
        table.write_text(table.read_text().replace(",00", ",d00").replace("\n00", "\nd00"))
    prepare_shards(ManifestSource(str(products), str(queries)), tmp_path / "distractors", ShardSettings())
    pictures = open_images(str(prepared.folder), "val", str(tmp_path / "distractors"))
    assert pictures.product("d003").uri and pictures.product("003").uri
