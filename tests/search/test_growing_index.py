"""An index of a catalog that changes: only new rows are embedded, and the index becomes that of the newest version."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.preparation import Validation, prepare_shards
from mim_lightning.data.preparation.prepared import ShardSettings, open_prepared
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.versions.change import Change, Deletion, Tables
from mim_lightning.data.versions.next_version import change_data
from mim_lightning.search.combined_scores import REFERENCE, reference_products
from mim_lightning.search.embedding_reuse import carry_over
from mim_lightning.search.embedding_store import EmbeddedCatalog, EmbeddingStore, StoredEmbedding, describe_embedding
from mim_lightning.search.index.factory import create_index, open_index
from mim_lightning.search.index.index_settings import IndexSettings, ModelFacts
from mim_lightning.search.index_builder import CATALOG_DIGESTS, CATALOG_VERSIONS, add_products
from mim_lightning.search.product_images import CATALOGS
from tests.data.conftest import jpeg, write_csv

QUIET = Validation(write_report=lambda report, folder, reader: None)


def write_products(root: Path, name: str, rows: dict[str, str]) -> str:
    """Write a table of products with one image, one of them with two; by id with a title each."""
    for product_id in rows:
        (root / f"{product_id}.jpg").write_bytes(jpeg(int(product_id[1:])))
    products = [{"product_id": key, "image": f"{key}.jpg", "title": title} for key, title in rows.items()]
    products[0]["image"] += "|p3.jpg"
    return str(write_csv(root / f"{name}.csv", products))


def vectors_of(catalog: ShardSet, idx: int) -> torch.Tensor:
    """Return vectors that are a function of the rows alone, as those of a model are."""
    parts = []
    for sample in catalog.read(range(*catalog.span(idx))):
        seed = hashlib.sha256(repr(sorted(sample.inputs.items())).encode()).digest()
        vector = np.random.default_rng(list(seed)).normal(size=8).astype(np.float32)
        parts.append(torch.from_numpy(vector / np.linalg.norm(vector)))
    return torch.stack(parts)


def embed(folder: Path, catalog: ShardSet, embedded_shards: list[int]) -> EmbeddedCatalog:
    facts = describe_embedding(catalog, "f00d", "product_image", 8)
    carry_over(folder, facts, catalog)
    store = EmbeddingStore(folder, facts)
    missing = store.missing()
    embedded_shards[:] = missing
    for idx in missing:
        vectors = vectors_of(catalog, idx)
        facts_of = map(catalog.read_facts, range(*catalog.span(idx)))
        store.write(idx, vectors, torch.ones(len(vectors), dtype=torch.bool), facts_of)
    return store.collect(catalog)


def build(place: Path, embedded: EmbeddedCatalog, catalog: ShardSet, **more: Any) -> None:
    facts = ModelFacts("f00d", "product_image", 8)
    folder = embedded.facts.catalog
    known = {CATALOG_VERSIONS: {folder: catalog.version}, CATALOG_DIGESTS: {folder: catalog.digest}}
    extra = {CATALOGS: [folder], **known, **more}
    create_index(embedded.vectors, embedded.product_ids, embedded.products, IndexSettings(), facts, place, extra)


def content_of(place: Path) -> dict[str, tuple[str, list[list[float]]]]:
    index = open_index(place)
    ids = [str(one) for one in index.search(np.eye(8, dtype=np.float32)[:1], 50).product_ids[0] if one]
    titles = {record["product_id"]: record["title"] for record in index.products(ids)}
    assert len(ids) == index.card.num_products
    return {one: (titles[one], sorted(index.vectors_of(one).tolist())) for one in ids}


def test_a_milvus_collection_grows_with_its_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a process is killed between the rows and the card that says which version they are of."""
    pytest.importorskip("pymilvus", reason="extra milvus")
    pytest.importorskip("milvus_lite", reason="extra milvus")
    from mim_lightning.search.index.milvus_index import MilvusIndex

    products = write_products(tmp_path, "first", {f"p{number}": f"t{number}" for number in range(9)})
    shop, places, index = tmp_path / "shop", tmp_path / "embedded", tmp_path / "index.db"
    prepare_shards(ManifestSource(products, None), shop, ShardSettings(samples_per_shard=3), validation=QUIET)
    catalog = open_prepared(shop).catalog()
    build(index, embed(places, catalog, []), catalog)
    more = write_products(tmp_path, "more", {"p20": "t20", "p21": "t21", "p4": "other"})
    change_data(shop, Change(Tables(more, None, replace=True), Deletion(["p8"])), QUIET, num_workers=1)
    catalog = open_prepared(shop).catalog()
    embedded = embed(places, catalog, [])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(MilvusIndex, "_change_card", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        add_products(str(index), embedded, catalog)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(MilvusIndex, "set_extra", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        add_products(str(index), embedded, catalog)
    card, update = add_products(str(index), embedded, catalog)
    assert str(update).endswith("deleted 0"), "the rows are there, and the card follows"
    build(tmp_path / "other.db", embedded, catalog)
    assert content_of(index) == content_of(tmp_path / "other.db")
    other = open_index(tmp_path / "other.db").card
    assert (card.num_products, card.num_rows) == (other.num_products, other.num_rows) == (10, 12)
    assert card.extra[CATALOG_VERSIONS] == {catalog.place: 2}
    _, update = add_products(str(index), embedded, catalog)
    assert str(update) == "kept 0 products, added 0, replaced 10, deleted 0"


def test_an_index_grows_with_its_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    products = write_products(tmp_path, "first", {f"p{number}": f"t{number}" for number in range(9)})
    shop, places, new = tmp_path / "shop", tmp_path / "embedded", list[int]()
    prepare_shards(ManifestSource(products, None), shop, ShardSettings(samples_per_shard=3), validation=QUIET)
    catalog = open_prepared(shop).catalog()
    first = embed(places, catalog, new)
    assert new == [0, 1, 2, 3]
    build(tmp_path / "index", first, catalog, **{REFERENCE: ["p8", "p1"]})
    shutil.copytree(shop, tmp_path / "twin")
    both = [first.facts.catalog, str(tmp_path / "twin" / Path(first.facts.catalog).name)]
    build(tmp_path / "of two", first, catalog, **{CATALOGS: both})
    build(tmp_path / "of another", first, catalog, **{CATALOG_DIGESTS: {first.facts.catalog: "another"}})
    build(tmp_path / "older", first, catalog, **{CATALOG_DIGESTS: {}})
    (places / "notes.txt").write_text("of a user")

    more = write_products(tmp_path, "more", {"p20": "t20", "p21": "t21", "p4": "other"})
    change_data(shop, Change(Tables(more, None, replace=True), Deletion(["p8"])), QUIET, num_workers=1)
    catalog = open_prepared(shop).catalog()
    before = {path.name: path.read_bytes() for path in places.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(StoredEmbedding, "write", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        embed(places, catalog, new)
    assert before.items() <= {path.name: path.read_bytes() for path in places.iterdir()}.items()
    embedded = embed(places, catalog, new)
    assert new == [4, 5], "the shards of the new rows"
    assert len([*places.iterdir()]) == 2 * len(catalog.sizes) + len(["embeddings.json", "rows.parquet", "notes.txt"])
    fresh = embed(tmp_path / "fresh", catalog, [])
    assert embedded.product_ids == fresh.product_ids
    np.testing.assert_array_equal(embedded.vectors, fresh.vectors)
    card, update = add_products(str(tmp_path / "index"), embedded, catalog)
    assert str(update) == "kept 7 products, added 2, replaced 1, deleted 1"
    assert card.extra[REFERENCE] == reference_products(fresh.product_ids)
    build(tmp_path / "other", fresh, catalog)
    assert content_of(tmp_path / "index") == content_of(tmp_path / "other")

    for name, counts, note in (
        ("of two", "kept 8 products, added 2, replaced 1, deleted 0", "not deleted, as another catalog .* has them: 1"),
        ("of another", "kept 1 products, added 2, replaced 8, deleted 0", "the catalog was prepared again since"),
        ("older", "kept 1 products, added 2, replaced 8, deleted 0", "does not say which preparation"),
    ):
        _, update = add_products(str(tmp_path / name), embedded, catalog)
        assert str(update).startswith(f"{counts}; ")
        assert re.search(note, str(update))

    change_data(shop, Change(compact=0.1), QUIET, num_workers=1)
    catalog = open_prepared(shop).catalog()
    embedded = embed(places, catalog, new)
    assert catalog.version == 3
    assert new == [], "rows that were written again are known by their content"
    _, update = add_products(str(tmp_path / "index"), embedded, catalog)
    assert str(update) == "kept 10 products, added 0, replaced 0, deleted 0"
    assert content_of(tmp_path / "index") == content_of(tmp_path / "other")
    assert card.num_products == open_index(tmp_path / "index").card.num_products == 10
