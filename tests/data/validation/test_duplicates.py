"""The same image is found in another split though it was stored otherwise, and no other image is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mim_lightning.data.validation.duplicates import near_equal
from tests.data.validation.broken import check, encoded, jpeg, one_coloured, photo, resized, summarize, write_shop

KINDS = ("image_in_two_splits", "photo_in_catalogue", "reference_in_catalogue")
PRODUCTS = [{"product_id": "p", "image": "shop.jpg", "title": "Mug"}]


def found_between(folder: Path, **pictures: bytes) -> set[tuple[str, str]]:
    """Return (kind, row id) of duplicates among query images; a name begins with its split."""
    queries = [{"query_id": n, "split": n.split("_")[0], "image": f"{n}.jpg", "product_id": "p"} for n in pictures]
    stored = {f"{name}.jpg": data for name, data in pictures.items()}
    report = check(*write_shop(folder, {"shop.jpg": jpeg(999), **stored}, PRODUCTS, queries))
    return {(f.kind, f.row_id) for f in report.findings if f.kind in KINDS}


def recoloured(seed: int) -> bytes:
    """Return the image with red and blue as they were, but another hue at the same grey."""
    pixels = np.asarray(photo(seed), dtype=np.float64)
    grey = pixels @ [0.299, 0.587, 0.114]
    tinted = np.stack([grey * 1.25, grey, grey * 0.5], axis=2).clip(0, 255)
    return encoded(Image.fromarray(tinted.astype(np.uint8)))


def grey(seed: int) -> bytes:
    return encoded(photo(seed).convert("L").convert("RGB"))


@pytest.mark.parametrize("at_once", [7, 2_000_000])
@pytest.mark.parametrize("max_distance", range(9))
def test_all_near_pairs_are_found_once(max_distance: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.data.validation.duplicates.MAX_CANDIDATES", at_once)
    rng = np.random.default_rng(max_distance)
    left = rng.integers(0, 2**64, 60, dtype=np.uint64)
    right = np.concatenate([left, left])
    for place in range(len(right)):
        for bit in rng.choice(64, place % 11, replace=False):
            right[place] ^= np.uint64(1) << np.uint64(bit)
    right = np.unique(right)
    naive = {
        (i, j, (int(a) ^ int(b)).bit_count())
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if (int(a) ^ int(b)).bit_count() <= max_distance
    }
    assert len({distance for *_, distance in naive}) == max_distance + 1
    assert sorted(near_equal(left, right, max_distance)) == sorted(naive)


def test_no_hashes_no_pairs() -> None:
    assert list(near_equal(np.array([], np.uint64), np.array([1], np.uint64), 4)) == []
    assert list(near_equal(np.array([1], np.uint64), np.array([], np.uint64), 4)) == []


def test_a_reencoded_image_is_found_in_the_training_split(tmp_path: Path) -> None:
    pictures = {f"train_{seed}": jpeg(seed) for seed in range(6)}
    found = found_between(
        tmp_path,
        **pictures,
        val_same=jpeg(0),
        val_smaller=resized(jpeg(1), 0.4),
        val_png=resized(jpeg(2), 1.0, "PNG"),
        test_webp=resized(jpeg(3), 0.7, "WEBP"),
        val_other=jpeg(50),
    )
    assert found == {("image_in_two_splits", f"train_{seed}") for seed in range(4)}


def test_splits_other_than_training_are_compared_too(tmp_path: Path) -> None:
    assert found_between(tmp_path, val_1=jpeg(1), test_1=jpeg(1)) == {("image_in_two_splits", "test_1")}


def test_duplicates_within_a_split_are_not_reported(tmp_path: Path) -> None:
    assert found_between(tmp_path, train_1=jpeg(1), train_2=jpeg(1), val_1=jpeg(2)) == set()


def test_a_query_image_from_the_catalog(tmp_path: Path) -> None:
    assert found_between(tmp_path, val_1=resized(jpeg(999)), val_2=jpeg(2)) == {("photo_in_catalogue", "val_1")}


def test_a_query_image_of_its_own_answer_is_reported_unless_it_only_shows_the_reference(tmp_path: Path) -> None:
    """p and q have the same image: a query for either by that image shows its own answer."""
    products = [{"product_id": name, "image": f"{name}.jpg", "title": name} for name in "pqr"]
    pictures = {"p.jpg": jpeg(1), "q.jpg": resized(jpeg(1)), "r.jpg": jpeg(2), "photo.jpg": jpeg(1)}
    queries = [
        {
            "query_id": f"asks {asked}",
            "image": "photo.jpg",
            "text": "blue",
            "product_id": asked,
            "shown_product_id": "p",
        }
        for asked in ("p", "q", "r", "r|q")
    ]
    report = check(*write_shop(tmp_path, pictures, products, queries))
    assert {(f.kind, f.row_id) for f in report.findings if f.kind in KINDS} == {
        ("photo_in_catalogue", "asks p"),
        ("photo_in_catalogue", "asks q"),
        ("reference_in_catalogue", "asks r"),
        ("photo_in_catalogue", "asks r|q"),
    }


def test_color_variants_are_not_the_same(tmp_path: Path) -> None:
    assert found_between(tmp_path, train_grey=grey(4), val_tinted=recoloured(4)) == set()
    assert found_between(tmp_path / "same", train_grey=grey(4), val_grey=resized(grey(4))) != set()


def test_near_empty_images_are_not_compared(tmp_path: Path) -> None:
    assert found_between(tmp_path, train_1=one_coloured(), val_1=one_coloured()) == set()


def test_the_finding_names_both_rows(tmp_path: Path) -> None:
    pictures = {"shop.jpg": jpeg(9), "a.jpg": jpeg(1), "b.jpg": jpeg(2), "c.png": resized(jpeg(2), 0.5, "PNG")}
    queries = [
        {"query_id": "q1", "image": "a.jpg", "product_id": "p"},
        {"query_id": "q2", "image": "b.jpg", "product_id": "p"},
        {"query_id": "q3", "split": "val", "image": "c.png", "product_id": "p"},
    ]
    report = check(*write_shop(tmp_path, pictures, PRODUCTS, queries))
    (finding,) = report.of_kind("image_in_two_splits")
    assert (finding.table, report.row_of(finding), finding.column) == ("queries", "3", "image")
    assert finding.image == tmp_path / "b.jpg" and finding.other_image == tmp_path / "c.png"
    assert f"split 'val': {tmp_path / 'queries.csv'}, row 4" in finding.reason
    assert not finding.is_error and len(report.errors) == 0


def test_a_duplicate_can_be_invalid_and_drops_the_training_row(tmp_path: Path) -> None:
    pictures = {"shop.jpg": jpeg(9), "a.jpg": jpeg(1), "b.jpg": jpeg(1)}
    queries = [
        {"query_id": "t", "image": "a.jpg", "product_id": "p"},
        {"query_id": "v", "split": "val", "image": "b.jpg", "product_id": "p"},
    ]
    report = check(*write_shop(tmp_path, pictures, PRODUCTS, queries), treat_as_invalid=["image_in_two_splits"])
    assert ("image_in_two_splits", "queries", "2", "t", "row") in summarize(report)


def test_the_distance_is_a_setting(tmp_path: Path) -> None:
    base = photo(1)
    pictures = {"shop.jpg": jpeg(9), "a.png": encoded(base, "PNG"), "b.jpg": resized(jpeg(1), 0.25, quality=15)}
    queries = [
        {"query_id": "t", "image": "a.png", "product_id": "p"},
        {"query_id": "v", "split": "val", "image": "b.jpg", "product_id": "p"},
    ]
    shop = write_shop(tmp_path, pictures, PRODUCTS, queries)
    facts = [Image.open(io.BytesIO(pictures[name])).size for name in ("a.png", "b.jpg")]
    assert facts[0] != facts[1]
    counts = [check(*shop, max_hash_distance=d).counts.get("image_in_two_splits", 0) for d in (0, 8)]
    assert counts[1] == 1 and counts[0] <= 1
