"""Callback that mines the hard negatives of the training rows, for `data/sampling=hard_negatives`.

The products' embeddings are those of the validation at the end of an epoch; the queries of the training rows are
encoded once more for it, without gradient and augmentation. A table applies from the next pass on.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from mim_lightning.data.preparation.prepared import PreparedData
from mim_lightning.data.preparation.product_groups import find_product_groups
from mim_lightning.data.sampling.hard_negatives import HardNegativeSettings, MiningSettings
from mim_lightning.data.sampling.negative_table import NegativeTable, read_negatives, to_lists, write_negatives
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.display.numbers import format_count, format_duration
from mim_lightning.fields import QUERY
from mim_lightning.lit.callbacks.retrieval_eval import RetrievalEval, find_retrieval_eval
from mim_lightning.lit.console import ProgressBar
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.lit.embed_queries import embed_queries
from mim_lightning.lit.trainer import ask_first
from mim_lightning.metrics import EmbeddingTable, NothingToRankError
from mim_lightning.metrics.collectives import sum_of_ranks
from mim_lightning.metrics.negatives import Guard, MinedNegatives, choose_negatives, mine_negatives
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import NO_KEY, Batch, Direction, Embeddings, side_of

FOLDER = "negatives"  # in that of a run
WHERE, SECTION = "data/sampling=hard_negatives", "data.sampling.mining"


class HardNegativeMining(Callback):
    """Mines in every n-th epoch; rank zero writes the table into the run's folder, under the pass that begins with it.

    The order of a pass is a function of seed, pass and table, so a resumed run reads the tables that its checkpoint
    names and goes on with the same batches.
    """

    def __init__(self, settings: HardNegativeSettings) -> None:
        self.settings = settings
        self.guard: Guard | None = None
        self.tables: dict[int, NegativeTable] = {}  # by first pass; older ones are used by no pass to come

    def validate(self, trainer: Trainer, datamodule: MatchDataModule) -> None:
        """Raise ValueError for a run in which nothing can be mined, before anything of it is written."""
        evaluation = find_retrieval_eval(trainer)
        if evaluation.num_distractors is not None:
            raise ValueError(
                f"callbacks.retrieval_eval.num_distractors={evaluation.num_distractors}: negatives are mined among the "
                "products that validation embeds; give null, or data.sampling.table"
            )
        if self.settings.first_epoch == 0 and trainer.num_sanity_val_steps != -1:
            raise ValueError(
                f"data.sampling.first_epoch=0: negatives are mined in the validation before training; give "
                f"trainer.num_sanity_val_steps=-1, not {trainer.num_sanity_val_steps}"
            )
        every, first_epoch = trainer.check_val_every_n_epoch or 1, self.settings.first_epoch
        mined_after = math.ceil(max(every, first_epoch) / every) * every  # epochs
        if first_epoch and 0 < (trainer.max_epochs or 0) <= mined_after and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ValueError(
                f"{WHERE}: negatives are mined in validations, the first time after epoch {mined_after} of "
                f"{trainer.max_epochs}, too late for any of them; lower trainer.check_val_every_n_epoch or "
                "data.sampling.first_epoch, or raise trainer.max_epochs"
            )
        self._direction(evaluation)
        if datamodule.mixture:
            raise ValueError(f"{WHERE}: mines in one set, not in data.mixture; give data.sampling.table")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        find_retrieval_eval(trainer).keeps_gallery = True
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and self.guard is None:  # a column that no product has is named before the first epoch
            self.guard = make_guard(self.settings.mining, datamodule.opened.prepared, datamodule.validation)

    def _direction(self, evaluation: RetrievalEval) -> tuple[str, Direction]:
        name = self.settings.mining.direction or evaluation.monitored.key.direction
        if name not in evaluation.directions:
            raise ValueError(f"{SECTION}.direction={name}: is none; there are {', '.join(evaluation.directions)}")
        return name, evaluation.directions[name]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluation = find_retrieval_eval(trainer)
        gallery, evaluation.gallery = evaluation.gallery, None
        if trainer.state.fn != TrainerFn.FITTING or gallery is None:
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        next_epoch = 0 if trainer.sanity_checking else trainer.current_epoch + 1
        first_pass = _next_pass(datamodule, next_epoch)
        is_first, is_last = not self.tables, next_epoch == trainer.max_epochs
        wait = 0 if is_first else max(self.tables) + _num_passes(datamodule, self.settings.every_n_epochs)
        if is_last or next_epoch < self.settings.first_epoch or first_pass < wait:
            return
        if not trainer.sanity_checking and _epoch_of_pass(datamodule, first_pass) > _epoch_of_next_validation(trainer):
            return  # a later model can mine for that pass
        started = time.perf_counter()
        mined = self._mine(trainer, pl_module, evaluation, gallery)
        self._keep(trainer, first_pass, mined)
        self._log(trainer, mined, first_pass, time.perf_counter() - started)

    def _mine(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: RetrievalEval, gallery: EmbeddingTable
    ) -> MinedNegatives:
        datamodule, settings = trainer.datamodule, self.settings.mining  # type: ignore[attr-defined]
        name, direction = self._direction(evaluation)
        trained = np.unique(datamodule.opened.train.column("product_keys"))
        is_trained = torch.from_numpy(np.isin(gallery.columns["product_keys"].cpu().numpy(), trained))
        if not sum_of_ranks(int(is_trained.sum()))[0]:
            raise ValueError(
                f"{WHERE}: no product of the training rows is in the catalog {datamodule.opened.catalog.folder}; give "
                "data.sampling.table"
            )
        matcher: Any = pl_module.matcher
        queries = self._embed(trainer, pl_module, matcher, gallery.row_keys.device)
        assert self.guard is not None
        choose = partial(choose_negatives, num_negatives=settings.num_candidates, guard=self.guard)
        try:
            return mine_negatives(
                name,
                direction,
                queries,
                gallery.take(is_trained.to(gallery.row_keys.device)),
                matcher.fusions,
                lambda *ranked: choose(*(part.cpu() for part in ranked)),
                settings.depth,
                evaluation.options["memory_bytes"],
                evaluation.device,
            )
        except NothingToRankError:
            raise ValueError(
                f"{SECTION}.direction={name}: no training row has a {direction.query} and a product of the catalog"
            ) from None

    def _embed(
        self, trainer: Trainer, pl_module: LightningModule, matcher: Matcher, storage: torch.device
    ) -> EmbeddingTable:
        loader = trainer.datamodule.train_query_pass()  # type: ignore[attr-defined]
        towers = [name for name in matcher.tower_names if side_of(name) == QUERY]

        def embed(batch: Batch) -> Embeddings:
            with trainer.precision_plugin.forward_context():
                return cast(Embeddings, matcher(batch))

        bar = next((part for part in trainer.callbacks if isinstance(part, ProgressBar)), None)  # type: ignore[attr-defined]
        with bar.counting(len(loader), "Mining") if bar is not None else nullcontext(lambda num_done: None) as show:
            return embed_queries(loader, towers, (pl_module.device, storage), embed, show)

    def _keep(self, trainer: Trainer, first_pass: int, mined: MinedNegatives) -> None:
        order = mined.query_keys.argsort()
        table = NegativeTable(mined.query_keys[order].numpy(), mined.product_keys[order].numpy())

        def write() -> None:
            counts = (table.product_keys != NO_KEY).sum(1)
            columns = {
                "query_key": table.query_keys,
                "positive_score": mined.positive_scores[order].numpy(),
                "negative_keys": to_lists(table.product_keys, counts),
                "scores": to_lists(mined.scores[order].numpy(), counts),
            }
            write_negatives(_path(trainer, first_pass), columns)

        ask_first(trainer.strategy, write)  # a checkpoint that names the table comes after it
        # the pass that is running may be read from the middle again
        former = max((first for first in self.tables if first < first_pass), default=None)
        self.tables = {first: self.tables[first] for first in (former,) if first is not None} | {first_pass: table}
        self._use(trainer)

    def _use(self, trainer: Trainer) -> None:
        trainer.datamodule.use_sampling(replace(self.settings, mined=dict(self.tables)))  # type: ignore[attr-defined]

    def _log(self, trainer: Trainer, mined: MinedNegatives, first_pass: int, seconds: float) -> None:
        found = mined.statistics()
        rank_zero_info(f"hard negatives from pass {first_pass} on: {mined.describe()}; {format_duration(seconds)}")
        values = {f"negatives/{key}": value for key, value in found.items()} | {"negatives/seconds": seconds}
        epoch = -1.0 if trainer.sanity_checking else float(trainer.current_epoch)
        for logger in trainer.loggers:  # directly: Lightning discards what a sanity pass logs
            logger.log_metrics({**values, "epoch": epoch}, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"passes": sorted(self.tables)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        passes = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("passes", ())
        self.tables = {}
        for first_pass in passes:
            path = _path(trainer, first_pass)
            self.tables[first_pass] = read_negatives(path, f"{path}, which the checkpoint goes on with")
        if self.tables:
            self._use(trainer)


def _path(trainer: Trainer, first_pass: int) -> Path:
    return Path(trainer.default_root_dir) / FOLDER / f"pass-{first_pass:06d}.parquet"


def _next_pass(datamodule: MatchDataModule, next_epoch: int) -> int:
    """Return the first pass that begins in an epoch, or after it: passes and epochs differ with `rows_per_epoch`."""
    order = datamodule.present_order()
    return -(-next_epoch * order.num_batches // order.passes()[""].num_batches)


def _epoch_of_pass(datamodule: MatchDataModule, first_pass: int) -> int:
    order = datamodule.present_order()
    return first_pass * order.passes()[""].num_batches // order.num_batches


def _epoch_of_next_validation(trainer: Trainer) -> int:
    """Return the epoch in which, or at the end of which, training is validated next: what that mines is for later."""
    loop, every, num_epochs = trainer.fit_loop.epoch_loop, trainer.val_check_batch, trainer.check_val_every_n_epoch
    if num_epochs is None and every is not None:  # batches are counted over all epochs
        return int((loop.total_batch_idx + every) // trainer.num_training_batches)
    is_last = every is None or loop.batch_idx + 1 + every > trainer.num_training_batches
    return trainer.current_epoch + (num_epochs or 1 if is_last else 0)


def _num_passes(datamodule: MatchDataModule, num_epochs: int) -> int:
    order = datamodule.present_order()
    return max(1, num_epochs * order.num_batches // order.passes()[""].num_batches)


def make_guard(
    mining: MiningSettings, prepared: PreparedData, validation: ValidationSettings | None, section: str = SECTION
) -> Guard:
    """Return the guard of settings, with the groups of products in the data that stand for each other.

    Args:
        section: of the config, that the settings are of.
    """
    groups = find_product_groups(prepared, mining.group_column, mining.skip_duplicates, validation, section)
    if len(groups):
        num_groups = format_count(len(np.unique(groups.group_keys)), "group")
        rank_zero_info(f"hard negatives: {format_count(len(groups), 'product')} in {num_groups} of the same product")
    keys = torch.from_numpy(groups.product_keys), torch.from_numpy(groups.group_keys)
    return Guard(mining.max_relative_score, mining.margin, *keys)
