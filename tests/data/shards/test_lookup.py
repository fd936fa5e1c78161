"""Segments and ids of a set by key; samples by id from the first set that has one."""

import csv
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mim_lightning.data.images.codec import sharpness
from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.preparation import prepare_shards
from mim_lightning.data.preparation.prepared import ShardSettings
from mim_lightning.data.shards.lookup import QueryFacts, find_samples, product_ids_of, query_facts
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.types import hash_id
from tests.data.conftest import encoded
from tests.shard_sets import write_shard_set

MakeCatalog = Callable[[str, Mapping[str, list[bytes | None]]], ShardSet]


def noisy(blur: float) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur))


def test_sharpness_orders_images_and_knows_no_size() -> None:
    values = [sharpness(encoded(noisy(blur), "PNG")) for blur in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[-1] < values[0] / 50
    assert sharpness(encoded(Image.new("RGB", (40, 30), "red"))) == 0


def test_segments_of_queries(shop: ManifestSource, tmp_path: Path) -> None:
    texts = ["", "red", "red mug", "a red mug please", "", "red"]
    rows = [
        {
            "query_id": f"v{number}",
            "split": "val" if number else "train",
            "image": f"v{number}.png" if number != 5 else "",
            "text": text,
            "product_id": "7" if number % 2 else "x-9",
            "channel": "app" if number < 3 else "",
            "kind": "tone" if number < 3 else "",
        }
        for number, text in enumerate(texts)
    ]
    for number in range(5):
        noisy(number).save(tmp_path / "shop" / f"v{number}.png")
    path = tmp_path / "shop" / "more.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    source = ManifestSource(str(shop.products), str(path), segments=["channel"])
    prepared = prepare_shards(source, tmp_path / "prepared", ShardSettings(samples_per_shard=2))
    facts = query_facts(prepared.queries("val"))
    assert set(facts) == {hash_id(f"v{number}") for number in range(1, 6)}
    labels = {found.query_id: found.segments for found in facts.values()}
    assert [labels[f"v{n}"]["query_words"] for n in range(1, 6)] == [
        "1 word",
        "2 words",
        "3 or more words",
        "0 words",
        "1 word",
    ]
    assert [labels[f"v{n}"]["channel"] for n in range(1, 6)] == ["app", "app", "none", "none", "none"]
    assert [labels[f"v{n}"]["kind"] for n in range(1, 6)] == ["tone", "tone", "none", "none", "none"]
    assert [labels[f"v{n}"]["category"] for n in range(1, 6)] == ["cups", "none", "cups", "none", "cups"]
    assert [labels[f"v{n}"]["image_quality"] for n in range(1, 6)] == [
        "sharp third",
        "middle third",
        "blurred third",
        "blurred third",
        "no picture",
    ]
    assert facts[hash_id("v2")] == QueryFacts("v2", "red mug", labels["v2"])
    wanted = np.array([hash_id("7"), hash_id("0012"), hash_id("not there"), -1])
    assert product_ids_of([prepared.catalog()], wanted) == {hash_id("7"): "7", hash_id("0012"): "0012"}


@pytest.fixture
def make_catalog(tmp_path: Path) -> MakeCatalog:
    """Return a function that writes a set: a row for each image of each product, None for a row without one."""

    def make(name: str, pictures: Mapping[str, list[bytes | None]]) -> ShardSet:
        records = [
            Record({"product_image": data} if data else {}, {"product_id": product_id, "product_text": name})
            for product_id, rows in pictures.items()
            for data in rows
        ]
        write_shard_set(tmp_path / name, records, len(records), samples_per_shard=2)
        return ShardSet(tmp_path / name)

    return make


def test_the_first_set_with_the_sample_is_used(make_catalog: MakeCatalog) -> None:
    one = make_catalog("one", {"a": [b"a1", b"a2"], "b": [b"b1"]})
    other = make_catalog("other", {"b": [b"b2"], "c": [b"c2"]})
    found = find_samples([one, other], iter(["c", "b", "nobody", "a", "b"]))
    assert {item_id: sample.inputs["product_image"] for item_id, sample in found.items()} == {
        "a": b"a1", "b": b"b1", "c": b"c2",
    }  # fmt: skip
    assert all(sample.product_id == item_id for item_id, sample in found.items())
    assert find_samples([other, one], ["b"])["b"].inputs["product_text"] == "other"
    assert find_samples([], ["a"]) == find_samples([one], []) == {}


def test_a_sample_without_the_input_is_skipped(make_catalog: MakeCatalog) -> None:
    one, other = make_catalog("one", {"a": [None], "b": [None]}), make_catalog("other", {"a": [b"a2"]})
    assert set(find_samples([one, other], ["a", "b"])) == {"a", "b"}
    found = find_samples([one, other], ["a", "b"], having="product_image")
    assert [sample.inputs["product_image"] for sample in found.values()] == [b"a2"] and set(found) == {"a"}


def test_damaged_or_missing_files_are_reported_or_skipped(make_catalog: MakeCatalog) -> None:
    one = make_catalog("one", {"a": [b"a1"], "b": [b"b1"], "c": [b"c1"]})
    other = make_catalog("other", {"a": [b"a2"]})
    (one.folder / "000000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000000\.tar: damaged .it has 0 bytes"):
        find_samples([one, other], ["a", "c"])
    found = find_samples([one, other], ["a", "b", "c"], skip_damaged=True)
    assert {item_id: sample.inputs["product_image"] for item_id, sample in found.items()} == {"a": b"a2", "c": b"c1"}
    shutil.rmtree(one.folder)
    with pytest.raises((OSError, ValueError)):
        find_samples([one, other], ["a"])
    assert find_samples([one, other], ["a"], skip_damaged=True)["a"].inputs["product_image"] == b"a2"
