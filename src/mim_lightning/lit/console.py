"""What a run says on the terminal: a progress bar with loss and last recall, one paragraph at the start.

Matcher, objective and datamodule come in, lines go out; the train and evaluate doors call it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.losses.objective import Objective
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import Batch

NOISE = (
    "Tip:",
    "Loading `train_dataloader`",
    "TPU available",
    "GPU available",
    "Restoring states",
    "Loaded model weights",
)


class ProgressBar(RichProgressBar):
    """Lightning's bar with the loss and the last value of the monitored metric, under short names.

    The loss is the mean over the rows of the epoch so far: that of one batch, the last of which may hold a row or two,
    says little.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._restart()

    def _restart(self) -> None:
        self._sum, self._num_rows = 0.0, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loss = trainer.progress_bar_metrics.get("train/loss")
        if loss is not None:
            self._sum += float(loss) * len(batch)
            self._num_rows += len(batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = {name.rsplit("/", 1)[-1]: value for name, value in super().get_metrics(trainer, pl_module).items()}
        metrics.pop("v_num", None)
        return metrics | ({"loss": self._sum / self._num_rows} if self._num_rows else {})


def quieten() -> None:
    """Drop the lines of Lightning that tell a user of this project nothing."""
    # Lightning gives these records no level or name of their own, so only their text tells them apart
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not any(word in record.getMessage() for word in NOISE))
    # workers are a matter of data.num_workers; epoch-level values are equal on all ranks before they are logged
    for message in (
        ".*does not have many workers.*",
        ".*sync_dist=True.*",
        ".*treespec.*",
        ".*not supported by the model summary.*",
        ".*is smaller than the logging interval.*",  # the epoch's mean is logged whatever its length
    ):
        warnings.filterwarnings("ignore", message)


def describe_towers(matcher: Matcher) -> str:
    """Return a line for each set of weights: who uses it, which encoder, its width and parameters."""
    lines = []
    for owner in matcher.towers:
        tower = matcher.tower(owner)
        users = " = ".join(name for name, other in matcher.owner_of.items() if other == owner)
        parameters = sum(p.numel() for p in tower.parameters())
        frozen = "" if any(p.requires_grad for p in tower.parameters()) else ", frozen"
        encoder = type(tower.encoder).__name__
        lines.append(
            f"  {users}: {encoder} {tower.encoder.width} -> {tower.width}, {parameters / 1e6:.2f} M parameters{frozen}"
        )
    return "towers\n" + "\n".join(lines)


def describe_encoder_values(config: Mapping[str, Any]) -> str | None:
    """Return one line with the values of a run that its encoder's config brought; None if it brought none."""
    suited = config["encoder"].get("training") or {}
    brought = [
        f"{section}.{key}={value:g}" if isinstance(value, float) else f"{section}.{key}={value}"
        for section, values in suited.items()
        for key, value in values.items()
        if config.get(section, {}).get(key) == value
    ]
    return f"from the encoder's config: {', '.join(brought)}" if brought else None


def describe_training(objective: Objective, datamodule: MatchDataModule) -> str:
    """Return what is learnt from what: pairs, rows, and how many negatives a row meets."""
    pairs = "".join(f"  {name} x {pair.weight:g}\n" for name, pair in objective.pairs.items())
    rows, queries, gallery = (
        len(datamodule.opened.train),
        len(datamodule.opened.queries),
        len(datamodule.opened.catalog),
    )
    batch_size = min(datamodule.batch_size, rows)
    return (
        f"pairs\n{pairs}"
        f"data '{datamodule.name}'\n  {rows} training rows; {queries} queries against {gallery} gallery rows\n"
        f"  batch of {batch_size} rows over all processes: up to {batch_size - 1} negatives a row"
    )
