"""WebDataset shards become a manifest whose images are read in place."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mim_lightning.config import build, compose
from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.sources.webdataset import WebDatasetSource
from tests.data.conftest import jpeg

Samples = Mapping[str, Mapping[str, bytes]]
COLUMNS = {
    "products": {"product_id": "json:product.id", "image": "product.jpg|product.png", "title": "title.txt"},
    "queries": {"image": "query.jpg", "text": "json:query"},
}


def write_tar(path: Path, samples: Samples, **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for key, members in samples.items():
            for name, data in members.items():
                entry = tarfile.TarInfo(f"{key}.{name}")
                entry.size = len(data)
                tar.addfile(entry, BytesIO(data))
    return path


def sample(number: int, product: str, **facts: Any) -> dict[str, bytes]:
    content = {"product": {"id": product}, "query": "red" if number % 2 else None} | facts
    return {
        "query.jpg": jpeg(number, 8, 8),
        "product.jpg": jpeg(ord(product), 8, 8),
        "json": json.dumps(content).encode(),
        "title.txt": f"Product {product}\n".encode(),
    }


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Two training shards and one for validation: seven queries, three products."""
    folder = tmp_path / "shards"
    folder.mkdir()
    numbers = {"train-000000": range(3), "train-000001": range(3, 5), "val-000000": range(5, 7)}
    for name, part in numbers.items():
        write_tar(folder / f"{name}.tar", {f"shop/{n:04d}": sample(n, "abc"[n % 3]) for n in part})
    return folder


def source(shop: Path, **options: Any) -> WebDatasetSource:
    shards = {"train": str(shop / "train-{000000..000001}.tar"), "val": str(shop / "val-*.tar"), "test": None}
    return WebDatasetSource(**{"shards": shards, "columns": COLUMNS} | options)


def test_each_sample_is_a_query_and_its_products_are_the_catalog(shop: Path, tmp_path: Path) -> None:
    manifest = source(shop).read(tmp_path / "work")
    read = ImageReader().read
    assert list(manifest.products) == ["a", "b", "c"]
    for name, product in manifest.products.items():
        assert (product.title, product.text, product.category) == (f"Product {name}", f"Product {name}", None)
        assert [read(image) for image in product.images] == [jpeg(ord(name), 8, 8)]
    assert [query.split for query in manifest.queries] == ["train"] * 5 + ["val"] * 2
    assert [query.target_ids for query in manifest.queries] == [("abc"[n % 3],) for n in range(7)]
    assert [query.text for query in manifest.queries] == [None, "red", None, "red", None, "red", None]
    assert [read(query.image) for query in manifest.queries if query.image] == [jpeg(n, 8, 8) for n in range(7)]
    assert manifest.queries[3].origin == f"{shop / 'train-000001.tar'}, sample 'shop/0003'"
    assert not (tmp_path / "work").exists()


def test_shards_in_a_store(shop: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in shop.iterdir():
        store.pipe(f"/wds/{path.name}", path.read_bytes())
    there = source(shop, shards={"train": "memory://wds/train-*.tar", "val": "memory://wds/val-000000.tar"})
    manifest = there.read(tmp_path)
    assert [query.target_ids for query in manifest.queries] == [("abc"[n % 3],) for n in range(7)]
    assert [ImageReader().read(query.image) for query in manifest.queries if query.image] == [
        jpeg(n, 8, 8) for n in range(7)
    ]
    here = source(shop).describe()
    assert there.describe()["shards"] == here["shards"]
    store.rm("/wds", recursive=True)


def test_the_shipped_mapping(tmp_path: Path) -> None:
    def facts(number: int) -> bytes:
        return json.dumps({"product_id": f"p{number % 2}", "title": "Mug", "price": 3, "device": "phone"}).encode()

    samples = {
        f"{n}": {"query.png": jpeg(n, 8, 8), "json": facts(n), "product.webp": jpeg(9, 8, 8), "cls": b"1"}
        for n in range(3)
    }
    write_tar(tmp_path / "a.tar", samples)
    overrides = [f"data.source.shards.train={tmp_path}/a.tar", "data.source.metadata={price: json:price}"]
    config = compose("prepare", ["data=webdataset", *overrides, "data.source.segments={device: json:device}"])
    manifest = build(config["data"]["source"]).read(tmp_path)
    assert [(name, len(product.images)) for name, product in manifest.products.items()] == [("p0", 1), ("p1", 1)]
    assert manifest.products["p0"].metadata == {"price": 3}
    assert [query.segments for query in manifest.queries] == [{"device": "phone"}] * 3
    assert manifest.download is not None and manifest.download.num_connections == 16


def test_a_separate_catalog_and_urls_in_json(shop: Path, tmp_path: Path) -> None:
    facts = {"product": {"id": "z"}, "image_url": ["https://cdn.shop/z.jpg", "z2.jpg"]}
    write_tar(shop / "catalogue.tar", {"z": {"json": json.dumps(facts).encode(), "title.txt": b"Pan"}})
    columns = COLUMNS | {"products": COLUMNS["products"] | {"image": "product.jpg|json:image_url"}}
    manifest = source(shop, columns=columns, catalog=str(shop / "catalogue.tar")).read(tmp_path)
    assert list(manifest.products) == ["a", "b", "c", "z"]
    assert manifest.products["z"].images == ("https://cdn.shop/z.jpg", shop / "z2.jpg")
    assert len(manifest.queries) == 7


def test_samples_without_product_ids(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {str(n): {"jpg": jpeg(n, 8, 8), "txt": b"A mug"} for n in range(2)})
    columns = {"products": {"product_id": "__key__", "title": "txt"}, "queries": {"image": "jpg"}}
    manifest = WebDatasetSource({"train": str(tmp_path / "a.tar")}, columns=columns).read(tmp_path)
    assert [(query.target_ids, query.query_id) for query in manifest.queries] == [
        (("0",), "query-000000000"),
        (("1",), "query-000000001"),
    ]


def test_samples_with_issues_are_reported_and_left_out(shop: Path, tmp_path: Path) -> None:
    samples = {
        "bad-json": sample(0, "a") | {"json": b"{"},
        "no-object": sample(1, "a") | {"json": b"[1]"},
        "no-text": sample(2, "a") | {"title.txt": b"\xff"},
        "no-id": sample(3, "b") | {"json": b"{}"},
        "nothing": {"json": sample(4, "b")["json"]},
        "photo-less": {k: v for k, v in sample(6, "c").items() if k != "query.jpg"},
        "good": sample(5, "c"),
    }
    path = write_tar(shop / "train-000000.tar", samples)
    issues: list[RowIssue] = []
    manifest = source(shop, shards={"train": str(path)}).read(tmp_path, on_issue=issues.append)
    assert list(manifest.products) == ["c"] and len(manifest.queries) == 1
    message = "Expecting property name enclosed in double quotes"
    assert [(issue.table, issue.origin.split(", ")[1], issue.column, issue.reason) for issue in issues] == [
        ("queries", "sample 'bad-json'", "", f"member 'json' is not JSON ({message})"),
        ("queries", "sample 'no-object'", "", "member 'json' is not a JSON object"),
        ("queries", "sample 'no-text'", "", "member 'title.txt' is not UTF-8"),
        ("products", "sample 'no-id'", "product_id", "empty"),
        ("products", "sample 'nothing'", "", "product 'b' has neither image nor title"),
        ("queries", "sample 'photo-less'", "", "the query has neither image nor text"),
    ]


@pytest.mark.parametrize(
    ("table", "name", "place", "words"),
    [
        (
            "products",
            "title",
            "caption.txt",
            "title=caption.txt: none of the first 5 samples has it; they have",
        ),
        ("queries", "text", "json:words", "queries.text=json:words: none"),
        ("queries", "txt", "json:query", "no column 'txt'; did you mean text"),
        ("products", "product_id", None, "products.product_id: give a key of a sample, such as json:product_id"),
    ],
)
def test_a_mapping_to_a_missing_key(shop: Path, tmp_path: Path, table: str, name: str, place: str, words: str) -> None:
    columns = COLUMNS | {table: COLUMNS[table] | {name: place}}
    with pytest.raises(ValueError, match=words) as caught:
        source(shop, columns=columns, shards={"train": str(shop / "train-*.tar")}).read(tmp_path)
    assert "\n" not in str(caught.value)
    if "they have" in words:
        found = "__key__, json, json:product, json:product.id, json:query, product.jpg, query.jpg, title.txt"
        assert found in str(caught.value)


def cut(path: Path, place: int) -> None:
    """Cut a tar file off so many bytes after the header of its last member but one."""
    with tarfile.open(path) as tar:
        path.write_bytes(path.read_bytes()[: tar.getmembers()[-2].offset_data + place])


DAMAGES = {
    "cut in a member": (lambda path: cut(path, 5), "train-000001.tar: a damaged tar file"),
    "cut after a header": (lambda path: cut(path, 0), "train-000001.tar: a damaged tar file"),
    "cut between members": (lambda path: cut(path, 512), r"train-000001.tar: .*truncated: it has no end mark"),
    "compressed": (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "or a compressed one"),
    "gone": (Path.unlink, r"train-000001.tar: no such file"),
    "twice": (
        lambda path: write_tar(path, {"x": sample(1, "a")}) and _append(path, "x.query.jpg"),
        "sample 'x': has member 'query.jpg' twice",
    ),
}


def _append(path: Path, name: str) -> None:
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo(name))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_an_error(shop: Path, tmp_path: Path, damage: str) -> None:
    change, words = DAMAGES[damage]
    change(shop / "train-000001.tar")
    with pytest.raises(ValueError, match=words) as caught:
        source(shop).read(tmp_path, on_issue=lambda issue: None)
    assert "\n" not in str(caught.value)


def test_shards_are_described_by_names_sizes_and_content(shop: Path, tmp_path: Path) -> None:
    before = source(shop).describe()
    assert source(shop).describe() == before
    path = shop / "val-000000.tar"
    data = bytearray(path.read_bytes())
    data[1500] ^= 1
    path.write_bytes(data)
    assert source(shop).describe()["shards"]["val"] != before["shards"]["val"]
    assert source(shop).describe()["shards"]["train"] == before["shards"]["train"]
    other = source(shop, columns=COLUMNS | {"queries": {"image": "query.jpg"}}).describe()
    assert other["columns"] != before["columns"]


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_folders_and_notes_beside_samples(tmp_path: Path, layout: int) -> None:
    key = "a" * 60 + "/" + "b" * 80
    samples = {"__note__": {"json": b"{}"}, key: sample(1, "a"), "readme": {}}
    path = write_tar(tmp_path / "a.tar", samples, format=layout)
    with tarfile.open(path, "a", format=layout) as tar:
        folder = tarfile.TarInfo("c.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("no-ending"))
    manifest = source(tmp_path, shards={"train": str(path)}).read(tmp_path)
    (query,) = manifest.queries
    assert query.origin.endswith(f"sample '{key}'")
    assert query.image is not None and ImageReader().read(query.image) == jpeg(1, 8, 8)


def test_declared_fields_have_places_too(shop: Path, tmp_path: Path) -> None:
    write_tar(shop / "train-000000.tar", {"0": sample(0, "a", kind="big"), "1": sample(1, "b")})
    manifest = source(shop, fields={"query_kind": "json:kind"}).read(tmp_path)
    assert [query.fields for query in manifest.queries][:2] == [{"query_kind": "big"}, {}]
    with pytest.raises(ValueError, match=r"data\.source\.fields\.query_kind=json:size: none of the first"):
        source(shop, fields={"query_kind": "json:size"}).read(tmp_path)
