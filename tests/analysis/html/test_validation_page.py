"""The page of a validation: self-contained, with the images concerned, and no text taken for markup."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mim_lightning.analysis.html.validation_page import write_validation_page
from mim_lightning.data.images.reader import ImageReader
from mim_lightning.data.validation.validation_report import ValidationReport
from tests.analysis.html.test_pages import Node, read_page
from tests.data.validation.broken import check, encoded, jpeg, one_coloured, photo, png_header, resized, write_shop

PRODUCTS = [
    {"product_id": "a", "image": "a.jpg|cut.jpg", "title": "Mug", "category": "mugs"},
    {"product_id": "b", "image": "bomb.png", "title": "Pot", "category": "<b>pots</b>"},
    {"product_id": "c", "image": "grey.jpg", "title": "Cup", "category": "mugs"},
]
QUERIES = [
    {"query_id": "q1", "image": "q.jpg", "product_id": "a"},
    {"query_id": "q2", "split": "val", "image": "same.jpg", "product_id": "a"},
    {"query_id": "q3", "image": "text.jpg", "product_id": "a"},
    {"query_id": "<script>alert(1)</script>", "split": "val", "image": "gone.jpg", "product_id": "c"},
]


def cut_in_half() -> bytes:
    """Return a truncated image whose upper half is red."""
    pixels = np.asarray(photo(7)).copy()
    pixels[:80] = (220, 20, 20)
    data = encoded(Image.fromarray(pixels), quality=90)
    return data[: int(len(data) * 0.55)]


@pytest.fixture
def report(tmp_path: Path) -> ValidationReport:
    pictures = {
        "a.jpg": jpeg(1), "cut.jpg": cut_in_half(), "bomb.png": png_header(50_000, 50_000), "grey.jpg": one_coloured(),
        "q.jpg": jpeg(2), "same.jpg": resized(jpeg(2)), "text.jpg": b"text",
    }  # fmt: skip
    return check(*write_shop(tmp_path / "shop", pictures, PRODUCTS, QUERIES))


def written(report: ValidationReport, folder: Path, num_shown: int = 24) -> Node:
    write_validation_page(report, folder / "out" / "check.html", ImageReader().read, num_shown)
    return read_page(folder / "out" / "check.html")


def pixels_of(node: Node) -> np.ndarray:
    data = base64.b64decode((node.get("src") or "").split(",")[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


def test_every_kind_has_its_row_and_its_cards(tmp_path: Path, report: ValidationReport) -> None:
    page = written(report, tmp_path)
    rows = [node for node in page.all("tr") if node.get("data_kind")]
    assert {row.get("data_kind"): row.all("td")[1].text for row in rows} == {
        k: str(n) for k, n in report.counts.items()
    }
    found = {node.get("data_found"): node for node in page.all() if node.get("data_found")}
    assert set(found) == set(report.counts)
    for kind, node in found.items():
        origins = [part.get("data_origin") for part in node.all() if part.get("data_origin")]
        assert origins == [finding.origin for finding in report.of_kind(kind or "")]
    assert "rejected by on_invalid=raise" in next(node.text for node in page.all("p") if node.get("data_verdict") == "")
    (split,) = page.all("tr", data_split="train")
    assert [cell.text for cell in split.all("td")] == ["train", "2", "2", "0", "0", "1", "1 (100.0 %)"]
    assert [node.get("data_category") for node in page.all("tr") if node.get("data_category")] == [
        "mugs",
        "<b>pots</b>",
    ]


def test_images_are_those_of_the_rows(tmp_path: Path, report: ValidationReport) -> None:
    page = written(report, tmp_path)
    (twins,) = page.all(data_found="image_in_two_splits")
    assert len(twins.all("img")) == 2, "the picture and the one it is the same as"
    for shown in map(pixels_of, twins.all("img")):
        small = np.asarray(photo(2).resize((shown.shape[1], shown.shape[0])), dtype=int)
        assert np.abs(shown - small).mean() < 12
    (cut,) = page.all(data_found="truncated_image")
    shown = pixels_of(cut.all("img")[0])
    assert np.abs(shown[10] - (220, 20, 20)).mean() < 20, "what is left of it is shown"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "elsewhere a truncated picture stays a fault"
    for kind, words in (("huge_image", "too large to show"), ("unreadable_image", "cannot be shown")):
        (node,) = page.all(data_found=kind)
        assert not node.all("img") and words in node.text


def test_a_bomb_is_not_read_for_the_page(tmp_path: Path, report: ValidationReport) -> None:
    read = ImageReader().read
    seen = []
    write_validation_page(report, tmp_path / "check.html", lambda ref: (seen.append(ref), read(ref))[1])
    assert seen and not [ref for ref in seen if str(ref).endswith("bomb.png")]


def test_the_page_has_no_external_resources_and_escapes_text(tmp_path: Path, report: ValidationReport) -> None:
    page = written(report, tmp_path)
    assert not page.all("script") and not page.all("link") and not page.all("b", data_category="x")
    sources = {node.get("src") for node in page.all("img")}
    assert sources and all((source or "").startswith("data:image/jpeg;base64,") for source in sources)
    targets = [node.get("href") or "" for node in page.all("a")]
    ids = {node.get("id") for node in page.all("h2")}
    assert targets and all(target.startswith("#") and target[1:] in ids for target in targets)
    assert "<script>alert(1)</script>" in page.text


def test_only_the_first_are_shown(tmp_path: Path, report: ValidationReport) -> None:
    page = written(report, tmp_path, num_shown=1)
    (node,) = page.all(data_found="unreadable_image")
    assert len(node.all("article")) == 1
    assert "The first 1 are shown; findings.csv lists them." in page.text
