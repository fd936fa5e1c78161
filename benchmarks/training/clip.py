"""Training by the epoch function of open_clip, on image-text pairs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from benchmarks.training.pace import Pace
from benchmarks.training.rows import RowCollate, TitledImages, adamw, row_loader
from benchmarks.training.setup import CLIP_NORM, Setup
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import Sample


class ClipForm(nn.Module):
    """The image tower and the text tower as open_clip's models are called."""

    def __init__(self, matcher: Matcher) -> None:
        super().__init__()
        self.image, self.text = matcher.tower("product_image"), matcher.tower("product_text")
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: Tensor, texts: BatchEncoding) -> dict[str, Tensor]:
        features = {"image_features": self.image(images), "text_features": self.text(dict(texts))}
        return features | {"logit_scale": self.logit_scale.exp()}


@dataclass(frozen=True)
class ClipCollate:
    """Rows to image-text pairs, one for each side: query image with query text, product image with product text."""

    rows: RowCollate
    sides: tuple[str, ...] = ("query", "product")

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, BatchEncoding]:
        rows = self.rows(samples)
        images = torch.cat([rows[f"{side}_image"] for side in self.sides])
        texts = [rows[f"{side}_text"] for side in self.sides]
        return images, BatchEncoding({name: torch.cat([text[name] for text in texts]) for name in texts[0]})


class ClipData:
    """What `train_one_epoch` takes as its data."""

    def __init__(self, dataloader: Any) -> None:
        self.dataloader = dataloader

    def set_epoch(self, epoch: int) -> None: ...


def train_open_clip(setup: Setup, pace: Pace, splits: int = 1, has_titles: bool = False) -> None:
    """Train by open_clip's own epoch function; with `splits`, its `--accum-freq`, which caches features.

    Args:
        has_titles: the pairs are shuffled one by one, and the title is the text of both images of a row; otherwise
            both pairs of a row are in one batch.
    """
    from open_clip import ClipLoss
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    config = setup.config()
    matcher, datamodule = setup.build(config)
    shards, collate = datamodule.opened.train, ClipCollate(RowCollate(matcher.input_specs(), "max_length"))
    num_pairs = 2 * setup.batch_size
    model = ClipForm(matcher).to(setup.device)
    optimizer = adamw(model, config)
    loader: Any = row_loader(shards, collate, setup, splits)
    if has_titles:
        loader = row_loader(
            TitledImages(shards), replace(collate, sides=("product",)), replace(setup, batch_size=num_pairs)
        )
    loader.num_batches, loader.num_samples = len(loader), setup.batches * num_pairs
    args = argparse.Namespace(
        device=setup.device, precision="amp_bf16" if setup.device == "cuda" else "fp32", accum_freq=splits,
        batch_size=num_pairs // splits, grad_clip_norm=CLIP_NORM, log_every_n_steps=100,
        skip_scheduler=False, distill=False, horovod=False, wandb=False, rank=0, local_rank=0, world_size=1,
        log_local=False,
    )  # fmt: skip
    scheduler = cosine_lr(optimizer, config["optim"]["lr"], setup.num_steps // 20, setup.num_steps)
    pace.watch(matcher)
    for epoch in range(setup.epochs):
        pace.begin()
        train_one_epoch(model, {"train": ClipData(loader)}, ClipLoss(), epoch, optimizer, None, scheduler, None, args)
        pace.end(setup.batches * setup.batch_size)


def train_open_clip_cached(setup: Setup, pace: Pace) -> None:
    # a row is two images and two texts
    train_open_clip(setup, pace, max(1, 2 * setup.batch_size // setup.micro_batch_size))
