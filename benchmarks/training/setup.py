"""What the arms of `benchmarks.train` have in common: config, model and data of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning import seed_everything

from mim_lightning.config import Config, build, build_matcher, compose
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.model.matcher import Matcher

FOREVER = 10**6  # epochs and validations that are never reached
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Setup:
    """What all arms have in common.

    Attributes:
        overrides: of the config of a run.
        batches: steps of a segment.
        micro_batch_size: inputs whose activations are in memory at a time, where gradients are cached.
        workers: loader processes of each arm.
        epochs: segments until the end of every schedule, where an arm ends by itself.
    """

    overrides: tuple[str, ...]
    batch_size: int
    batches: int
    micro_batch_size: int
    workers: int
    device: str
    scratch: Path
    epochs: int = FOREVER

    @property
    def num_steps(self) -> int:
        return self.epochs * self.batches

    def config(self, *more: str) -> Config:
        return compose(
            "train",
            [
                *self.overrides,
                f"paths.data={self.scratch / 'data'}",
                f"paths.runs={self.scratch / 'runs'}",
                f"data.batch_size={self.batch_size}",
                f"data.num_workers={self.workers}",
                f"trainer.accelerator={'gpu' if self.device == 'cuda' else 'cpu'}",
                f"trainer.max_epochs={self.epochs}",
                f"trainer.check_val_every_n_epoch={self.epochs}",
                f"data.rows_per_epoch={self.batches * self.batch_size}",  # a limit would cut the one that ends a pass
                "trainer.num_sanity_val_steps=0",
                *more,
            ],
        )

    def build(self, config: Config) -> tuple[Matcher, MatchDataModule]:
        """Return the model, and the data, which are prepared if they are not there."""
        seed_everything(config["seed"], verbose=False)
        matcher = build_matcher(config)
        datamodule = build(config["data"], specs=matcher.input_specs())
        datamodule.prepare_data()
        return matcher, datamodule

    @property
    def precision(self) -> str:
        return "bf16-mixed" if self.device == "cuda" else "32-true"
