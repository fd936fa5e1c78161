"""Samples to a Batch, in the loader's worker: decode, augment, tokenise; every distinct input once.

Samples come from `stream`, the specs from the encoders. Two rows with the same picture or text share one input,
so a product that occurs five times in a batch is decoded, sent and encoded once.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim_lightning.data.images.buffer import PictureBuffer
from mim_lightning.data.images.codec import decode_image
from mim_lightning.data.images.transforms import Augment, eval_image, train_image, vary_colours
from mim_lightning.types import (
    NO_KEY,
    QUERY_FIELDS,
    Batch,
    ImageSpec,
    InputSpec,
    Sample,
    TextSpec,
    TowerInput,
    id_key,
)


@dataclass(frozen=True)
class Collate:
    """Build batches for the towers in `specs`; `max_relevant` is the width R of the id tables.

    Augmentation is a function of (seed, the batch's position in the run, the picture's bytes): neither the
    number of processes nor a resume changes a pixel. A picture that cannot be decoded is a ValueError that names
    sample and tower. With `picture_key`, as evaluation has it, the batch tells which pictures are the same and which
    fields of QUERY_FIELDS a row has.
    """

    specs: Mapping[str, InputSpec]
    max_relevant: int = 1
    augment: Augment | None = None
    seed: int = 0
    picture_key: Callable[[bytes], int] | None = None

    def __call__(
        self, samples: Sequence[Sample], position: tuple[int, ...] = (), buffer: Tensor | None = None
    ) -> Batch:
        """Return a batch, its pictures in `buffer`, (num_bytes,) uint8, where there is one."""
        pixels = PictureBuffer(buffer)
        inputs: dict[str, TowerInput] = {}
        rows: dict[str, Tensor] = {}
        picture_keys: dict[str, Tensor] = {}
        for tower, spec in self.specs.items():
            distinct, rows[tower] = _distinct(sample.inputs.get(tower) for sample in samples)
            try:
                inputs[tower] = self._prepare(tower, spec, distinct, position, pixels)
                if self.picture_key is not None and isinstance(spec, ImageSpec):
                    keys = [self.picture_key(data) for data in distinct if isinstance(data, bytes)]
                    picture_keys[tower] = torch.tensor([*keys, NO_KEY])[rows[tower]]  # -1, no picture, is the last
            except ValueError as error:
                raise ValueError(f"{_culprit(samples, tower)}{tower}: {error}") from error
        return Batch(
            inputs=inputs,
            rows=rows,
            sample_nums=torch.tensor([sample.sample_num for sample in samples]),
            query_keys=_keys(sample.query_id for sample in samples),
            product_keys=_keys(sample.product_id for sample in samples),
            asked_keys=self._key_table(sample.asked_ids for sample in samples),
            asked_grades=torch.tensor([self._grades(sample) for sample in samples]),
            shown_keys=self._key_table(sample.shown_ids for sample in samples),
            category_keys=_keys(sample.category for sample in samples),
            is_padding=torch.tensor([sample.is_padding for sample in samples]),
            has_field=self._fields(samples) if self.picture_key is not None else {},
            picture_keys=picture_keys,
        )

    def _prepare(
        self, tower: str, spec: InputSpec, distinct: list[bytes | str], position: tuple[int, ...], pixels: PictureBuffer
    ) -> TowerInput:
        if isinstance(spec, TextSpec):
            # a batch without any text still runs the encoder on one: all ranks must reach the same collectives
            return spec.tokenise([str(text) for text in distinct] or [""])
        if not distinct:
            return torch.zeros(1, 3, *spec.size, dtype=torch.uint8)
        pictures = [data for data in distinct if isinstance(data, bytes)]
        return self._images(tower, spec, pictures, position, pixels.empty(len(pictures), 3, *spec.size))

    def _images(
        self, tower: str, spec: ImageSpec, distinct: list[bytes], position: tuple[int, ...], out: Tensor
    ) -> Tensor:
        if self.augment is None:
            for image, data in zip(out, distinct, strict=True):
                image.copy_(eval_image(data, spec))
            return out
        # numpy's generators cost ten times as much to seed and to draw a number from
        rngs = [random.Random(f"{self.seed} {position} {tower} {zlib.crc32(data)}") for data in distinct]
        for image, data, rng in zip(out, distinct, rngs, strict=True):
            image.copy_(train_image(data, spec, self.augment, rng))
        return vary_colours(out, self.augment, rngs)

    def _key_table(self, ids: Iterable[tuple[str, ...]]) -> Tensor:
        table = [[id_key(i) for i in row] + [NO_KEY] * (self.max_relevant - len(row)) for row in ids]
        return torch.tensor(table, dtype=torch.int64)

    def _fields(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        return {name: torch.tensor([name in sample.inputs for sample in samples]) for name in QUERY_FIELDS}

    def _grades(self, sample: Sample) -> list[int]:
        grades = [*sample.asked_grades] or [1] * len(sample.asked_ids)
        return grades + [0] * (self.max_relevant - len(grades))


def _distinct(values: Iterable[bytes | str | None]) -> tuple[list[bytes | str], Tensor]:
    """Return the distinct values in order of first appearance, and each row's place among them (-1: none)."""
    places: dict[bytes | str, int] = {}
    rows = [-1 if value is None else places.setdefault(value, len(places)) for value in values]
    return list(places), torch.tensor(rows)


def _culprit(samples: Sequence[Sample], tower: str) -> str:
    """Return "sample <number>, " for the first sample whose picture does not decode."""
    for sample in samples:
        data = sample.inputs.get(tower)
        try:
            if isinstance(data, bytes):
                decode_image(data)
        except ValueError:
            return f"sample {sample.sample_num}, "
    return ""


def _keys(ids: Iterable[str | None]) -> Tensor:
    return torch.tensor([NO_KEY if i is None else id_key(i) for i in ids], dtype=torch.int64)
