"""Crops of the images of a catalog: besides the whole image, its parts are embedded, and the best one counts.

A grid divides every image alike; boxes come from a column of the products table, for products with one image.
"""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from mim_lightning.data.images.boxes import Box, decode_box, validate_box
from mim_lightning.data.images.limits import ImageTooLargeError
from mim_lightning.display.text import plain
from mim_lightning.fields import PRODUCT_IMAGE
from mim_lightning.types import Sample

MAX_GRID = 8  # parts in a row: 65 vectors a product
MAX_BOXES = 32  # of one image


@dataclass(frozen=True)
class CropSettings:
    """Which parts of an image are embedded besides the whole: none, a grid, or boxes; the section `crops`.

    Attributes:
        grid: parts in a row and in a column, which overlap by half.
        boxes: column of the products table with boxes of the product's only image, see `parse_boxes`.

    Raises:
        ValueError: no such grid, or both.
    """

    grid: int | None = None
    boxes: str | None = None

    def __post_init__(self) -> None:
        if self.grid is not None and (type(self.grid) is not int or not 2 <= self.grid <= MAX_GRID):
            raise ValueError(f"crops.grid={self.grid}: give a whole number from 2 to {MAX_GRID}, or null for none")
        if self.boxes is not None and (not isinstance(self.boxes, str) or not self.boxes):
            raise ValueError(f"crops.boxes={self.boxes}: give the name of a column of the products table")
        if self.grid is not None and self.boxes is not None:
            raise ValueError(f"crops.grid={self.grid} crops.boxes={self.boxes}: give one of them")

    @property
    def is_whole(self) -> bool:
        """Whether only the whole image is embedded."""
        return self == CropSettings()

    def __str__(self) -> str:
        if self.is_whole:
            return "none"
        return f"{self.grid} x {self.grid} parts" if self.grid else f"boxes of column '{self.boxes}'"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Crop:
    """One part of every image of a catalog.

    Attributes:
        name: of the folder of its embeddings.
        describes: what the part is, for the check of stored embeddings.
        boxes: (4,) of all images, or (n, 4) of the samples that have such a part.
        sample_nums: (n,) of these samples, ascending.
    """

    name: str
    describes: str
    boxes: np.ndarray
    sample_nums: np.ndarray | None = None

    def __call__(self, sample: Sample) -> Sample:
        """Return a catalog's sample with this part in place of its image.

        It has no inputs if the image has no such part, or one that is a hundred times as long as wide.

        Raises:
            ValueError: the image does not decode.
        """
        image, box = sample.inputs.get(PRODUCT_IMAGE), self._box_of(sample.sample_num)
        inputs: dict[str, bytes | str] = {}
        if isinstance(image, bytes) and box is not None:
            try:
                pixels, out = decode_box(image, box, None), io.BytesIO()
            except ImageTooLargeError:  # the part: the whole image is embedded before, and would have failed
                return replace(sample, inputs={})
            Image.fromarray(pixels).save(out, "PPM")
            inputs = {**sample.inputs, PRODUCT_IMAGE: out.getvalue()}
        return replace(sample, inputs=inputs)

    def _box_of(self, sample_num: int) -> Box | None:
        if self.sample_nums is None:
            return _to_box(self.boxes)
        row = int(np.searchsorted(self.sample_nums, sample_num))
        has_part = row < len(self.sample_nums) and self.sample_nums[row] == sample_num
        return _to_box(self.boxes[row]) if has_part else None


def _to_box(sides: np.ndarray) -> Box:
    left, top, right, bottom = sides.tolist()
    return left, top, right, bottom


def make_crops(
    settings: CropSettings, facts: Iterable[Mapping[str, Any]], product_keys_N: np.ndarray, needs_boxes: bool = True
) -> list[Crop]:
    """Return the parts that are embedded besides the whole image.

    Args:
        facts: of each sample of the catalog, as `ShardSet.all_facts` returns them; read for boxes alone.
        product_keys_N: the hashed id of the product of each sample; read for boxes alone.
        needs_boxes: whether it is an error if no product has a box.

    Raises:
        ValueError: a box is none, or of a product with several images, by product; or no product has one.
    """
    if settings.grid is not None:
        name = f"grid {settings.grid} x {settings.grid}"
        boxes = np.array(grid_boxes(settings.grid))
        return [Crop(f"grid-{settings.grid}-{idx}", f"{name}, {idx + 1}", box) for idx, box in enumerate(boxes)]
    if settings.boxes is None:
        return []
    column, parts, nums, sides = settings.boxes, array("B"), array("q"), array("d")
    _, products_N, num_images_P = np.unique(product_keys_N, return_inverse=True, return_counts=True)
    for sample_num, fact in enumerate(facts):
        try:
            own = parse_boxes(fact.get("metadata", {}).get(column))
        except ValueError as error:
            raise ValueError(f"crops.boxes={column}: product '{fact.get('product_id')}', {error}") from error
        if own and (num_images := num_images_P[products_N[sample_num]]) > 1:
            raise ValueError(
                f"crops.boxes={column}: product '{fact.get('product_id')}' has boxes and {num_images} images; leave "
                "its cell empty, or give crops.grid instead, which cuts every image"
            )
        parts.extend(range(len(own)))
        nums.extend([sample_num] * len(own))
        sides.extend(chain.from_iterable(own))
    if not parts and needs_boxes:
        raise ValueError(f"crops.boxes={column}: no product has boxes there; name a column of the products table")
    part_M, nums_M, box_M4 = np.array(parts), np.array(nums), np.array(sides).reshape(-1, 4)
    return [
        Crop(f"boxes-{part}", f"boxes of {column}, {part + 1}", box_M4[part_M == part], nums_M[part_M == part])
        for part in range(max(parts, default=-1) + 1)
    ]


def grid_boxes(number: int) -> list[Box]:
    """Return `number` x `number` boxes of one size that cover an image, each overlapping the next by half."""
    sides = [(idx / (number + 1), (idx + 2) / (number + 1)) for idx in range(number)]
    return [(left, top, right, bottom) for top, bottom in sides for left, right in sides]


def count_left_out(
    crops: Sequence[Crop], present: Sequence[np.ndarray], whole_N: np.ndarray, product_keys_N: np.ndarray
) -> tuple[int, int]:
    """Return how many parts of embedded images have no vector, and of how many products they are.

    Args:
        present: (N,) of each crop: the samples with a vector of this part.
        whole_N: the samples with a vector of the whole image.
        product_keys_N: the hashed id of the product of each sample.
    """
    left_out = []
    for crop, present_N in zip(crops, present, strict=True):
        nums = np.arange(len(whole_N)) if crop.sample_nums is None else crop.sample_nums
        left_out.append(nums[whole_N[nums] & ~present_N[nums]])
    nums = np.concatenate([*left_out, np.array([], np.int64)])
    return len(nums), len(np.unique(product_keys_N[nums]))


def parse_boxes(value: Any) -> list[Box]:
    """Return the boxes of a cell.

    Args:
        value: text as "0.1,0.2,0.6,0.9; 0.5,0.5,1,1", or a list of four numbers or of such lists, or that as JSON.

    Raises:
        ValueError: something else, an empty box, or too many.
    """
    try:
        given = json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
        if isinstance(given, str):
            given = [box.split(",") for box in given.split(";") if box.strip()]
        elif given not in (None, []) and not isinstance(given[0], list | tuple):
            given = [given]
        boxes = [tuple(float(side) for side in box) for box in given or ()]
    except (TypeError, ValueError, LookupError, OverflowError, RecursionError):
        raise ValueError(
            f"'{plain(value)}' is no box; give left,top,right,bottom, further ones after a semicolon"
        ) from None
    if len(boxes) > MAX_BOXES:
        raise ValueError(f"{len(boxes)} boxes; at most {MAX_BOXES} of an image are embedded")
    for box in boxes:
        if len(box) != 4:
            raise ValueError(f"'{plain(value)}' has a box of {len(box)} numbers; give left,top,right,bottom")
        validate_box(box)
    return boxes  # type: ignore[return-value]  # of four numbers each
