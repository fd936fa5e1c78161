"""Parts of a catalog's images: where they are, and what is embedded of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mim_lightning.data.images.codec import decode_image
from mim_lightning.data.images.crops import Crop, CropSettings, grid_boxes, make_crops, parse_boxes
from mim_lightning.types import Sample


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_grid_covers_the_image_and_its_parts_overlap_by_half() -> None:
    for number in (2, 3, 8):
        boxes = np.array(grid_boxes(number))
        assert len(boxes) == number**2 and boxes.min() == 0 and boxes.max() == 1
        widths, starts = boxes[:, 2] - boxes[:, 0], np.unique(boxes[:, 0].round(9))
        np.testing.assert_allclose(widths, widths[0])
        np.testing.assert_allclose(np.diff(starts), widths[0] / 2)


@pytest.mark.parametrize(
    ("cell", "boxes"),
    [
        (None, []),
        ("", []),
        ("[[], []]", []),
        ("0.1,0.2,0.6,0.9", [[(0.1, 0.2, 0.6, 0.9)]]),
        ("0,0,1,0.5; 0.5,0.5,1,1;", [[(0, 0, 1, 0.5), (0.5, 0.5, 1, 1)]]),
        ("|0,0,1,0.5", [[], [(0, 0, 1, 0.5)]]),
        ("[[0, 0, 1, 0.5], [0.5, 0.5, 1, 1]]", [[(0, 0, 1, 0.5), (0.5, 0.5, 1, 1)]]),
        ("[[], [[0, 0, 1, 0.5]]]", [[], [(0, 0, 1, 0.5)]]),
        ([0, 0, 1, 0.5], [[(0, 0, 1, 0.5)]]),
        ([[[0, 0, 1, 0.5]], [[0.5, 0.5, 1, 1]]], [[(0, 0, 1, 0.5)], [(0.5, 0.5, 1, 1)]]),
    ],
)
def test_boxes_of_a_cell(cell: Any, boxes: list[Any]) -> None:
    assert parse_boxes(cell) == boxes


WRONG = ["a,b,c,d", "1,2", "0.5,0,0.5,1", "[1", {"left": 0}, "0,0,2,2", 3, "0,0,1,1|0,0,1,1", [0, [0, 0, 1, 1]]]


@pytest.mark.parametrize("cell", [*WRONG, f"[{10**400}]", "[" * 100_000, "0,0,1,nan", "[" + "0," * 9_999 + "0]"])
def test_what_is_no_box_is_refused_by_product(cell: Any) -> None:
    facts = [{"product_id": "p7", "metadata": {"parts": cell}}]
    with pytest.raises(ValueError, match=r"^crops.boxes=parts: product 'p7', ") as refused:
        make_crops(CropSettings(boxes="parts"), facts)
    assert len(str(refused.value)) < 500


def test_settings_name_the_key() -> None:
    for wrong in ({"grid": 1}, {"grid": True}, {"boxes": ""}, {"grid": 2, "boxes": "parts"}):
        with pytest.raises(ValueError, match=r"^crops\."):
            CropSettings(**wrong)
    with pytest.raises(ValueError, match="no product has boxes there"):
        make_crops(CropSettings(boxes="parts"), [{"product_id": "p", "metadata": {}}])
    assert make_crops(CropSettings(boxes="parts"), [{"product_id": "p"}], needs_boxes=False) == []


def test_a_part_replaces_the_image_and_a_product_without_it_has_no_input() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    cells = {"a": "0,0,0.5,0.5; 0.5,0.5,1,1", "b": "0.5,0,1,1", "c": "", "d": "|0,0,1,1", "e": "0,0,1,0.001"}
    products = ["a", "b", "b", "c", "d", "d", "e"]  # two have two images, and the boxes of "b" are of its first one
    facts = [{"product_id": product_id, "metadata": {"parts": cells[product_id]}} for product_id in products]
    first, second = make_crops(CropSettings(boxes="parts"), facts)
    assert first.boxes.shape == (4, 4) and second.boxes.shape == (1, 4)
    inputs = {"product_image": png(pixels), "product_text": "a cup"}
    samples = [Sample(row, inputs, product_id="p") for row in range(6)]
    samples.append(Sample(6, {**inputs, "product_image": png(np.zeros((8, 800, 3), np.uint8))}, product_id="p"))

    def shown(crop: Crop, row: int) -> np.ndarray:
        sample = crop(samples[row])
        assert sample.inputs["product_text"] == "a cup" and sample.product_id == "p"
        return decode_image(sample.inputs["product_image"])  # type: ignore[arg-type]

    np.testing.assert_array_equal(shown(first, 0), pixels[:20, :30])
    np.testing.assert_array_equal(shown(second, 0), pixels[20:, 30:])
    np.testing.assert_array_equal(shown(first, 1), pixels[:, 30:])
    np.testing.assert_array_equal(shown(first, 5), pixels)
    without = [first(samples[row]).inputs for row in (2, 3, 4, 6)]  # the last one's part is too thin
    assert second(samples[1]).inputs == {} and without == [{}] * 4
