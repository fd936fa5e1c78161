"""Parts of a catalog's images: where they are, and what is embedded of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mim_lightning.data.images.codec import decode_image
from mim_lightning.data.images.crops import Crop, CropSettings, count_left_out, grid_boxes, make_crops, parse_boxes
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
        ("[]", []),
        ([], []),
        ("0.1,0.2,0.6,0.9", [(0.1, 0.2, 0.6, 0.9)]),
        ("0,0,1,0.5; 0.5,0.5,1,1;", [(0, 0, 1, 0.5), (0.5, 0.5, 1, 1)]),
        ("[[0, 0, 1, 0.5], [0.5, 0.5, 1, 1]]", [(0, 0, 1, 0.5), (0.5, 0.5, 1, 1)]),
        ([0, 0, 1, 0.5], [(0, 0, 1, 0.5)]),
    ],
)
def test_boxes_of_a_cell(cell: Any, boxes: list[Any]) -> None:
    assert parse_boxes(cell) == boxes


WRONG = ["a,b,c,d", "1,2", "0.5,0,0.5,1", "[1", {"left": 0}, {}, "0,0,2,2", 3, 0, "0,0,1,1|0,0,1,1", [0, [0, 0, 1, 1]]]
NESTED = [[[[0, 0, 1, 1]], [[0, 0, 1, 1]]], [[], [0, 0, 1, 1]], [[0, 0, 1, 1], 0]]


@pytest.mark.parametrize(
    "cell", [*WRONG, *NESTED, f"[{10**400}]", "[" * 100_000, "0,0,1,nan", "[" + "0," * 9_999 + "0]"]
)
def test_what_is_no_box_is_refused_by_product(cell: Any) -> None:
    facts = [{"product_id": "p7", "metadata": {"parts": cell}}]
    with pytest.raises(ValueError, match=r"^crops.boxes=parts: product 'p7', ") as refused:
        make_crops(CropSettings(boxes="parts"), facts, np.array([7]))
    assert len(str(refused.value)) < 500


def test_settings_name_the_key() -> None:
    for wrong in ({"grid": 1}, {"grid": True}, {"boxes": ""}, {"grid": 2, "boxes": "parts"}):
        with pytest.raises(ValueError, match=r"^crops\."):
            CropSettings(**wrong)
    with pytest.raises(ValueError, match="no product has boxes there"):
        make_crops(CropSettings(boxes="parts"), [{"product_id": "p", "metadata": {}}], np.array([7]))
    assert make_crops(CropSettings(boxes="parts"), [{"product_id": "p"}], np.array([7]), needs_boxes=False) == []


def test_boxes_are_for_products_with_one_image() -> None:
    boxes, keys_N = CropSettings(boxes="parts"), np.array([5, 9, 5])  # the images of a product need not be side by side
    cells = {5: "0,0,1,0.5", 9: "0,0,0.5,1"}
    facts = [{"product_id": f"p{key}", "metadata": {"parts": cells[key]}} for key in keys_N.tolist()]
    with pytest.raises(ValueError, match=r"^crops.boxes=parts: product 'p5' has boxes and 2 images; leave its cell"):
        make_crops(boxes, facts, keys_N)
    cells[5] = ""
    facts = [{"product_id": f"p{key}", "metadata": {"parts": cells[key]}} for key in keys_N.tolist()]
    (part,) = make_crops(boxes, facts, keys_N)
    assert part.sample_nums is not None and part.sample_nums.tolist() == [1]


def test_parts_without_a_vector_are_counted() -> None:
    keys_N, whole_N = np.array([5, 5, 9, 7]), np.array([True, True, True, False])
    everywhere, some = Crop("a", "a", np.zeros(4)), Crop("b", "b", np.zeros((3, 4)), np.array([1, 2, 3]))
    present = [np.array([True, False, True, False]), np.array([False, False, True, False])]
    assert count_left_out([everywhere, some], present, whole_N, keys_N) == (2, 1)
    assert count_left_out([everywhere], [whole_N], whole_N, keys_N) == (0, 0)


def test_a_part_replaces_the_image_and_a_product_without_it_has_no_input() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    cells = ["0,0,0.5,0.5; 0.5,0.5,1,1", "0.5,0,1,1", "", "0,0,1,0.001"]
    facts = [{"product_id": f"p{row}", "metadata": {"parts": cell}} for row, cell in enumerate(cells)]
    first, second = make_crops(CropSettings(boxes="parts"), facts, np.arange(4))
    assert first.boxes.shape == (3, 4) and second.boxes.shape == (1, 4)
    inputs = {"product_image": png(pixels), "product_text": "a cup"}
    samples = [Sample(row, inputs, product_id="p") for row in range(3)]
    samples.append(Sample(3, {**inputs, "product_image": png(np.zeros((8, 800, 3), np.uint8))}, product_id="p"))

    def shown(crop: Crop, row: int) -> np.ndarray:
        sample = crop(samples[row])
        assert sample.inputs["product_text"] == "a cup" and sample.product_id == "p"
        return decode_image(sample.inputs["product_image"])  # type: ignore[arg-type]

    np.testing.assert_array_equal(shown(first, 0), pixels[:20, :30])
    np.testing.assert_array_equal(shown(second, 0), pixels[20:, 30:])
    np.testing.assert_array_equal(shown(first, 1), pixels[:, 30:])
    without = [first(samples[row]).inputs for row in (2, 3)]  # the last one's part is too thin
    assert second(samples[1]).inputs == {} and without == [{}] * 2
