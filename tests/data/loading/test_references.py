"""The product on the photo of a composed row is found in the catalog and joins the batch."""

from pathlib import Path

import pytest
import torch

from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.corrupt_samples import load_batch
from mim_lightning.data.loading.references import ReferenceCatalog, ReferenceReader
from mim_lightning.data.shards.mixture_set import ConcatShardSet
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.types import NO_KEY, ImageSpec, Sample, TextSpec, hash_id
from tests.data.conftest import jpeg, tokenize
from tests.shard_sets import write_shard_set

SPECS = {
    "query_image": ImageSpec((8, 8)),
    "product_image": ImageSpec((8, 8)),
    "product_text": TextSpec(tokenize, 16),
    "product_brand": TextSpec(tokenize, 16),
}


@pytest.fixture
def catalog(tmp_path: Path) -> ShardSet:
    """Products a, b (with two images) and c; c has no image."""
    rows = [("a", 1), ("b", 2), ("b", 3), ("c", None)]
    records = [
        Record(
            {} if seed is None else {"product_image": jpeg(seed)},
            {"product_id": name, "product_text": f"title {name}", "fields": {"product_brand": name}, "category": name},
        )
        for name, seed in rows
    ]
    write_shard_set(tmp_path / "catalog", records, len(records), 3)
    return ShardSet(tmp_path / "catalog")


def row(number: int, product: str, reference: str, *, query: str = "q", prefix: str = "", **changes: object) -> Sample:
    inputs = {"query_image": jpeg(10 + number), "product_image": jpeg(1), "product_text": f"title {product}"}
    facts = {"product_id": prefix + product, "target_ids": (prefix + product,), "reference_ids": (prefix + reference,)}
    return Sample(number, **{"inputs": inputs, "query_id": query, **facts, **changes})  # type: ignore[arg-type]


def test_references_follow_the_rows_and_share_their_inputs(catalog: ShardSet) -> None:
    reader = ReferenceReader([ReferenceCatalog(catalog)])
    rows = [
        row(0, "x", "a"),
        row(1, "a", "a"),
        row(2, "y", "gone"),
        row(3, "x", "c"),
        row(4, "x", "a", is_padding=True),
    ]
    batch = Collate(SPECS, references=reader)(rows)
    assert len(batch) == batch.num_references == 5
    assert batch.product_keys.tolist()[5:] == [hash_id("a"), NO_KEY, NO_KEY, hash_id("c"), NO_KEY]
    assert batch.is_padding.tolist() == [False] * 4 + [True, False, True, True, False, True]
    assert (batch.query_keys[5:] == NO_KEY).all() and (batch.target_keys[5:] == NO_KEY).all()
    assert (batch.rows["query_image"][5:] == -1).all()
    # the image of product a is that of every row here: decoded once
    assert batch.rows["product_image"].tolist() == [0, 0, 0, 0, 0, 0, -1, -1, -1, -1]
    assert batch.rows["product_text"].tolist() == [0, 1, 2, 0, 0, 1, -1, -1, 3, -1]
    assert batch.rows["product_brand"].tolist()[5:] == [0, -1, -1, 1, -1]
    moved = batch.map(torch.clone)
    assert moved.num_references == 5 and torch.equal(moved.product_keys, batch.product_keys)


def test_the_query_chooses_among_the_images_of_a_reference(catalog: ShardSet) -> None:
    reader = ReferenceReader([ReferenceCatalog(catalog)])
    rows = [row(number, "x", "b", query=f"q{number}") for number in range(20)]
    images = {sample.inputs["product_image"] for sample in reader.read(rows)}
    assert images == {jpeg(2), jpeg(3)}
    assert reader.read(rows) == reader.read(rows)


def test_sets_of_a_mixture_have_catalogs_of_their_own(catalog: ShardSet, tmp_path: Path) -> None:
    other = Record({"product_image": jpeg(7)}, {"product_id": "a", "product_text": "another a"})
    write_shard_set(tmp_path / "other", [other], 1, 1)
    others = ShardSet(tmp_path / "other")
    train = ConcatShardSet({"main": catalog, "web": others}, {"web"})  # four rows, then one
    reader = ReferenceReader.of(train, {"main": catalog, "web": others})
    own, foreign = reader.read([row(3, "x", "a"), row(4, "x", "a", prefix="web:")])
    assert (own.product_id, own.inputs["product_text"]) == ("a", "title a")
    assert (foreign.product_id, foreign.inputs["product_text"]) == ("web:a", "another a")


def test_a_damaged_catalog_is_named_or_the_reference_skipped(catalog: ShardSet, tmp_path: Path) -> None:
    facts = {"query_id": "q", "product_id": "x", "asked_ids": ["x"], "shown_ids": ["a"]}
    write_shard_set(tmp_path / "train", [Record({"query_image": jpeg(1)}, facts)], 1, 1)
    collate = Collate(SPECS, references=ReferenceReader([ReferenceCatalog(catalog)]))
    for path in (tmp_path / "catalog").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:100])
    train = ShardSet(tmp_path / "train")
    # of a damaged reference the row stays, and the catalog is named alone
    with pytest.raises(ValueError, match=rf"^{tmp_path}/catalog/000000.tar.* \(the reference of sample 0\)$"):
        load_batch(train, collate, [0], 0, (0, 0))
    loaded = load_batch(train, collate, [0], 0, (0, 0), skips=True)
    assert loaded.batch.is_padding.tolist() == [False, True]
    assert [(skipped.sample_num, "catalog" in skipped.reason) for skipped in loaded.skipped] == [(0, True)]


def test_a_reference_that_cannot_be_decoded_is_left_out_alone(tmp_path: Path) -> None:
    broken = {"product_image": jpeg(1)[:-200] + b"x"}
    write_shard_set(tmp_path / "catalog", [Record(broken, {"product_id": "a"})], 1, 1)
    facts = {"query_id": "q", "product_id": "x", "asked_ids": ["x"], "shown_ids": ["a"]}
    rows = [Record({"query_image": jpeg(seed)}, facts) for seed in (1, 2)]
    rows += [Record({"query_image": jpeg(3)[:-200] + b"x"}, facts)]
    write_shard_set(tmp_path / "train", rows, 3, 3)
    train, reader = ShardSet(tmp_path / "train"), ReferenceReader([ReferenceCatalog(ShardSet(tmp_path / "catalog"))])
    specs = {name: SPECS[name] for name in ("query_image", "product_image")}
    collate = Collate(specs, references=reader)
    wanted = rf"^{tmp_path}/catalog: product 'a', the reference of sample 0, product_image: "
    with pytest.raises(ValueError, match=wanted):
        load_batch(train, collate, [0, 1], 0, (0, 0))
    loaded = load_batch(train, collate, [0, 1, 2], 0, (0, 0), skips=True)
    assert loaded.batch.is_padding.tolist() == [False, False, True] + [True] * 3
    assert [skipped.sample_num for skipped in loaded.skipped] == [0, 1, 2]
    assert "train: sample 2, query_image" in loaded.skipped[2].reason
