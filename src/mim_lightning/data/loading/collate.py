"""Collate samples into a Batch in a loader's worker: decode, augment and tokenize every distinct input once.

Rows with the same image or text share one input, so a product that occurs five times in a batch is decoded, sent and
encoded once.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mim_lightning.data.images.buffer import ImageBuffer
from mim_lightning.data.images.codec import decode_image
from mim_lightning.data.images.crops import Crop
from mim_lightning.data.images.transforms import Augment, eval_image, train_image, vary_colors
from mim_lightning.data.loading.feature_cache import FeatureTable, input_key, prompts_of
from mim_lightning.data.loading.references import ReferenceReader
from mim_lightning.data.loading.vector_table import VectorTable
from mim_lightning.fields import QUERY
from mim_lightning.types import (
    NO_KEY,
    QUERY_FIELDS,
    AnyOf,
    Batch,
    FieldInput,
    ImageSpec,
    InputSpec,
    Sample,
    TextSpec,
    TowerInput,
    TowerSpec,
    fields_of,
    hash_id,
    side_of,
    specs_by_field,
)


@dataclass(frozen=True)
class Collate:
    """Build batches for the towers in `specs`; `max_relevant` is the width R of the id tables.

    A row has the input of a tower over several fields only if it has all of them, or any of `AnyOf` fields.

    Augmentation is a function of (seed, position of the batch in the run, bytes of the image): neither the number of
    processes nor a resume changes a pixel. An image that cannot be decoded is a ValueError that names sample and tower.
    With `image_key`, for evaluation, the batch has the keys of its images and which fields of a query a row has.
    A tower with a table in `features` gets the features of its inputs, (n, width) floats, without preparing them.
    `columns` have a float for each row of the set, `vectors` those of other models by id.
    With `references`, those of the samples follow them as rows. With `crop`, a part of each image replaces it.
    """

    specs: Mapping[str, TowerSpec]
    max_relevant: int = 1
    augment: Augment | None = None
    seed: int = 0
    image_key: Callable[[bytes], int] | None = None
    features: Mapping[str, FeatureTable] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    references: ReferenceReader | None = None
    vectors: Mapping[str, VectorTable] = field(default_factory=dict)
    crop: Crop | None = None

    @property
    def prepared_specs(self) -> dict[str, TowerSpec]:
        """The input specs of the towers whose inputs are prepared: not read as features."""
        return {tower: spec for tower, spec in self.specs.items() if tower not in self.features}

    def __call__(
        self,
        samples: Sequence[Sample],
        position: tuple[int, ...] = (),
        buffer: Tensor | None = None,
        left_out: Collection[int] = (),
    ) -> Batch:
        """Return a batch, with its images in `buffer`, (num_bytes,) uint8, if there is one.

        Args:
            left_out: numbers of samples whose references are left out.

        Raises:
            CorruptReferenceError: a reference cannot be read or decoded.
            ValueError: a sample cannot be decoded; names it.
        """
        num_rows, num_references = len(samples), 0 if self.references is None else len(samples)
        if self.references is not None:
            samples = [*samples, *self.references.read(samples, left_out)]
        if self.crop is not None:
            samples = [self._cropped(sample, self.crop) for sample in samples]
        pixels = ImageBuffer(buffer)
        inputs: dict[str, TowerInput] = {}
        rows: dict[str, Tensor] = {}
        image_keys: dict[str, Tensor] = {}
        for tower, spec in self.specs.items():
            fields = fields_of(tower, spec)
            distinct, rows[tower] = _distinct(values_of(sample, fields) for sample in samples)
            try:
                if tower in self.features:
                    inputs[tower] = self._read_features(tower, fields, distinct)
                else:
                    inputs[tower] = self._prepare_all(tower, fields, distinct, position, pixels)
                if self.image_key is not None:
                    images = [name for name, part in fields.items() if isinstance(part, ImageSpec)]
                    image_keys |= {name: self._image_keys(samples, name) for name in images}
            except ValueError as error:
                undecodable = _undecodable(samples, fields)
                if undecodable is not None and undecodable >= num_rows and self.references is not None:
                    raise self.references.corrupt(samples[undecodable], f"{tower}: {error}") from error
                sample = "" if undecodable is None else f"sample {samples[undecodable].sample_num}, "
                raise ValueError(f"{sample}{tower}: {error}") from error
        query_keys = _keys(sample.query_id for sample in samples)
        product_keys = _keys(sample.product_id for sample in samples)
        return Batch(
            inputs=inputs,
            rows=rows,
            sample_nums=torch.tensor([sample.sample_num for sample in samples]),
            query_keys=query_keys,
            product_keys=product_keys,
            target_keys=self._key_table(sample.target_ids for sample in samples),
            target_grades=torch.tensor([self._grades(sample) for sample in samples]),
            reference_keys=self._key_table(sample.reference_ids for sample in samples),
            category_keys=_keys(sample.category for sample in samples),
            is_padding=torch.tensor([sample.is_padding for sample in samples]),
            has_field=self._fields(samples) if self.image_key is not None else {},
            image_keys=image_keys,
            columns={name: self._column(values, samples) for name, values in self.columns.items()},
            num_references=num_references,
            vectors={
                name: table.read(query_keys if side_of(name) == QUERY else product_keys)
                for name, table in self.vectors.items()
            },
        )

    def _cropped(self, sample: Sample, crop: Crop) -> Sample:
        try:
            return crop(sample)
        except ValueError as error:
            raise ValueError(f"sample {sample.sample_num}, {crop.describes}: {error}") from error

    def _column(self, values: np.ndarray, samples: Sequence[Sample]) -> Tensor:
        return torch.from_numpy(values[[sample.sample_num for sample in samples]].astype(np.float32))

    def _read_features(self, tower: str, fields: Mapping[str, InputSpec], distinct: list[Values]) -> Tensor:
        table = self.features[tower]
        if not distinct:
            return torch.zeros(1, table.width)
        prompts = prompts_of(fields.values())
        features, is_found = table.read([input_key(values, prompts) for values in distinct])
        if not is_found.all():
            # an image that cannot be decoded has no features: the same error as without a cache
            self._prepare_all(tower, fields, [distinct[int(is_found.argmin())]], (), ImageBuffer())
            raise ValueError(f"{table.folder}: lacks features of an input; start again, and they are computed")
        return features

    def _prepare_all(
        self,
        tower: str,
        fields: Mapping[str, InputSpec],
        distinct: list[Values],
        position: tuple[int, ...],
        pixels: ImageBuffer,
    ) -> TowerInput:
        parts = [
            self._prepare(tower, part, [values[idx] for values in distinct], position, pixels)
            for idx, part in enumerate(fields.values())
        ]
        if isinstance(fields, AnyOf):
            parts.append(_presence(distinct, len(fields)))
        return parts[0] if len(parts) == 1 else tuple(parts)

    def _prepare(
        self,
        tower: str,
        spec: InputSpec,
        distinct: list[bytes | str | None],
        position: tuple[int, ...],
        pixels: ImageBuffer,
    ) -> FieldInput:
        if isinstance(spec, TextSpec):
            # a batch without text still has one: all ranks must run the encoder to take part in the same collectives
            return spec.tokenize([str(text or "") for text in distinct] or [""])
        if not distinct:
            return torch.zeros(1, 3, *spec.size, dtype=torch.uint8)
        images = [data for data in distinct if isinstance(data, bytes)]
        out = pixels.empty(len(distinct), 3, *spec.size)
        if len(images) == len(distinct):
            return self._images(tower, spec, images, position, out)
        out.zero_()
        found = self._images(tower, spec, images, position, torch.empty(len(images), 3, *spec.size, dtype=torch.uint8))
        out[[isinstance(data, bytes) for data in distinct]] = found
        return out

    def _images(
        self, tower: str, spec: ImageSpec, distinct: list[bytes], position: tuple[int, ...], out: Tensor
    ) -> Tensor:
        if self.augment is None:
            for image, data in zip(out, distinct, strict=True):
                image.copy_(eval_image(data, spec))
            return out
        # NumPy's generators take ten times as long to seed and to draw a number from
        rngs = [random.Random(f"{self.seed} {position} {tower} {zlib.crc32(data)}") for data in distinct]
        for image, data, rng in zip(out, distinct, rngs, strict=True):
            image.copy_(train_image(data, spec, self.augment, rng))
        return vary_colors(out, self.augment, rngs)

    def _key_table(self, ids: Iterable[tuple[str, ...]]) -> Tensor:
        table = [[hash_id(i) for i in row] + [NO_KEY] * (self.max_relevant - len(row)) for row in ids]
        return torch.tensor(table, dtype=torch.int64)

    def _image_keys(self, samples: Sequence[Sample], field: str) -> Tensor:
        assert self.image_key is not None
        distinct, rows = _distinct(values_of(sample, (field,)) for sample in samples)
        keys = [self.image_key(data) for (data,) in distinct if isinstance(data, bytes)]
        return torch.tensor([*keys, NO_KEY])[rows]  # row -1, no image, is the last

    def _fields(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        read = (name for name in specs_by_field(self.specs) if side_of(name) == QUERY)
        names = dict.fromkeys((*QUERY_FIELDS, *read))
        return {name: torch.tensor([name in sample.inputs for sample in samples]) for name in names}

    def _grades(self, sample: Sample) -> list[int]:
        grades = [*sample.target_grades] or [1] * len(sample.target_ids)
        return grades + [0] * (self.max_relevant - len(grades))


Values = tuple[bytes | str | None, ...]  # of a tower's fields; None only of `AnyOf`


def values_of(sample: Sample, fields: Iterable[str]) -> Values | None:
    """Return a sample's values of a tower's fields, None if it lacks one of them, or every one of `AnyOf`."""
    values = tuple(sample.inputs.get(name) for name in fields)
    num_absent = values.count(None)
    return None if num_absent and not (isinstance(fields, AnyOf) and num_absent < len(values)) else values


def _presence(distinct: Sequence[Values], num_fields: int) -> Tensor:
    """Return which fields each of the distinct values has (n, F); of none, one row without any."""
    return torch.tensor([[value is not None for value in values] for values in distinct] or [[False] * num_fields])


def _distinct(values: Iterable[Values | None]) -> tuple[list[Values], Tensor]:
    """Return the distinct values in order of first appearance, and the position of each row's value (-1: none)."""
    positions: dict[Values, int] = {}
    rows = [-1 if value is None else positions.setdefault(value, len(positions)) for value in values]
    return list(positions), torch.tensor(rows)


def _undecodable(samples: Sequence[Sample], fields: Iterable[str]) -> int | None:
    """Return the position of the first sample with an image that cannot be decoded."""
    names = tuple(fields)
    for idx, sample in enumerate(samples):
        try:
            for data in (sample.inputs.get(name) for name in names):
                if isinstance(data, bytes):
                    decode_image(data)
        except ValueError:
            return idx
    return None


def _keys(ids: Iterable[str | None]) -> Tensor:
    return torch.tensor([NO_KEY if i is None else hash_id(i) for i in ids], dtype=torch.int64)
