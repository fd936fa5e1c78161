"""Training by a plain module of Lightning with any number of towers."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training.ours import PaceCallback
from benchmarks.training.pace import Pace
from benchmarks.training.rows import RowCollate, adamw, row_loader
from benchmarks.training.setup import CLIP_NORM, Setup
from mim_lightning.config import Config
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import Batch


class PlainModule(LightningModule):
    """Cross-entropy both ways for every pair, over whole similarity matrices; the row's own partner is its positive.

    Args:
        encodes_by_pair: each pair encodes its sides by itself; otherwise each tower encodes once a step.
    """

    def __init__(self, matcher: Matcher, config: Config, encodes_by_pair: bool) -> None:
        super().__init__()
        self.matcher, self.config, self.encodes_by_pair = matcher, config, encodes_by_pair
        self.pairs = config["model"]["pairs"]
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        known: dict[str, Tensor] = {}
        if not self.encodes_by_pair:
            known = {name: self.encode(name, batch) for name in self.matcher.tower_names}
        losses = {}
        for name, pair in self.pairs.items():
            left_BD, right_BD = (self.side(pair[side], batch, known) for side in ("left", "right"))
            logits_BB = self.log_scale.exp() * left_BD @ right_BD.T
            partners_B = torch.arange(len(logits_BB), device=logits_BB.device)
            losses[name] = (F.cross_entropy(logits_BB, partners_B) + F.cross_entropy(logits_BB.T, partners_B)) / 2
        loss = torch.stack(list(losses.values())).sum()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(partners_B))
        return loss

    def side(self, name: str, batch: Any, known: dict[str, Tensor]) -> Tensor:
        parts = self.matcher.fusions.get(name, (name,))
        vectors = [known[part] if part in known else self.encode(part, batch) for part in parts]
        return vectors[0] if len(vectors) == 1 else F.normalize(torch.stack(vectors).sum(0), dim=-1)

    def encode(self, name: str, batch: Any) -> Tensor:
        if isinstance(batch, Batch):
            return self.matcher.tower(name)(batch.inputs[name])[batch.rows[name].clamp(min=0)]
        return self.matcher.tower(name)(batch[name])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self, self.config)


def train_plain(setup: Setup, pace: Pace, encodes_by_pair: bool = False, has_our_collate: bool = False) -> None:
    config = setup.config()
    matcher, datamodule = setup.build(config)
    collate = RowCollate(matcher.input_specs(), "max_length")
    loader = datamodule.train_dataloader() if has_our_collate else row_loader(datamodule.opened.train, collate, setup)
    PaceCallback.pace = pace
    trainer = Trainer(
        accelerator="gpu" if setup.device == "cuda" else "cpu",
        devices=1,
        precision=setup.precision,
        max_epochs=setup.epochs,
        limit_train_batches=setup.batches,
        gradient_clip_val=CLIP_NORM,
        log_every_n_steps=10,
        callbacks=[PaceCallback()],
        logger=CSVLogger(setup.scratch / "plain"),
        enable_checkpointing=False,
    )
    trainer.fit(PlainModule(matcher, config, encodes_by_pair), loader)
