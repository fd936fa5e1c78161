"""Crops of the images of a catalog: besides the whole image, its parts are embedded, and the best one counts.

A grid divides every image alike; boxes of one image come from a column of the products table.
"""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby
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
        boxes: column of the products table with boxes of each image, see `parse_boxes`.

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


def make_crops(settings: CropSettings, facts: Iterable[Mapping[str, Any]], needs_boxes: bool = True) -> list[Crop]:
    """Return the parts that are embedded besides the whole image.

    Args:
        facts: of each sample of the catalog, as `ShardSet.all_facts` returns them, the images of a product side by
            side; read for boxes alone.
        needs_boxes: whether it is an error if no product has a box.

    Raises:
        ValueError: a box is none, or there are boxes of more images than the product has, by product; or no product
            has one.
    """
    if settings.grid is not None:
        name = f"grid {settings.grid} x {settings.grid}"
        boxes = np.array(grid_boxes(settings.grid))
        return [Crop(f"grid-{settings.grid}-{idx}", f"{name}, {idx + 1}", box) for idx, box in enumerate(boxes)]
    if settings.boxes is None:
        return []
    column, parts, nums, sides = settings.boxes, array("B"), array("q"), array("d")
    for product_id, images in groupby(enumerate(facts), lambda row: row[1].get("product_id")):
        rows = [(sample_num, fact.get("metadata", {}).get(column)) for sample_num, fact in images]
        try:
            of_images = parse_boxes(rows[0][1])
            if len(of_images) > len(rows):
                raise ValueError(f"{len(of_images)} lists of boxes, but the catalog has {len(rows)} of its images")
        except ValueError as error:
            raise ValueError(f"crops.boxes={column}: product '{product_id}', {error}") from error
        for (sample_num, _), own in zip(rows, of_images, strict=False):
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


def parse_boxes(value: Any) -> list[list[Box]]:
    """Return the boxes of a cell, those of each image of the product in order.

    Args:
        value: text as "0.1,0.2,0.6,0.9; 0.5,0.5,1,1 | 0,0,1,0.5" with the boxes of a second image after the bar; or a
            list: of four numbers, of such lists for the first image, or of lists of such lists for several.

    Raises:
        ValueError: something else, an empty box, or too many.
    """
    try:
        given = json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
        if isinstance(given, str):
            given = [[box.split(",") for box in image.split(";") if box.strip()] for image in given.split("|")]
        elif given is not None:
            given = _boxes_of_images(given)
        images = [[tuple(float(side) for side in box) for box in image] for image in given or ()]
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError(
            f"'{plain(value)}' is no box; give left,top,right,bottom; further ones after a semicolon, those of the "
            "next image after a bar"
        ) from None
    for boxes in images:
        if len(boxes) > MAX_BOXES:
            raise ValueError(f"{len(boxes)} boxes; at most {MAX_BOXES} of an image are embedded")
        for box in boxes:
            if len(box) != 4:
                raise ValueError(f"'{plain(value)}' has a box of {len(box)} numbers; give left,top,right,bottom")
            validate_box(box)
    return images if any(images) else []  # type: ignore[return-value]  # of four numbers each


def _boxes_of_images(given: Sequence[Any]) -> Sequence[Any]:
    """Return a list of boxes by image: of what is one box, or boxes of the first image, too.

    Raises:
        TypeError: no list, or lists and numbers side by side.
    """
    if not isinstance(given, list | tuple):
        raise TypeError
    if not any(isinstance(part, list | tuple) for part in given):
        return [[given]] if given else []
    is_by_image = any(not part or any(isinstance(side, list | tuple) for side in part) for part in given)
    return given if is_by_image else [given]
