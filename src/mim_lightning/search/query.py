"""A search query (images, text, negative text, a product to find similar ones to), and the vector it becomes.

Plain arithmetic on unit vectors; independent of model and index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mim_lightning.data.images.boxes import Box, validate_box
from mim_lightning.inference.image_inputs import BoxedImage

PARTS = ("image", "text", "not_text", "like")
MAX_WEIGHT = 1e6  # float32 squares the sum: with weights of 1e19 every score would be 0


@dataclass(frozen=True)
class SearchQuery:
    """One search; at least one of `images`, `text` and `like` is given.

    Attributes:
        images: of the same thing, averaged. Whatever the encoder takes: bytes, paths, images.
        box: the part of the first image that is meant, a `Box`; None: all of it.
        text: what it should be.
        not_text: what it should not be.
        like: id of a product in the index to find similar ones to.
        fields: texts for declared fields by name: {"query_category": "mugs"}.
        weights: of `PARTS` and fields; parts not named keep the default.
        num_hits: number of products to return.
        where: filter, see `filters`.
    """

    images: tuple[Any, ...] = ()
    text: str | None = None
    not_text: str | None = None
    like: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    num_hits: int = 10
    where: Mapping[str, Any] | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    box: Box | None = None

    def __post_init__(self) -> None:
        for name, words in self.fields.items():
            if name in PARTS:
                raise ValueError(f"fields.{name}: is a part of every query; give {name}=")
            if not isinstance(words, str) or not words:
                raise ValueError(f"fields.{name}: give a text, not {words!r}")
        if not (self.images or self.text or self.like or self.fields):
            raise ValueError("the query is empty; give image=, text= or like=, or several of them")
        if self.box is not None:
            if not self.images:
                raise ValueError("box: is a part of an image; give image= too")
            validate_box(self.box)
        if self.num_hits < 1:
            raise ValueError(f"k={self.num_hits}: must be at least 1")
        validate_weights(self.weights, tuple(self.fields))

    @property
    def boxed_images(self) -> list[Any]:
        """The images, of the first the part that is meant."""
        if self.box is None:
            return list(self.images)
        return [BoxedImage(self.images[0], self.box), *self.images[1:]]


@dataclass(frozen=True)
class QueryVector:
    """The parts of a query (D,) by name, each with its weight in the sum, and the sum (D,) at unit length."""

    parts: dict[str, tuple[np.ndarray, float]]
    vector: np.ndarray
    length: float  # of the sum before normalization

    def contributions(self, product_D: np.ndarray) -> dict[str, float]:
        """Return what each part adds to the score of a product; they sum to the score."""
        return {
            name: float(weight * (part_D @ product_D) / self.length) for name, (part_D, weight) in self.parts.items()
        }


def drop_null_weights(weights: Mapping[str, float | None]) -> dict[str, float]:
    """Return the weights of a config that are not null; null leaves a weight to the model."""
    return {part: weight for part, weight in weights.items() if weight is not None}


def validate_weights(weights: Mapping[str, float], fields: Sequence[str] = ()) -> None:
    """Raise ValueError for an unknown part, or a weight out of range."""
    for name, weight in weights.items():
        if name not in (*PARTS, *fields):
            raise ValueError(f"weights.{name}: no such part; there are {', '.join((*PARTS, *fields))}")
        if not 0 <= weight <= MAX_WEIGHT:  # rejects nan too
            raise ValueError(f"weights.{name}={weight}: must be between 0 and {MAX_WEIGHT:,.0f}")


def combine(parts: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> QueryVector:
    """Return the weighted sum of unit vectors (D,) by part, `not_text` subtracted.

    Raises:
        ValueError: every weight is 0, or the parts cancel each other.
    """
    signed = {name: -weights[name] if name == "not_text" else weights[name] for name in parts}
    total_D = np.sum([signed[name] * part_D for name, part_D in parts.items()], axis=0)
    length = float(np.linalg.norm(total_D))
    if length < 1e-6:
        raise ValueError(f"weights of {', '.join(parts)}: the parts of the query cancel out; raise one of them")
    used = {name: (part_D, signed[name]) for name, part_D in parts.items()}
    return QueryVector(used, (total_D / length).astype(np.float32), length)


def mean_direction(vectors_ND: np.ndarray) -> np.ndarray:
    """Return the mean of unit vectors at unit length (D,): of several images of one thing."""
    mean_D = vectors_ND.mean(axis=0)
    return mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)
