"""Batches as the other frameworks get them: an image and a text for every row, none shared.

Read from the same shards by row number, decoded with Pillow, cropped and mirrored with torchvision; uint8 images, which
the encoders normalize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from benchmarks.training.setup import Setup
from mim_lightning.config import Config
from mim_lightning.data.images.transforms import Augment
from mim_lightning.data.loading.worker_processes import start_worker
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.encoders.hf_text import HfTokenize
from mim_lightning.types import ImageSpec, Sample, TextSpec

Rows = dict[str, Any]  # by tower: images (B, 3, H, W), or tokens (B, L) by name


@dataclass(frozen=True)
class RowCollate:
    """Samples to `Rows`: an image and a text for every row, texts padded to the maximum or to the longest."""

    specs: dict[str, Any]
    padding: str  # "max_length" or "longest"

    def __call__(self, samples: Sequence[Sample]) -> Rows:
        return {name: self.encode(name, [sample.inputs.get(name) for sample in samples]) for name in self.specs}

    def encode(self, name: str, values: Sequence[Any]) -> Any:
        spec = self.specs[name]
        if isinstance(spec, ImageSpec):
            transform = image_transform(spec)
            return torch.stack([transform(open_image(value)) for value in values])
        return tokenize([value or "" for value in values], spec, self.padding)


def open_image(value: Any) -> Image.Image:
    return (value if isinstance(value, Image.Image) else Image.open(BytesIO(value))).convert("RGB")


def image_transform(spec: ImageSpec) -> v2.Compose:
    """Return torchvision's random crop and mirroring, with the settings of ours."""
    augment = Augment()
    ratio = 1 / augment.max_ratio, augment.max_ratio
    crop = v2.RandomResizedCrop(spec.size, (augment.min_scale, 1.0), ratio)
    return v2.Compose([crop, v2.RandomHorizontalFlip(augment.flip), v2.PILToTensor()])


def tokenize(texts: Sequence[str], spec: TextSpec, padding: str) -> dict[str, Tensor]:
    if isinstance(spec.tokenize, HfTokenize):
        return replace(spec.tokenize, padding=padding)(texts)
    tokens = spec.tokenize(texts)
    if padding == "longest":
        return tokens
    return {name: F.pad(ids, (0, spec.max_length - ids.shape[1])) for name, ids in tokens.items()}


class RowDataset(Dataset[Any]):
    """Batches of rows of a shard set, read by number."""

    def __init__(self, shards: ShardSet | TitledImages, collate: Callable[[Sequence[Sample]], Any]) -> None:
        self.shards, self.collate = shards, collate

    def __getitems__(self, numbers: list[int]) -> Any:
        return self.collate(self.shards.read(numbers))


class TitledImages:
    """The image-text pairs of a set, two a row: its query image and its product image, each with the title."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return 2 * len(self.shards)

    def read(self, numbers: Sequence[int]) -> list[Sample]:
        samples = self.shards.read([number // 2 for number in numbers])
        fields = [("query_image", "product_image")[number % 2] for number in numbers]
        return [
            replace(sample, inputs={**sample.inputs, "product_image": sample.inputs[field]})
            for sample, field in zip(samples, fields, strict=True)
        ]


class ShuffledRows(Sampler[list[int]]):
    """The batches of a segment, from one permutation of the set after another."""

    def __init__(self, num_rows: int, batch_size: int, batches: int) -> None:
        self.batch_size, self.batches = batch_size, batches
        self.numbers = _endless(num_rows)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.batches):
            yield [next(self.numbers) for _ in range(self.batch_size)]


def _endless(num_rows: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(torch.initial_seed())
    while True:
        yield from torch.randperm(num_rows, generator=generator).tolist()


def row_loader(
    shards: ShardSet | TitledImages, collate: Callable[[Sequence[Sample]], Any], setup: Setup, splits: int = 1
) -> DataLoader[Any]:
    """Return a loader of a segment's batches, each in `splits` parts."""
    sampler = ShuffledRows(len(shards), setup.batch_size // splits, setup.batches * splits)
    return DataLoader(
        RowDataset(shards, collate),
        batch_sampler=sampler,
        collate_fn=_identity,
        num_workers=setup.workers,
        persistent_workers=setup.workers > 0,
        pin_memory=setup.device == "cuda",
        worker_init_fn=start_worker,
    )


def _identity(batch: Any) -> Any:
    return batch


def adamw(module: nn.Module, config: Config) -> torch.optim.AdamW:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=config["optim"]["lr"], weight_decay=config["optim"]["weight_decay"])
