"""An addition is compared with the images of the data as a preparation of all rows compares them."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.preparation import Validation, prepare_shards
from mim_lightning.data.validation.image_hashes import FOLDER
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.versions import stored_duplicates
from mim_lightning.data.versions.change import Deletion
from tests.data.conftest import encoded, jpeg, picture
from tests.data.versions.test_next_version import SETTINGS, Row, Shop, change, product, query

IMAGE_KINDS = ("image_in_two_splits", "photo_in_catalogue", "reference_in_catalogue")
Pair = tuple[str, frozenset[str]]  # kind, and ids of both rows


def near(seed: int) -> bytes:
    """Return a picture as `jpeg` does, but smaller and of less quality: other bytes, nearly the same hash."""
    return encoded(Image.open(io.BytesIO(jpeg(seed, 48, 64))).resize((56, 42)), quality=80)


PRODUCTS = [product(number) for number in range(8)]
QUERIES = [query(number, f"p{number % 8}", split=("train", "val", "test")[number % 3]) for number in range(12)]
NEW_PRODUCTS = [
    product(20, image="near-q1.jpg"),  # a query of val
    product(21, image="p21.jpg|near-q3.jpg"),  # of train
    product(22),
]
NEW_QUERIES = [
    query(20, "p22", split="val", image="near-q0.jpg"),  # of train
    query(21, "p22", split="train", image="near-q4.jpg"),  # of val, whose training row a preparation reports too
    query(22, "p22", split="test", image="near-q7.jpg"),  # of val
    query(23, "p2", split="val", image="near-p2.jpg"),  # its own product
    query(24, "p22", split="val", image="near-p6.jpg"),  # of another one
    query(25, "p22|p4", split="train", image="near-p4.jpg"),
    query(26, "p22", split="train", image="near-q6.jpg"),  # the same split
    query(27, "p22", split="val", image="near-p22.jpg"),  # both are new
    query(28, "p22", split="test", image="near-q20.jpg"),
    query(29, "p22", split="val", image="flat.jpg"),
]


class Reports:
    """The findings of several validations."""

    def __init__(self, settings: ValidationSettings | None = None) -> None:
        self.all: list[Any] = []
        self.validation = Validation(
            settings or ValidationSettings(), write_report=lambda report, where, reader: self.all.append(report)
        )

    def pairs(self, ids: dict[str, str]) -> set[Pair]:
        """Return the pairs of equal images; `ids` are those of rows by origin."""
        found = [finding for report in self.all for finding in report.findings if finding.kind in IMAGE_KINDS]
        return {(one.kind, frozenset({one.row_id, self._other(one.other_origin, ids)})) for one in found}

    @staticmethod
    def _other(origin: str, ids: dict[str, str]) -> str:
        return origin.split("'")[1] if "'" in origin else ids[origin.rpartition("/")[2]]


def write_shop(root: Path) -> Shop:
    shop = Shop(root)
    for number in range(30):
        (root / f"p{number}.jpg").write_bytes(jpeg(number, 48, 64))
        (root / f"q{number}.jpg").write_bytes(jpeg(100 + number, 48, 64))
        (root / f"near-p{number}.jpg").write_bytes(near(number))
        (root / f"near-q{number}.jpg").write_bytes(near(100 + number))
    (root / "near-q20.jpg").write_bytes(near(100))  # that of q20, which is near q0
    (root / "flat.jpg").write_bytes(encoded(picture(0).resize((1, 1)).resize((64, 48))))
    return shop


def prepare(shop: Shop, name: str, products: Sequence[Row], queries: Sequence[Row], reports: Reports) -> Path:
    tables = shop.tables(name, products, queries)
    source = ManifestSource(tables.products, tables.queries, segments=["place"])
    folder = shop.root / name
    prepare_shards(source, folder, SETTINGS, validation=reports.validation, num_workers=1)
    return folder


def ids_by_origin(name: str, products: Sequence[Row], queries: Sequence[Row]) -> dict[str, str]:
    return {
        f"{name}-{kind}.csv, row {number}": row[key]
        for kind, key, rows in (("products", "product_id", products), ("queries", "query_id", queries))
        for number, row in enumerate(rows, start=2)
    }


def test_what_a_preparation_of_all_rows_finds_is_found(tmp_path: Path) -> None:
    shop = write_shop(tmp_path)
    parts, whole = Reports(), Reports()
    folder = prepare(shop, "shop", PRODUCTS, QUERIES, parts)
    shutil.copytree(folder, tmp_path / "older")
    shutil.rmtree(tmp_path / "older" / FOLDER)  # as prepared before there were hashes
    first = parts.all[:]
    everything = [*PRODUCTS, *NEW_PRODUCTS], [*QUERIES, *NEW_QUERIES]
    prepare(shop, "both", *everything, whole)
    names = [("shop", PRODUCTS, QUERIES), ("new", NEW_PRODUCTS, NEW_QUERIES), ("both", *everything)]
    ids = {origin: row_id for name in names for origin, row_id in ids_by_origin(*name).items()}
    expected = whole.pairs(ids)
    assert len(expected) > 8 and len({kind for kind, _ in expected}) == 3
    change(folder, shop.tables("new", NEW_PRODUCTS, NEW_QUERIES), parts.validation)
    # of equal images in three splits a preparation reports each pair of splits, an addition those with its rows
    assert parts.pairs(ids) == expected
    new_ids = {row.get("query_id") or row["product_id"] for row in (*NEW_PRODUCTS, *NEW_QUERIES)}
    assert all(finding.row_id in new_ids for finding in parts.all[-1].findings if finding.kind in IMAGE_KINDS)
    older = Reports()
    older.all += first
    change(tmp_path / "older", shop.tables("new", NEW_PRODUCTS, NEW_QUERIES), older.validation)
    assert older.pairs(ids) == expected, "from the stored images"
    assert (tmp_path / "older" / FOLDER / "full-000001.parquet").is_file()

    # rows of a later version count, those that were deleted or have another image now do not
    again = Reports()
    change(folder, delete=Deletion(queries=["q0", "q26"], products=["p6"]))
    replaced = replace(shop.tables("other", [], [query(4, "p4", split="val", image="p25.jpg")]), replace=True)
    change(folder, replaced, again.validation)
    more = [
        query(30, "p0", split="val", image="q0.jpg"),  # deleted, but q20 in val and q28 in test have it
        query(31, "p0", split="train", image="p6.jpg"),  # deleted with its product, but that of q24
        query(32, "p0", split="train", image="q4.jpg"),  # replaced
        query(33, "p0", split="train", image="near-p25.jpg"),
    ]
    again.all.clear()
    change(folder, shop.tables("more", [], more), again.validation)
    assert again.pairs(ids) == {
        ("image_in_two_splits", frozenset({"q30", "q28"})),
        ("image_in_two_splits", frozenset({"q31", "q24"})),
        ("image_in_two_splits", frozenset({"q33", "q4"})),
    }


def test_rows_with_an_image_that_is_there_can_be_dropped(tmp_path: Path) -> None:
    shop, quiet = write_shop(tmp_path), Reports()
    folder = prepare(shop, "shop", PRODUCTS, QUERIES, quiet)
    kinds = ["photo_in_catalogue", "image_in_two_splits"]
    strict = Reports(ValidationSettings(treat_as_invalid=kinds[1:])).validation
    with pytest.raises(ValueError, match=r"the same image( but for \d of 64 bits)? is in split 'train' of .*: q0"):
        change(folder, shop.tables("new", [], [query(20, "p1", split="val", image="near-q0.jpg")]), strict)
    dropping = Reports(ValidationSettings("drop", "100%", kinds))
    grown = change(folder, shop.tables("new", NEW_PRODUCTS, NEW_QUERIES), dropping.validation)
    kept = {facts["query_id"] for split in ("val", "test", "train") for facts in grown.queries(split).all_facts()}
    assert {name for name in kept if int(name[1:]) >= 20} == {"q24", "q26", "q29"}


def test_rows_that_are_gone_leave_room_for_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, quiet, reports = write_shop(tmp_path), Reports(), Reports()
    monkeypatch.setattr(stored_duplicates, "MAX_COMPARED", 1)
    same = [query(9, "p1", image="q0.jpg"), *QUERIES[1:9]]
    folder = prepare(shop, "shop", PRODUCTS, [QUERIES[0], *same], quiet)
    change(folder, delete=Deletion(queries=["q0"]))
    change(folder, shop.tables("new", [], [query(20, "p1", split="val", image="near-q0.jpg")]), reports.validation)
    assert reports.pairs({}) == {("image_in_two_splits", frozenset({"q20", "q9"}))}


@pytest.mark.parametrize("image", ["missing.jpg", "near-q1.jpg"])
def test_a_dropped_replacement_does_not_hide_the_row_that_stays(tmp_path: Path, image: str) -> None:
    shop, quiet = write_shop(tmp_path), Reports()
    folder = prepare(shop, "shop", PRODUCTS, QUERIES, quiet)
    dropping = Reports(ValidationSettings("drop", "100%", ["image_in_two_splits"]))
    rows = [query(0, "p0", image=image), query(20, "p0", split="val", image="near-q0.jpg"), query(21, "p0")]
    grown = change(folder, replace(shop.tables("new", [], rows), replace=True), dropping.validation)
    kept = {facts["query_id"] for split in ("val", "train") for facts in grown.queries(split).all_facts()}
    assert {"q0", "q21"} <= kept and "q20" not in kept
    assert ("image_in_two_splits", frozenset({"q20", "q0"})) in dropping.pairs({})
