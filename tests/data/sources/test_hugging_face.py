"""Data sets of Hugging Face, saved and loaded by their own library, are read without decoding or copying."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.data.images.reader import ImageReader, TableCell
from mim_lightning.data.manifest.manifest import Manifest
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.sources.hugging_face import HuggingFaceSource
from tests.data.conftest import jpeg

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    datasets.disable_progress_bars()


def picture(number: int) -> dict[str, Any]:
    return {"bytes": jpeg(number, 8, 8), "path": f"{number}.jpg"}


def products() -> Any:
    columns = {
        "product_id": ["a", "b", "c"],
        "image": [picture(0), picture(1), None],
        "title": ["Mug", "Cup", "Gift card"],
        "category": [0, 1, None],
        "price": [3.5, 4.0, 10.0],
    }
    features = {
        "product_id": datasets.Value("string"),
        "image": datasets.Image(),
        "title": datasets.Value("string"),
        "category": datasets.ClassLabel(names=["mugs", "cups"]),
        "price": datasets.Value("float64"),
    }
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def queries(numbers: Sequence[int]) -> Any:
    columns = {
        "image": [picture(10 + number) for number in numbers],
        "text": ["red" if number % 2 else None for number in numbers],
        "product_id": ["abc"[number % 3] for number in numbers],
    }
    features = {"image": datasets.Image(), "text": datasets.Value("string"), "product_id": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Products, and queries in two splits, as `save_to_disk` writes them."""
    products().save_to_disk(tmp_path / "products")
    splits = {"train": queries(range(5)), "validation": queries(range(5, 8))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "queries", num_shards={"train": 2, "validation": 1})
    return tmp_path


def read(source: HuggingFaceSource, work_dir: Path) -> tuple[Manifest, list[bytes | None]]:
    manifest = source.read(work_dir)
    reader = ImageReader()
    return manifest, [reader.read(query.image) if query.image else None for query in manifest.queries]


def test_two_saved_data_sets(saved: Path, tmp_path: Path) -> None:
    source = HuggingFaceSource({"path": str(saved / "products")}, {"path": str(saved / "queries")})
    manifest, pictures = read(source, tmp_path / "work")
    assert [(query.split, query.target_ids, query.text) for query in manifest.queries] == [
        (("train" if number < 5 else "validation"), ("abc"[number % 3],), "red" if number % 2 else None)
        for number in range(8)
    ]
    assert pictures == [jpeg(10 + number, 8, 8) for number in range(8)]
    mug, _, card = manifest.products.values()
    assert ImageReader().read(mug.images[0]) == jpeg(0, 8, 8)
    assert isinstance(mug.images[0], TableCell) and card.images == ()
    assert (mug.title, mug.category, card.category, mug.metadata) == ("Mug", "mugs", None, {"price": 3.5})
    assert manifest.queries[4].origin == f"{saved / 'queries'}, split train, row 5"
    assert not (tmp_path / "work").exists()  # nothing is copied


def test_one_split_and_another_name_for_it(saved: Path, tmp_path: Path) -> None:
    place = {"path": str(saved / "queries"), "split": "validation"}
    source = HuggingFaceSource({"path": str(saved / "products")}, place)
    assert [query.split for query in source.read(tmp_path).queries] == ["validation"] * 3
    columns = {"queries": {"split": "text"}}
    faults: list[RowIssue] = []
    source = HuggingFaceSource({"path": str(saved / "products")}, place, columns)
    assert [query.split for query in source.read(tmp_path, on_issue=faults.append).queries] == ["red", "red"]
    assert [(fault.origin, fault.column) for fault in faults] == [
        (f"{saved / 'queries'}, split validation, row 2", "split")
    ]
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train', 'validation'\]"):
        HuggingFaceSource(None, {"path": str(saved / "queries"), "split": "test"}).read(tmp_path)


def test_a_selection_is_written_and_a_slice_too(saved: Path, tmp_path: Path) -> None:
    chosen = datasets.load_from_disk(str(saved / "queries"))["train"].select([4, 1])
    chosen.save_to_disk(tmp_path / "chosen")
    _, pictures = read(
        HuggingFaceSource({"path": str(saved / "products")}, {"path": str(tmp_path / "chosen")}), tmp_path
    )
    assert pictures == [jpeg(14, 8, 8), jpeg(11, 8, 8)]
    queries(range(6)).to_parquet(tmp_path / "files" / "train-00000-of-00001.parquet")
    place = {"path": str(tmp_path / "files"), "split": "train[2:5]"}
    source = HuggingFaceSource({"path": str(saved / "products")}, place)
    manifest, pictures = read(source, tmp_path / "work")
    assert pictures == [jpeg(10 + number, 8, 8) for number in (2, 3, 4)]
    assert [query.split for query in manifest.queries] == ["train"] * 3
    assert list((tmp_path / "work").rglob("*.arrow"))


def test_a_folder_of_parquet_files_with_several_splits(saved: Path, tmp_path: Path) -> None:
    for split, numbers in {"train": range(3), "test": range(3, 5)}.items():
        queries(numbers).to_parquet(tmp_path / "files" / f"{split}-00000-of-00001.parquet")
    source = HuggingFaceSource({"path": str(saved / "products")}, {"path": str(tmp_path / "files")})
    manifest, pictures = read(source, tmp_path / "work")
    assert {query.split for query in manifest.queries} == {"train", "test"}
    assert sorted(map(bytes, filter(None, pictures))) == sorted(jpeg(10 + number, 8, 8) for number in range(5))


def test_pairs_in_one_data_set(tmp_path: Path) -> None:
    columns = {
        "photo": [picture(0), picture(1), picture(2)],
        "sku": ["a", "b", "a"],
        "shop_image": [picture(5), picture(6), picture(5)],
        "name": ["Mug", "Cup", "Mug"],
    }
    kinds = {"photo": datasets.Image(), "shop_image": datasets.Image()}
    texts = {"sku": datasets.Value("string"), "name": datasets.Value("string")}
    datasets.Dataset.from_dict(columns, datasets.Features(kinds | texts)).save_to_disk(tmp_path / "pairs")
    names = {
        "products": {"product_id": "sku", "image": "shop_image", "title": "name"},
        "queries": {"image": "photo"},
    }
    manifest, pictures = read(HuggingFaceSource(None, {"path": str(tmp_path / "pairs")}, names), tmp_path)
    assert pictures == [jpeg(number, 8, 8) for number in range(3)]
    assert [query.target_ids for query in manifest.queries] == [("a",), ("b",), ("a",)]
    assert [len(product.images) for product in manifest.products.values()] == [1, 1]
    assert ImageReader().read(manifest.products["b"].images[0]) == jpeg(6, 8, 8)


def test_issues_name_data_set_split_and_row(saved: Path, tmp_path: Path) -> None:
    source = HuggingFaceSource(
        {"path": str(saved / "products")}, {"path": str(saved / "queries")}, {"products": {"title": "name"}}
    )
    with pytest.raises(ValueError, match=r"products, split train: missing column 'name'.*columns.products.title="):
        source.read(tmp_path)
    source = HuggingFaceSource({"path": str(saved / "queries")}, None, {"products": {"title": "text"}})
    with pytest.raises(ValueError, match=r"queries, split train, row 4, column 'product_id': 'a' is already in"):
        source.read(tmp_path)


def test_a_saved_set_is_described_by_its_content(saved: Path, tmp_path: Path) -> None:
    def describe() -> dict[str, Any]:
        return HuggingFaceSource({"path": str(saved / "products")}, None).describe()

    before = describe()
    assert describe() == before
    (saved / "products" / "cache-0123.arrow").write_bytes(b"left by the library")
    assert describe() == before
    changed = products().map(lambda row: {"title": row["title"].upper()})
    changed.save_to_disk(tmp_path / "changed")
    assert HuggingFaceSource({"path": str(tmp_path / "changed")}, None).describe() != before


def test_data_sets_of_the_hub_are_described_by_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commit, asked = "0123456789abcdef0123456789abcdef01234567", []

    class Answer:
        sha = commit

    def answer(api: Any, path: str, revision: str | None = None) -> Answer:
        asked.append((path, revision))
        return Answer()

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", answer)
    place: dict[str, str | None] = {"path": "user/shop", "name": "small", "revision": "v1"}
    assert HuggingFaceSource(place, None).describe()["products"] == {
        "name": "small",
        "split": None,
        "path": "user/shop",
        "commit": commit,
    }
    assert asked == [("user/shop", "v1")]
    HuggingFaceSource(place | {"revision": commit}, None).describe()
    assert len(asked) == 1

    def refuse(api: Any, path: str, revision: str | None = None) -> Answer:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(
        ValueError, match=r"^user/shop \(small, v1\): .*no network at all\); a commit as revision needs"
    ):
        HuggingFaceSource(place, None).describe()


def test_a_missing_extra_is_named(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HuggingFaceSource({"path": str(saved / "products")}, None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    source.describe()
    with pytest.raises(ValueError, match=r"products: install the extra: pip install 'mim-lightning\[datasets\]'$"):
        source.read(tmp_path)


def test_content_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: cannot be loaded \(") as caught:
        HuggingFaceSource({"path": str(tmp_path / "empty")}, None).read(tmp_path)
    assert "\n" not in str(caught.value)
