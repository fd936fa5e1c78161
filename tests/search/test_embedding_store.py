"""An embedding folder keeps whole shards, says what is missing, and refuses what is not its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.preparation import prepare_shards
from mim_lightning.data.preparation.prepared import ShardSettings
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.io import mapped_file
from mim_lightning.search import embedding_store
from mim_lightning.search.embedding_store import EmbeddingStore, describe_embedding, tabulate_facts, tabulate_products
from mim_lightning.search.index.products import type_products
from tests.shard_sets import write_shard_set


@pytest.fixture
def catalog(tmp_path: Path) -> ShardSet:
    products = [
        ("a", "a", {"price": "3.5", "stock": 2}),
        ("a", "a", {"price": "3.5", "stock": 2}),
        ("b", "b", {"price": "x", "colour": "red"}),
        ("c", "c", {}),
        ("d", None, {"stock": 4.5}),
    ]
    records = [
        Record(
            {}, {"product_id": i, "product_text": f"{i}. text", "title": title, "category": None, "metadata": metadata}
        )
        for i, title, metadata in products
    ]
    write_shard_set(tmp_path / "catalogue", records, 5, samples_per_shard=2)
    return ShardSet(tmp_path / "catalogue")


def facts_of(catalog: ShardSet, shard_idx: int) -> Iterable[dict]:
    return map(catalog.read_facts, range(*catalog.span(shard_idx)))


def fill(folder: EmbeddingStore, catalog: ShardSet, *shard_idxs: int) -> None:
    for shard_idx in shard_idxs:
        size = folder.facts.shard_sizes[shard_idx]
        rows = torch.arange(size * 4, dtype=torch.float32).view(size, 4) + 100 * shard_idx
        folder.write(shard_idx, rows, torch.ones(size, dtype=torch.bool), facts_of(catalog, shard_idx))


def test_missing_embeddings_are_computed_and_all_returned(catalog: ShardSet, tmp_path: Path) -> None:
    facts = describe_embedding(catalog, "f00d", "product", 4)
    folder = EmbeddingStore(tmp_path / "out", facts)
    assert folder.missing() == [0, 1, 2]
    fill(folder, catalog, 1)
    folder = EmbeddingStore(tmp_path / "out", facts)
    assert folder.missing() == [0, 2]
    fill(folder, catalog, 0, 2)
    embedded = folder.collect(catalog)
    assert embedded.product_ids == ["a", "a", "b", "c", "d"]
    assert embedded.vectors[:, 0].tolist() == [0, 4, 100, 104, 200]
    assert embedded.products.to_pylist() == [
        {"product_id": "a", "title": "a", "category": None, "colour": None, "price": "3.5", "stock": 2.0},
        {"product_id": "b", "title": "b", "category": None, "colour": "red", "price": "x", "stock": None},
        {"product_id": "c", "title": "c", "category": None, "colour": None, "price": None, "stock": None},
        {"product_id": "d", "title": "d", "category": None, "colour": None, "price": None, "stock": 4.5},
    ]
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "rows.parquet")
    assert rows["product_id"].to_pylist() == embedded.product_ids


def test_rows_without_a_vector_are_left_out(catalog: ShardSet, tmp_path: Path) -> None:
    folder = EmbeddingStore(tmp_path / "out", describe_embedding(catalog, "f00d", "product_image", 4))
    fill(folder, catalog, 0, 2)
    folder.write(1, torch.ones(2, 4), torch.tensor([False, True]), facts_of(catalog, 1))
    embedded = folder.collect(catalog)
    assert embedded.product_ids == ["a", "a", "c", "d"] and embedded.num_absent == 1
    assert len(embedded.vectors) == 4 and len(embedded.products) == 4


def test_rows_of_parts_follow_those_of_whole_images(catalog: ShardSet, tmp_path: Path) -> None:
    whole = EmbeddingStore(tmp_path / "out", describe_embedding(catalog, "f00d", "product", 4))
    fill(whole, catalog, 0, 1, 2)
    parts = []
    for name, present in (("grid 1", [False, True]), ("grid 2", [False, False])):  # no image has the second part
        facts = describe_embedding(catalog, "f00d", "product", 4, name)
        parts.append(EmbeddingStore(tmp_path / name, facts))
        for idx, size in enumerate(catalog.sizes):
            parts[-1].write(idx, torch.full((size, 4), idx + 0.5), torch.tensor(present[:size]), iter(()))
    assert not [*tmp_path.glob("grid*/*.parquet")]  # the products are those of the whole images
    embedded = whole.collect(catalog, parts)
    assert embedded.product_ids == ["a", "a", "b", "c", "d", "a", "c"] and embedded.num_absent == 0
    assert embedded.vectors[:, 0].tolist() == [0, 4, 100, 104, 200, 0.5, 1.5] and len(embedded.products) == 4


def test_an_empty_gallery_is_an_error(catalog: ShardSet, tmp_path: Path) -> None:
    folder = EmbeddingStore(tmp_path / "out", describe_embedding(catalog, "f00d", "product_image", 4))
    for shard_idx, size in enumerate(catalog.sizes):
        folder.write(shard_idx, torch.zeros(size, 4), torch.zeros(size, dtype=torch.bool), facts_of(catalog, shard_idx))
    with pytest.raises(ValueError, match="no product has the inputs of 'product_image'"):
        folder.collect(catalog)


@pytest.mark.parametrize(
    ("change", "message"), [({"fingerprint": "beef"}, "fingerprint=f00d, not beef"), ({"written": 1}, "written=")]
)
def test_another_models_folder_is_refused(catalog: ShardSet, tmp_path: Path, change: dict, message: str) -> None:
    facts = describe_embedding(catalog, "f00d", "product", 4)
    EmbeddingStore(tmp_path / "out", facts)
    with pytest.raises(ValueError, match=message):
        EmbeddingStore(tmp_path / "out", type(facts)(**{**vars(facts), **change}))


def test_a_damaged_shard_is_named(catalog: ShardSet, tmp_path: Path) -> None:
    folder = EmbeddingStore(tmp_path / "out", describe_embedding(catalog, "f00d", "product", 4))
    fill(folder, catalog, 0, 1, 2)
    path = tmp_path / "out" / "000001.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"000001.safetensors: damaged"):
        folder.collect(catalog)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_whole_numbers_of_a_table_come_back_whole(tmp_path: Path, kind: str) -> None:
    """From the shop's table by the shards to what an index gives out, gaps and all."""
    rows = {"product_id": ["a", "b", "c"], "image": ["p.jpg"] * 3, "title": ["x"] * 3}
    Image.new("RGB", (9, 9), "red").save(tmp_path / "p.jpg")
    path = tmp_path / f"products.{kind}"
    table = pa.table({**rows, "price": [5, None, 40], "weight": [0.5, 2.0, None]})
    if kind == "csv":
        pa.csv.write_csv(table, path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        gaps = table.set_column(3, "price", pa.array([5.0, None, 40.0]))  # as a data frame has them
        pa.parquet.write_table(gaps, path)
    catalog = prepare_shards(ManifestSource(str(path), None), tmp_path / "set", ShardSettings()).catalog()
    typed = type_products(tabulate_products(tabulate_facts(map(catalog.read_facts, range(3)))))
    found = [(record["price"], record["weight"]) for record in typed.records(np.arange(3))]
    assert repr(found) == repr([(5, 0.5), (None, 2.0), (40, None)])


def test_columns_are_typed_over_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_store, "BLOCK_ROWS", 2)
    columns: dict[str, list] = {
        "whole": [1, None, 2**40, 3, None],
        "mixed": [1, 2, 0.5, None, 4],
        "text": [1, 2, "x", None, 0.25],
        "flag": [True, None, False, True, True],
        "flag_or_number": [True, 2, None, None, None],
        "flag_or_fraction": [True, 0.5, None, None, None],
        "empty": [None] * 5,
        "nested": [[1, "a"], {"b": 2}, None, None, None],
    }
    facts = [
        {
            "product_id": f"p{9 - row}",
            "category": None,
            "title": "é",
            "metadata": {n: v[row] for n, v in columns.items()},
        }
        for row in range(5)
    ]
    later = [{**fact, "title": "later"} for fact in facts]  # of a product the first row counts
    table = tabulate_products(tabulate_facts([*facts, *later]))
    assert table["product_id"].to_pylist() == ["p5", "p6", "p7", "p8", "p9"] and set(table["title"].to_pylist()) == {
        "é"
    }
    expected = {
        **columns,
        "mixed": [1.0, 2.0, 0.5, None, 4.0],
        "text": ["1", "2", "x", None, "0.25"],
        "flag_or_number": ["True", "2", None, None, None],
        "flag_or_fraction": [1.0, 0.5, None, None, None],
        "nested": ["[1, 'a']", "{'b': 2}", None, None, None],
    }
    for name, values in expected.items():
        assert repr(table[name].to_pylist()[::-1]) == repr(values), name


def test_shards_of_a_former_version_and_large_vectors_give_the_same(
    catalog: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = EmbeddingStore(tmp_path / "out", describe_embedding(catalog, "f00d", "product", 4))
    fill(folder, catalog, 0, 1, 2)
    before = folder.collect(catalog)
    (tmp_path / "out" / "000001.products.parquet").unlink()  # it wrote none
    monkeypatch.setattr(mapped_file, "IN_MEMORY", 0)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    after = folder.collect(catalog)
    assert isinstance(after.vectors, np.memmap) and np.array_equal(after.vectors, before.vectors)
    assert after.products.equals(before.products) and after.product_ids == before.product_ids
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    (tmp_path / "out" / "000002.products.parquet").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"000002.products.parquet: damaged .*remove it and 000002.safetensors"):
        folder.collect(catalog)
