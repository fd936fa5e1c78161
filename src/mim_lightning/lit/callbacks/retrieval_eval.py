"""Callback that evaluates retrieval on the validation split: every epoch, and before training as epoch -1.

Each rank keeps the embeddings of its own batches, and every direction is ranked over the whole gallery: each rank ranks
its rows, and the rankings are merged. Epoch -1 is Lightning's sanity pass (`trainer.num_sanity_val_steps=-1`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.fields import PRODUCT, QUERY
from mim_lightning.lit.callbacks.monitored_metric import MonitoredMetric, validate_monitors
from mim_lightning.lit.datamodule import DISTRACTORS, GALLERY, QUERIES
from mim_lightning.lit.trainer import ask_first
from mim_lightning.metric_names import sampled_name, whole_name
from mim_lightning.metrics import EmbeddingCollector, EmbeddingTable, check_complete
from mim_lightning.metrics.collectives import sum_of_ranks
from mim_lightning.metrics.directions import (
    GALLERY_COLUMNS,
    RELEVANT_COLUMNS,
    column_names,
    columns_of,
    evaluate_countable,
    evaluate_directions,
    read_vectors,
)
from mim_lightning.metrics.fusion_parts import find_weak_fusions
from mim_lightning.metrics.memory import EvaluationMemory
from mim_lightning.metrics.row_vectors import check_finite_rows
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import (
    QUERY_FIELDS,
    Batch,
    Direction,
    Embeddings,
    RetrievalReport,
    fields_of,
    side_of,
)
from mim_lightning.widths import validate_widths

STORAGE_DEVICES = ("cpu", "device")
STORAGE_DTYPES = {"float32": torch.float32, "float16": torch.float16}


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
        storage_device: "cpu", or "device": the memory of the device that embeds.
        storage_dtype: of the embeddings until they are ranked, in float32: "float32" or "float16".
        num_distractors: rank the products that answer a query and so many others; None: the whole gallery.
        distractor_seed: of their draw.
        widths: rank by the first so many numbers of the vectors too, of the same pass; metrics are then named
            `hit@1/width_64`. Of a mapping, its keys.
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
        storage_device: str = "cpu",
        storage_dtype: str = "float32",
        num_distractors: int | None = None,
        distractor_seed: int = 0,
        widths: Iterable[int] | None = None,
    ) -> None:
        if num_distractors is not None and num_distractors < 1:
            raise ValueError(
                f"callbacks.retrieval_eval.num_distractors={num_distractors}: give a whole number above 0, or null for "
                "the whole gallery"
            )
        for key, value, choices in (
            ("storage_device", storage_device, STORAGE_DEVICES),
            ("storage_dtype", storage_dtype, STORAGE_DTYPES),
        ):
            if value not in choices:
                raise ValueError(f"callbacks.retrieval_eval.{key}={value}: there are {', '.join(choices)}")
        for name in directions:
            if "/" in name or name.startswith("."):
                raise ValueError(f"directions.{name}: cannot be the name of a file and part of a metric's key")
        self.directions = {name: Direction(**ends) for name, ends in directions.items() if ends is not None}
        self.monitored = MonitoredMetric(str(monitor), self.directions)
        self.options: dict[str, Any] = {"cutoffs": tuple(cutoffs), "depth": depth, "num_hits": num_hits}
        self.options["memory_bytes"] = int(memory_gib * 2**30)
        self.num_resamples, self.max_kept_rows = num_resamples, max_kept_rows
        self.storage_device, self.storage_dtype = storage_device, STORAGE_DTYPES[storage_dtype]
        self.num_distractors, self.distractor_seed = num_distractors, distractor_seed
        self.widths = validate_widths("callbacks.retrieval_eval.widths", widths)
        self.memory: EvaluationMemory | None = None  # of the last pass
        self.collectors: dict[int, EmbeddingCollector] = {}
        self.num_restored = {QUERIES: 0, GALLERY: 0}  # rows of a process that come from an interrupted evaluation
        self.tables: tuple[EmbeddingTable, EmbeddingTable] | None = None  # queries and gallery of the last pass
        self.keeps_gallery = False  # whether `gallery` is set
        self.gallery: EmbeddingTable | None = None  # this process's rows of the last pass of training
        self.reports: dict[str, RetrievalReport] = {}  # of the last pass
        self.width_reports: list[RetrievalReport] = []  # the same at each of the widths
        self.empty: dict[str, str] = {}  # directions without a query in the last pass, and why
        self.initial: dict[str, float] = {}  # scalars of epoch -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        matcher = pl_module.matcher
        assert isinstance(matcher, Matcher)
        validate_widths("callbacks.retrieval_eval.widths", self.widths, matcher.dimension)
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
        self.monitored.validate_sample(num_distractors=self.num_distractors)
        ask_one = partial(ask_first, trainer.strategy, may_take_hours=True)
        trainer.datamodule.evaluated.sample_gallery(self.num_distractors, self.distractor_seed, ask_one)  # type: ignore[attr-defined]
        if stage == "fit":
            self.monitored.validate_counts(trainer.datamodule.opened.queries, self.directions, matcher)  # type: ignore[attr-defined]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module.matcher, Matcher)
        self.fusions, self.fields = pl_module.matcher.fusions, pl_module.matcher.fields
        self.num_gallery = len(trainer.datamodule.opened.catalog)  # type: ignore[attr-defined]
        # Apple's GPUs have no float64, in which scores are averaged
        self.device = torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device
        memory = self._state_memory(trainer, pl_module.matcher)
        if self.memory is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info(memory.describe("host memory" if self._storage.type == "cpu" else "the device's memory"))
        self.memory = memory
        for place, side, num_rows in ((QUERIES, QUERY, memory.own_queries), (GALLERY, PRODUCT, memory.own_gallery)):
            names = [name for name in pl_module.matcher.tower_names if side_of(name) == side]
            columns = self._columns(side, memory.num_queries + memory.num_gallery)
            self.collectors[place] = EmbeddingCollector(names, columns, num_rows, self._storage, self.storage_dtype)

    def _columns(self, side: str, num_rows: int) -> tuple[str, ...]:
        """Return the columns that are collected: of a gallery that is not kept with the record, what ranking reads."""
        if side == PRODUCT and num_rows > self.max_kept_rows:
            return GALLERY_COLUMNS
        return column_names(self.query_fields)

    @property
    def _storage(self) -> torch.device:
        return torch.device("cpu") if self.storage_device == "cpu" else self.device

    def _state_memory(self, trainer: Trainer, matcher: Matcher) -> EvaluationMemory:
        """Return what the pass will need, by the loaders' numbers of rows."""
        opened = trainer.datamodule.opened  # type: ignore[attr-defined]
        loaders: Sequence[StreamLoader] = trainer.val_dataloaders  # type: ignore[assignment]
        own = [loader.ranks.most_rows for loader in loaders]
        num_samples = trainer.datamodule.evaluated.counts()  # type: ignore[attr-defined]
        columns = {side: self._columns(side, sum(num_samples)) for side in (QUERY, PRODUCT)}
        widest = {QUERY: opened.queries.max_relevant, PRODUCT: max(shards.max_relevant for shards in opened.gallery)}
        # with the row's key
        num_ids = {side: 1 + _num_ids(names, widest[side]) for side, names in columns.items()}
        sides = [side_of(name) for name in matcher.tower_names]
        return EvaluationMemory(
            num_queries=num_samples[0],
            num_gallery=sum(num_samples[1:]),
            own_queries=own[0] + self.num_restored[QUERIES],
            own_gallery=sum(own[1:]) + self.num_restored[GALLERY],
            query_towers=sides.count(QUERY),
            gallery_towers=sides.count(PRODUCT),
            width=matcher.dimension,
            value_bytes=self.storage_dtype.itemsize,
            query_ids=num_ids[QUERY],
            gallery_ids=num_ids[PRODUCT],
            num_directions=len(self.directions),
            working_bytes=self.options["memory_bytes"] * 3 // 2,
        )

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
        queries, gallery = self.collectors[QUERIES].take_table(), self.collectors[GALLERY].take_table()
        check_complete(queries, len(np.unique(datamodule.opened.queries.keys)), "validation queries")
        assert self.memory is not None
        check_complete(gallery, self.memory.num_gallery, "gallery rows")
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            _validate_finite({"queries": queries, "gallery": gallery}, trainer.global_step, self.device)
        matcher: Any = pl_module.matcher
        # intervals and tables are for final results; between epochs they would only cost time and memory
        is_final = trainer.state.fn != TrainerFn.FITTING
        num_resamples = self.num_resamples if is_final else 0
        options = {**self.options, "device": self.device}
        self.reports, empty = evaluate_countable(
            self.directions,
            queries,
            gallery,
            matcher.fusions,
            matcher.fields,
            **options,
            num_resamples=num_resamples,
        )
        if not self.reports:
            raise ValueError(next(iter(empty.values())))
        for name in sorted(empty.keys() - self.empty.keys()):
            rank_zero_info(f"{empty[name]}: left out")
        self.empty = empty
        if is_final:
            metric, first = whole_name(self.monitored.key.metric), self.monitored.key.direction
            tables, model = (queries, gallery), (matcher.fusions, matcher.fields)
            weak = find_weak_fusions(self.directions, self.reports, *tables, *model, metric, first=first, **options)
            for found in weak:
                rank_zero_info(found.describe(sampled_name(metric, self.num_distractors)))
        self.reports = {name: report.of_sample(self.num_distractors) for name, report in self.reports.items()}
        self.width_reports = [
            report.of_sample(self.num_distractors).at_width(width)
            for width in self.widths
            for report in evaluate_directions(
                {name: self.directions[name] for name in self.reports},
                queries,
                gallery,
                matcher.fusions,
                matcher.fields,
                **options,
                num_resamples=num_resamples,
                width=width,
            ).values()
        ]
        self.tables = self._keep(queries, gallery) if is_final else None
        self.gallery = gallery if self.keeps_gallery and not is_final else None
        self._publish(trainer, pl_module)

    def _keep(self, queries: EmbeddingTable, gallery: EmbeddingTable) -> tuple[EmbeddingTable, EmbeddingTable] | None:
        """Return the rows of all ranks on rank zero, which writes them, unless they are too many."""
        if sum(sum_of_ranks(len(queries), len(gallery))) > self.max_kept_rows:
            return None
        whole = queries.gather(), gallery.gather()
        return None if whole[0] is None or whole[1] is None else (whole[0], whole[1])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # here, after every callback has logged its metrics
        if trainer.state.fn == TrainerFn.FITTING and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            validate_monitors(trainer, self.scalars())

    def scalars(self, stage: str = "val") -> dict[str, float]:
        """Return the last pass as flat metrics."""
        reports = (*self.reports.values(), *self.width_reports)
        return {key: value for report in reports for key, value in report.as_scalars(stage).items()}

    def reported_monitor(self) -> str:
        """Return the monitored metric, or that metric of the first direction that counted a query in the last pass."""
        key = self.monitored.key
        return str(key if key.direction in self.reports else key._replace(direction=next(iter(self.reports))))

    def describe_counting(self) -> dict[str, dict[str, Any]]:
        """Return which queries each direction counts, and in which gallery, as plain values."""
        sample = {"num_distractors": self.num_distractors, "distractor_seed": self.distractor_seed}
        sampled = {} if self.num_distractors is None else sample
        return {name: self.directions[name].describe(self.fusions, self.fields) | sampled for name in self.reports}

    def _publish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scalars = self.scalars()
        if trainer.state.fn != TrainerFn.FITTING:
            return
        monitor = str(self.monitored)
        if monitor not in scalars:
            raise self.monitored.explain_absence(scalars, self.empty, list(self.reports))
        if trainer.sanity_checking:
            self.initial = scalars
            rank_zero_info(f"before training (epoch -1): {monitor} {scalars[monitor]:.3f}")
            for logger in trainer.loggers:
                # directly: Lightning discards what a sanity pass logs
                logger.log_metrics({**scalars, "epoch": -1.0}, step=0)
        else:
            # every rank computed the same numbers from the same table: nothing to reduce
            pl_module.log_dict({k: v for k, v in scalars.items() if k != monitor}, batch_size=1)
            pl_module.log(monitor, scalars[monitor], prog_bar=True, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.initial = state_dict["initial" if "initial" in state_dict else "untouched"]  # as older checkpoints name it


def _num_ids(columns: Sequence[str], max_relevant: int) -> int:
    """Return the integers of a row in its columns."""
    return sum(max(1, max_relevant) if name in RELEVANT_COLUMNS else 1 for name in columns)


def _validate_finite(tables: Mapping[str, EmbeddingTable], step: int, device: torch.device) -> None:
    """Raise for weights that training has made useless, though they are finite: steps with NaN were skipped."""
    for what, table in tables.items():
        for name in table.vectors:
            try:
                check_finite_rows(f"'{name}'", read_vectors(name, table, None, device), is_shared=True)
            except ValueError as error:
                raise ValueError(
                    f"training diverged: {error} at step {step}, of the {what}; earlier checkpoints are kept; "
                    "a smaller optim.lr may help"
                ) from error


def find_retrieval_eval(trainer: Trainer) -> RetrievalEval:
    """Return the callback of a trainer that has one; its reports are those of the last pass."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, RetrievalEval))  # type: ignore[attr-defined]
