"""Callback that tracks a fixed set of queries over epochs: first hits with scores, truth, rank now and before.

It writes rows into the run's folder after each validation pass, epoch -1 included, and logs them as tables with images
to W&B if that logger is on, together with the resolved config and the final metrics.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from mim_lightning.analysis.html.images import PageImages
from mim_lightning.analysis.query_history import (
    BROWSER_FOLDER,
    TrackedQuery,
    TrackedQueryLog,
    select_tracked_queries,
    track,
)
from mim_lightning.data.shards.lookup import QueryFacts, product_ids_of, query_facts
from mim_lightning.io.atomic import atomic_write
from mim_lightning.lit.callbacks.retrieval_eval import RetrievalEval, find_retrieval_eval
from mim_lightning.types import STORED_RELEVANCE, hash_id

if TYPE_CHECKING:
    import wandb

RESULT = "result"  # replaces "val" in the keys of the final evaluation


class TrackedQueries(Callback):
    """Tracks the same queries in every pass of a run, and in every run on the same data; works on rank zero only.

    Images are written once into the run's folder and referenced by each table's artifact, which W&B deduplicates by
    digest: later passes upload none again.

    Args:
        num_queries: tracked in each direction, spread over categories and the other segments.
        num_hits: first products kept of each.
        seed: of the selection; not the run's seed, so that runs with other seeds track the same queries.
    """

    def __init__(self, num_queries: int = 16, num_hits: int = 5, seed: int = 0) -> None:
        if num_queries < 1 or num_hits < 1:
            raise ValueError("callbacks.tracked_queries: num_queries and num_hits are 1 or more; null switches it off")
        self.num_queries, self.num_hits, self.seed = num_queries, num_hits, seed
        self.history: TrackedQueryLog | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not any(isinstance(callback, RetrievalEval) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError("callbacks.tracked_queries: needs callbacks.retrieval_eval, which is off")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config: Any = pl_module._config
        for logger in _wandb_loggers(trainer):
            # nested, not flattened: W&B shows `model.pairs.<pair>.weight` and finds it by that name
            logger.log_hyperparams(dict(config))

    # after `on_validation_epoch_end`, in which retrieval_eval works, so that their order in the config does not matter
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        evaluation = find_retrieval_eval(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            rows = self._track(trainer, evaluation)
            for logger in _wandb_loggers(trainer):
                self._log_tables(logger, rows)
            return
        final = [report.as_scalars(RESULT) | report.as_intervals(RESULT) for report in evaluation.reports.values()]
        for logger in _wandb_loggers(trainer):  # the evaluation behind results.json
            logger.log_metrics({key: value for part in final for key, value in part.items()})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # marked as failed, and closed: the next run of this process would log into it
        for logger in _wandb_loggers(trainer):
            logger.experiment.finish(exit_code=1)

    def _track(self, trainer: Trainer, evaluation: RetrievalEval) -> list[TrackedQuery]:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.history is None:
            # absolute: W&B's background process, and `wandb sync`, read the images from other working directories
            self._choose(evaluation, datamodule, Path(trainer.default_root_dir).absolute() / BROWSER_FOLDER)
        assert self.history is not None
        reports = evaluation.reports
        hits = [
            report.hits.product_keys[torch.isin(report.hits.query_keys, torch.tensor(self.chosen[name]))]
            for name, report in reports.items()
        ]
        product_ids = product_ids_of(datamodule.opened.gallery, torch.cat([part.flatten() for part in hits]).numpy())
        epoch, step = (-1, 0) if trainer.sanity_checking else (trainer.current_epoch, trainer.global_step)
        rows = [
            row
            for name, report in reports.items()
            for row in track(
                report, self.chosen[name], self.facts, self.truth_ids[name], product_ids, self.num_hits, epoch, step
            )
        ]
        return self.history.append(rows)

    def _choose(self, evaluation: RetrievalEval, datamodule: Any, folder: Path) -> None:
        queries = datamodule.opened.queries
        facts: dict[int, QueryFacts] = query_facts(queries)
        self.chosen: dict[str, list[int]] = {}
        self.truth_ids: dict[str, dict[int, Sequence[str]]] = {}
        for name, report in evaluation.reports.items():
            # answerable queries only: these depend on the data alone
            keys = select_tracked_queries(report.hits.query_keys.tolist(), facts, self.num_queries, self.seed)
            truth = f"{STORED_RELEVANCE[evaluation.directions[name].truth]}_ids"
            self.chosen[name] = keys
            numbers = queries.find(keys)
            self.truth_ids[name] = {key: queries.read_facts(numbers[key]).get(truth, ()) for key in keys}
        self.facts = {key: facts[key] for keys in self.chosen.values() for key in keys}
        self.images = PageImages(queries, datamodule.opened.gallery)
        self.history = TrackedQueryLog(folder)
        self.folder = folder

    def _log_tables(self, logger: WandbLogger, rows: Sequence[TrackedQuery]) -> None:
        import wandb  # takes a second to import

        run = logger.experiment
        artifact = wandb.Artifact(
            f"browser-{run.id}"[:128], "retrieval_browser", metadata={"epoch": rows[0].epoch, "step": rows[0].step}
        )
        tables = {}
        for direction, group in groupby(rows, lambda row: row.direction):
            members = list(group)
            table = wandb.Table(columns=self._columns(members[0]), data=[self._cells(row, artifact) for row in members])
            artifact.add(table, direction)
            tables[f"tracked_queries/{direction}"] = table
        run.log_artifact(artifact)
        # without a step: W&B uses that of the metrics of the same pass, which were logged just before
        logger.log_metrics({**tables, "epoch": rows[0].epoch})

    def _columns(self, row: TrackedQuery) -> list[str]:
        first = ["query", "image", "text", "truth", "truth ids", "rank", "rank before", "best rank", "ranks"]
        hits = [f"hit {place + 1}" for place in range(self.num_hits)]
        return [*first, *hits, "hits", *(f"segment: {name}" for name in row.segments)]

    def _cells(self, row: TrackedQuery, artifact: wandb.Artifact) -> list[Any]:
        assert self.history is not None
        hits = list(zip(row.hit_ids, row.hit_scores, row.hit_is_relevant, strict=True))
        captions = [f"{score:.3f} {'right' if is_right else 'wrong'}" for _, score, is_right in hits]
        images = [
            self._image("product", hit, caption, artifact) for hit, caption in zip(row.hit_ids, captions, strict=True)
        ]
        trail = self.history.ranks(row.direction, row.query_id)
        return [
            row.query_id,
            self._image("query", row.query_id, None, artifact),
            row.text,
            self._image("product", row.truth_ids[0], None, artifact) if row.truth_ids else None,
            ", ".join(row.truth_ids),
            row.rank or None,  # None: rank > depth
            row.rank_before or None,
            row.best_rank or None,
            " > ".join(str(rank or "> depth") for rank in trail),
            *images,
            *[None] * (self.num_hits - len(hits)),
            ", ".join(f"{hit} {caption}" for hit, caption in zip(row.hit_ids, captions, strict=True)),
            *row.segments.values(),
        ]

    def _image(self, side: str, item_id: str, caption: str | None, artifact: wandb.Artifact) -> wandb.Image | None:
        import wandb

        image = self.images.query(item_id) if side == "query" else self.images.product(item_id)
        if not image.uri:
            return None
        path = self.folder / "pictures" / f"{side}-{hash_id(item_id):016x}.jpg"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path, is_synced=False) as partial:
                partial.write_bytes(base64.b64decode(image.uri.partition(",")[2]))
        if artifact.get_added_local_path_name(str(path)) is None:
            # immutable: read in place, else every pass would leave a copy in a staging folder
            artifact.add_file(str(path), f"pictures/{path.name}", policy="immutable")
        text = " ".join(part for part in (caption, image.title if side == "product" else None) if part)
        return wandb.Image(str(path), caption=text or None)


def _wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
