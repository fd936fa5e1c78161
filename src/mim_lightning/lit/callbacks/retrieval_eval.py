"""Callback that evaluates retrieval on the validation split: every epoch, and before training as epoch -1.

Embeddings are collected over batches and ranks, then every direction is ranked over the whole gallery. Epoch -1 is
Lightning's sanity pass (`trainer.num_sanity_val_steps=-1`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from mim_lightning.fields import QUERY
from mim_lightning.lit.datamodule import DISTRACTORS, GALLERY, QUERIES
from mim_lightning.metrics import EmbeddingCollector, EmbeddingTable, check_complete
from mim_lightning.metrics.directions import column_names, columns_of, counts_row, evaluate_countable
from mim_lightning.metrics.fusion_parts import find_weak_fusions
from mim_lightning.metrics.ranking import check_finite
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import (
    QUERY_FIELDS,
    AnyOf,
    Batch,
    Direction,
    Embeddings,
    RetrievalReport,
    Sample,
    fields_of,
    side_of,
)


class RetrievalEval(Callback):
    """Ranks the whole gallery for every validation query, in every direction.

    Args:
        directions: by name, the arguments of `types.Direction`; None switches one off.
        monitor: the metric key of the progress bar.
        cutoffs: the k of hit@k, recall@k, nDCG@k.
        depth: rank up to which MRR and mAP are computed.
        num_hits: products of a query that reports keep for figures.
        num_resamples: of the bootstrap intervals of a final evaluation.
        memory_gib: working memory of ranking, in addition to the vectors.
        max_kept_rows: embeddings of more queries and products than this are not kept with the record.
    """

    def __init__(
        self,
        directions: Mapping[str, Mapping[str, Any]],
        monitor: str,
        cutoffs: Sequence[int] = (1, 5, 10),
        depth: int = 1000,
        num_hits: int = 10,
        num_resamples: int = 1000,
        memory_gib: float = 0.5,
        max_kept_rows: int = 200_000,
    ) -> None:
        for name in directions:
            if "/" in name or name.startswith("."):
                raise ValueError(f"directions.{name}: cannot be the name of a file and part of a metric's key")
        self.directions = {name: Direction(**ends) for name, ends in directions.items() if ends is not None}
        self.monitor = str(monitor)  # a number on the command line is reported as an unknown metric
        self.options: dict[str, Any] = {"cutoffs": tuple(cutoffs), "depth": depth, "num_hits": num_hits}
        self.options["memory_bytes"] = int(memory_gib * 2**30)
        self.num_resamples, self.max_kept_rows = num_resamples, max_kept_rows
        self.tables: tuple[EmbeddingTable, EmbeddingTable] | None = None  # queries and gallery of the last pass
        self.reports: dict[str, RetrievalReport] = {}  # of the last pass
        self.empty: dict[str, str] = {}  # directions without a query in the last pass, and why
        self.initial: dict[str, float] = {}  # scalars of epoch -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        matcher = pl_module.matcher
        assert isinstance(matcher, Matcher)
        for name, direction in self.directions.items():
            for end in (direction.query, direction.gallery):
                if end not in matcher.names:
                    raise ValueError(f"directions.{name}: no tower or fusion '{end}'; there are {list(matcher.names)}")
        read = {name for tower, spec in matcher.input_specs().items() for name in fields_of(tower, spec)}
        self.query_fields = sorted(name for name in read - {*QUERY_FIELDS} if side_of(name) == QUERY)
        known = (*QUERY_FIELDS, *self.query_fields)
        for name, direction in self.directions.items():
            for field in (*(direction.requires or ()), *direction.excludes):
                if field not in known:
                    raise ValueError(f"directions.{name}: no field '{field}' of queries; there are {', '.join(known)}")
        keys = [f"val/{direction}/" for direction in self.directions]
        if not self.monitor.startswith(tuple(keys)):
            raise ValueError(
                f"monitor={self.monitor}: is no metric of a direction; they start with {' or '.join(keys)}"
            )
        if stage == "fit":
            self._validate_monitor_counts(trainer, matcher)
        towers = {
            side: [name for name in matcher.tower_names if side_of(name) == side] for side in ("query", "product")
        }
        self.collectors = {
            QUERIES: EmbeddingCollector(towers["query"], column_names(self.query_fields)),
            GALLERY: EmbeddingCollector(towers["product"], column_names(self.query_fields)),
        }

    def _validate_monitor_counts(self, trainer: Trainer, matcher: Matcher) -> None:
        """Raise before anything is embedded if the monitored direction counts no query of the evaluated split."""
        monitored = self.monitor.split("/")[1]
        shards = trainer.datamodule.opened.queries  # type: ignore[attr-defined]
        counting: dict[str, None] = {}
        for number in range(len(shards)):
            (sample,) = shards.read([number])
            counting |= {
                name: None
                for name, direction in self.directions.items()
                if counts_row(direction, _inputs_of(sample, matcher), matcher.fusions, matcher.fields)
            }
            if monitored in counting:
                return
        raise ValueError(
            f"monitor={self.monitor}: {monitored} counts no query of {shards.folder}; "
            + self._advise([name for name in self.directions if name in counting])
        )

    def _advise(self, countable: Sequence[str]) -> str:
        metric = self.monitor.split("/", 2)[2]
        choices = " or ".join(f"monitor=val/{name}/{metric}" for name in countable)
        return f"give {choices}" if choices else "no other direction of the model counts one either"

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module.matcher, Matcher)
        self.fusions, self.fields = pl_module.matcher.fusions, pl_module.matcher.fields
        self.num_gallery = len(trainer.datamodule.opened.catalog)  # type: ignore[attr-defined]
        for collector in self.collectors.values():
            # Apple's GPUs have no float64, in which scores are averaged
            collector.to("cpu" if pl_module.device.type == "mps" else pl_module.device)
            collector.reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        embeddings: Embeddings = outputs["embeddings"]
        columns = columns_of(batch, self.query_fields)
        if dataloader_idx == QUERIES:
            row_keys = batch.query_keys  # a training split has a row for each query and product
        else:
            is_distractor = dataloader_idx == DISTRACTORS
            row_keys = batch.sample_nums + (self.num_gallery if is_distractor else 0)  # after the catalog's
        self.collectors[min(dataloader_idx, GALLERY)].update(
            row_keys, embeddings.vectors, embeddings.present, columns, valid=~batch.is_padding
        )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # a few batches only: nothing can be ranked
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        queries, gallery = self.collectors[QUERIES].compute(), self.collectors[GALLERY].compute()
        check_complete(queries, len(np.unique(datamodule.opened.queries.keys)), "validation queries")
        check_complete(gallery, sum(len(products) for products in datamodule.opened.gallery), "gallery rows")
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            _validate_finite({"queries": queries, "gallery": gallery}, trainer.global_step)
        matcher: Any = pl_module.matcher
        # intervals and tables are for final results; between epochs they would only cost time and memory
        is_final = trainer.state.fn != TrainerFn.FITTING
        num_resamples = self.num_resamples if is_final else 0
        self.reports, empty = evaluate_countable(
            self.directions,
            queries,
            gallery,
            matcher.fusions,
            matcher.fields,
            **self.options,
            num_resamples=num_resamples,
        )
        if not self.reports:
            raise ValueError(next(iter(empty.values())))
        for name in sorted(empty.keys() - self.empty.keys()):
            rank_zero_info(f"{empty[name]}: left out")
        self.empty = empty
        if is_final:
            _, monitored, metric = self.monitor.split("/", 2) if self.monitor.count("/") > 1 else ("", "", "")
            tables, model = (queries, gallery), (matcher.fusions, matcher.fields)
            weak = find_weak_fusions(
                self.directions, self.reports, *tables, *model, metric, first=monitored, **self.options
            )
            for found in weak:
                rank_zero_info(found.describe(metric))
        is_kept = len(queries) + len(gallery) <= self.max_kept_rows
        self.tables = (queries, gallery) if is_final and is_kept else None
        for collector in self.collectors.values():
            collector.reset()
        self._publish(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # here, after every callback has logged its metrics
        if trainer.state.fn == TrainerFn.FITTING and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _validate_monitors(trainer, self.scalars())

    def scalars(self, stage: str = "val") -> dict[str, float]:
        """Return the last pass as flat metrics."""
        return {key: value for report in self.reports.values() for key, value in report.as_scalars(stage).items()}

    def reported_monitor(self) -> str:
        """Return the monitored metric, or that metric of the first direction that counted a query in the last pass."""
        stage, direction, metric = self.monitor.split("/", 2)
        return self.monitor if direction in self.reports else f"{stage}/{next(iter(self.reports))}/{metric}"

    def describe_counting(self) -> dict[str, dict[str, Any]]:
        """Return which queries each direction counts, and in which gallery, as plain values."""
        return {name: self.directions[name].describe(self.fusions, self.fields) for name in self.reports}

    def _publish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scalars = self.scalars()
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in scalars:
            direction = self.monitor.split("/")[1]
            if direction in self.empty:
                raise ValueError(f"{self.empty[direction]}; {self._advise(list(self.reports))}")
            choices = sorted(key for key in scalars if key.startswith(f"val/{direction}/"))
            raise ValueError(f"monitor={self.monitor}: is no metric; there are {', '.join(choices)}")
        if trainer.sanity_checking:
            self.initial = scalars
            rank_zero_info(f"before training (epoch -1): {self.monitor} {scalars[self.monitor]:.3f}")
            for logger in trainer.loggers:
                # directly: Lightning discards what a sanity pass logs
                logger.log_metrics({**scalars, "epoch": -1.0}, step=0)
        else:
            # every rank computed the same numbers from the same table: nothing to reduce
            pl_module.log_dict({k: v for k, v in scalars.items() if k != self.monitor}, batch_size=1)
            pl_module.log(self.monitor, scalars[self.monitor], prog_bar=True, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.initial = state_dict["initial" if "initial" in state_dict else "untouched"]  # as older checkpoints name it


def _inputs_of(sample: Sample, matcher: Matcher) -> set[str]:
    """Return the fields that a sample has, and the towers that it has inputs for."""
    present = sample.inputs.keys()
    return {*present} | {
        tower
        for tower, spec in matcher.input_specs().items()
        if (present & spec.keys() if isinstance(spec, AnyOf) else fields_of(tower, spec).keys() <= present)
    }


def _validate_finite(tables: Mapping[str, EmbeddingTable], step: int) -> None:
    """Raise for weights that training has made useless, though they are finite: steps with NaN were skipped."""
    for what, table in tables.items():
        for name, vectors_ND in table.vectors.items():
            try:
                check_finite(f"'{name}'", vectors_ND)
            except ValueError as error:
                raise ValueError(
                    f"training diverged: {error} at step {step}, of the {what}; earlier checkpoints are kept; "
                    "a smaller optim.lr may help"
                ) from error


def _validate_monitors(trainer: Trainer, scalars: Mapping[str, float]) -> None:
    """Raise for a callback whose metric is never logged; before training, as far as metric names are known."""
    known = {*scalars, *trainer.callback_metrics}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str) or monitor in known or trainer.state.fn != TrainerFn.FITTING:
            continue
        if trainer.sanity_checking and monitor.startswith("train/"):
            continue
        close = get_close_matches(monitor, known, 3) or [name for name in scalars if name.endswith("/hit@1")]
        raise ValueError(
            f"callbacks: {type(callback).__name__} monitors '{monitor}', which is no metric; "
            f"there are {', '.join(close)} and more in the CSV file of a run"
        )


def find_retrieval_eval(trainer: Trainer) -> RetrievalEval:
    """Return the callback of a trainer that has one; its reports are those of the last pass."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, RetrievalEval))  # type: ignore[attr-defined]
