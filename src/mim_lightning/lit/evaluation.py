"""One evaluation pass as reports, and what a run leaves behind of it.

A trainer, module and datamodule come in; RetrievalReports, results.json and the picture of hits go out. The
train and evaluate doors call it, so both give the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from lightning import LightningModule, Trainer

from mim_lightning.lit.callbacks.retrieval_eval import RetrievalEval
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.lit.hits_figure import draw_hits
from mim_lightning.lit.report import UNTOUCHED
from mim_lightning.types import RetrievalReport


def evaluate_module(
    trainer: Trainer, module: LightningModule, datamodule: MatchDataModule, checkpoint: Path | None = None
) -> dict[str, RetrievalReport]:
    """Run one whole validation pass, of `checkpoint` if given, and return a report for each direction."""
    trainer.validate(
        module,
        datamodule=datamodule,
        ckpt_path=checkpoint,
        verbose=False,
        weights_only=True if checkpoint else None,
    )
    return _retrieval_eval(trainer).reports


def flatten(reports: dict[str, RetrievalReport]) -> dict[str, float]:
    """Return flat results: the metrics of every direction, and how many queries and products stand behind them."""
    results = {key: value for report in reports.values() for key, value in report.as_scalars("val").items()}
    results["num_queries"] = max(report.num_queries for report in reports.values())
    results["num_unanswerable"] = max(report.num_unanswerable for report in reports.values())
    return results | {"num_products": max(report.num_products for report in reports.values())}


def collect_results(trainer: Trainer, reports: dict[str, RetrievalReport], checkpoint: Path) -> dict[str, float]:
    """Return a run's flat results: the best checkpoint's, the untouched model's, epoch and step."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    untouched = _retrieval_eval(trainer).untouched
    results = flatten(reports) | {key.replace("val/", f"{UNTOUCHED}/", 1): value for key, value in untouched.items()}
    return results | {"best_epoch": content["epoch"], "best_step": content["global_step"]}


def save_picture(trainer: Trainer, report: RetrievalReport, datamodule: MatchDataModule, path: Path) -> None:
    """Draw a direction's hits, save them as PNG, and hand them to every logger that takes images."""
    picture = draw_hits(report, datamodule.query_set(), datamodule.gallery_set())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    for logger in trainer.loggers:
        log_image = getattr(logger, "log_image", None)
        if log_image is not None:
            log_image(key=f"hits/{report.direction}", images=[picture])


def close_loggers(trainer: Trainer) -> None:
    """Finish what loggers hold open, or the next job of a sweep in this process would log into it."""
    for logger in trainer.loggers:
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish is not None:
            finish()


def _retrieval_eval(trainer: Trainer) -> RetrievalEval:
    return next(callback for callback in trainer.callbacks if isinstance(callback, RetrievalEval))  # type: ignore[attr-defined]
