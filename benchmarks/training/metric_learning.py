"""Training by open-metric-learning on images alone: its triplet loss, its miner and its balance sampler."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.training.pace import Pace
from benchmarks.training.rows import adamw, image_transform, open_image
from benchmarks.training.setup import CLIP_NORM, Setup
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.lit.optim import warmup_cosine
from mim_lightning.types import ImageSpec


class LabeledPictures(Dataset[tuple[Tensor, int]]):
    """The pictures of a set, labeled by product: every query image, and each product's image once."""

    def __init__(self, shards: ShardSet, spec: ImageSpec) -> None:
        self.shards, self.transform = shards, image_transform(spec)
        products = shards.column("product_keys").tolist()
        first_rows = {product: number for number, product in reversed([*enumerate(products)])}
        self.pictures = [(number, "query_image") for number in range(len(shards))]
        self.pictures += [(number, "product_image") for number in first_rows.values()]
        self.labels = [products[number] for number, _ in self.pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, picture_idx: int) -> tuple[Tensor, int]:
        number, field = self.pictures[picture_idx]
        (sample,) = self.shards.read([number])
        return self.transform(open_image(sample.inputs[field])), self.labels[picture_idx]


def train_open_metric_learning(setup: Setup, pace: Pace, lr: float | None = None) -> None:
    """Train a loop as in its guide: as many products in a batch as the others have rows, two pictures of each.

    The hardest triplets of a batch and a soft margin are those of its recipe for shop photos (DeepFashion InShop).

    Args:
        lr: None: of the config.
    """
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_hard_tri import HardTripletsMiner
    from oml.samplers.balance import BalanceSampler

    config = setup.config(*([f"optim.lr={lr}"] if lr else []))
    matcher, datamodule = setup.build(config)
    model: nn.Module = matcher.tower("product_image").to(setup.device).train()
    pictures = LabeledPictures(datamodule.opened.train, matcher.input_specs()["product_image"])
    sampler: Any = BalanceSampler(pictures.labels, n_labels=setup.batch_size, n_instances=2)
    loader = DataLoader(pictures, batch_sampler=sampler, num_workers=setup.workers)
    criterion = TripletLossWithMiner(margin=None, miner=HardTripletsMiner())
    optimizer = adamw(model, config)
    schedule = warmup_cosine(optimizer, setup.num_steps)
    batches = _endless(loader)
    pace.watch(matcher)
    for _ in range(setup.epochs):
        pace.begin()
        for images, labels in islice(batches, setup.batches):
            loss = criterion(model(images.to(setup.device)), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
        pace.end(setup.batches * setup.batch_size)


def _endless(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:  # an epoch of the sampler has each product once
        yield from loader
