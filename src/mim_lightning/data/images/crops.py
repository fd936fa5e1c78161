"""Crops of the images of a catalog: besides the whole image, its parts are embedded, and the best one counts.

A grid divides every image alike; boxes come from a column of the products table.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from mim_lightning.data.images.boxes import Box, decode_box, validate_box
from mim_lightning.fields import PRODUCT_IMAGE
from mim_lightning.types import Sample

MAX_GRID = 8  # parts in a row: 65 vectors a product
MAX_BOXES = 32  # of one image


@dataclass(frozen=True)
class CropSettings:
    """Which parts of an image are embedded besides the whole: none, a grid, or boxes; the section `crops`.

    Attributes:
        grid: parts in a row and in a column, which overlap by half.
        boxes: column of the products table with boxes of the image, see `parse_boxes`.

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
        boxes: (4,) of all images, or (N, 4) of each sample of the catalog, nan where an image has no such part.
    """

    name: str
    describes: str
    boxes: np.ndarray

    def __call__(self, sample: Sample) -> Sample:
        """Return a catalog's sample with this part in place of its image; without inputs if it has none.

        Raises:
            ValueError: the image does not decode, or one side of the part is many times the other.
        """
        image = sample.inputs.get(PRODUCT_IMAGE)
        box = self.boxes if self.boxes.ndim == 1 else self.boxes[sample.sample_num]
        inputs: dict[str, bytes | str] = {}
        if isinstance(image, bytes) and not np.isnan(box[0]):
            left, top, right, bottom = box.tolist()
            pixels, out = decode_box(image, (left, top, right, bottom), None), io.BytesIO()
            Image.fromarray(pixels).save(out, "PPM")
            inputs = {**sample.inputs, PRODUCT_IMAGE: out.getvalue()}
        return replace(sample, inputs=inputs)


def make_crops(settings: CropSettings, facts: Iterable[Mapping[str, Any]]) -> list[Crop]:
    """Return the parts that are embedded besides the whole image.

    Args:
        facts: of each sample of the catalog, as `ShardSet.all_facts` returns them; read for boxes alone.

    Raises:
        ValueError: a box is none, by product; or no product has one.
    """
    if settings.grid is not None:
        name = f"grid {settings.grid} x {settings.grid}"
        boxes = enumerate(np.array(grid_boxes(settings.grid)))
        return [Crop(f"grid-{settings.grid}-{idx}", f"{name}, {idx + 1}", box) for idx, box in boxes]
    if settings.boxes is None:
        return []
    column, rows = settings.boxes, list[list[Box]]()
    for fact in facts:
        value = fact.get("metadata", {}).get(column)
        try:
            rows.append(parse_boxes(value))
        except ValueError as error:
            raise ValueError(f"crops.boxes={column}: product '{fact.get('product_id')}', {error}") from error
    most = max(map(len, rows), default=0)
    if not most:
        raise ValueError(f"crops.boxes={column}: no product has boxes there; name a column of the products table")
    table = np.full((most, len(rows), 4), np.nan)
    for row, own in enumerate(rows):
        for idx, box in enumerate(own):
            table[idx, row] = box
    return [Crop(f"boxes-{idx}", f"boxes of {column}, {idx + 1}", part) for idx, part in enumerate(table)]


def grid_boxes(number: int) -> list[Box]:
    """Return `number` x `number` boxes of one size that cover an image, each overlapping the next by half."""
    sides = [(idx / (number + 1), (idx + 2) / (number + 1)) for idx in range(number)]
    return [(left, top, right, bottom) for top, bottom in sides for left, right in sides]


def parse_boxes(value: Any) -> list[Box]:
    """Return the boxes of a cell: text as "0.1,0.2,0.6,0.9; 0.5,0.5,1,1", a list of four numbers, or of such lists.

    Raises:
        ValueError: something else, an empty box, or too many.
    """
    given = value
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                given = json.loads(text)
            except ValueError:
                raise ValueError(f"'{value}' is no list of boxes") from None
        else:
            given = [part.split(",") for part in text.split(";") if part.strip()]
    if not given:
        return []
    try:
        rows = given if isinstance(given[0], list | tuple) else [given]
        boxes = [tuple(float(side) for side in row) for row in rows]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"'{value}' is no box; give left,top,right,bottom; further ones after a semicolon") from None
    if len(boxes) > MAX_BOXES:
        raise ValueError(f"{len(boxes)} boxes; at most {MAX_BOXES} of an image are embedded")
    for box in boxes:
        validate_box(box)
    return boxes  # type: ignore[return-value]  # of four numbers each
