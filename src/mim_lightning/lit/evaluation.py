"""One evaluation pass: reports, flat results, evaluation record, page and image of hits.

Training and `evaluate` both use it, so both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from mim_lightning.analysis.embeddings import EvaluationEmbeddings, write_embeddings
from mim_lightning.analysis.html.images import PageImages
from mim_lightning.analysis.html.pages import write_report_page
from mim_lightning.analysis.query_history import read_history
from mim_lightning.analysis.record import RunFacts, read_record, write_record
from mim_lightning.analysis.segments import measure_segments_of
from mim_lightning.artifact_paths import RECORD_FOLDER
from mim_lightning.data.loading.worker_processes import killed_workers_named
from mim_lightning.data.shards.lookup import QueryFacts, query_facts
from mim_lightning.data.shards.mixture_set import MAIN
from mim_lightning.data.shards.set_index import FIRST_VERSION
from mim_lightning.data.validation.findings import IN_CATALOG
from mim_lightning.data.validation.validation_report import FINDINGS_FILE, found_ids
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.digest import XXH3
from mim_lightning.io.paths import PathOrUrl
from mim_lightning.lit.callbacks.retrieval_eval import find_retrieval_eval
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.lit.results_table import INITIAL
from mim_lightning.model.checkpoint import read_progress
from mim_lightning.model.fingerprint import fingerprint
from mim_lightning.model.fusion import Fusion
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import REFERENCE, TARGET, RetrievalReport

DATA_VERSION = "data_version"  # in the flat results; of further data /<name>


def evaluate_module(
    trainer: Trainer, module: LightningModule, datamodule: MatchDataModule, checkpoint: Path | None = None
) -> dict[str, RetrievalReport]:
    """Run one whole validation pass, of `checkpoint` if given, and return a report for each direction."""
    with killed_workers_named():
        trainer.validate(
            module,
            datamodule=datamodule,
            ckpt_path=checkpoint,
            verbose=False,
            weights_only=True if checkpoint else None,
        )
    return find_retrieval_eval(trainer).reports


def flatten(
    reports: dict[str, RetrievalReport], datamodule: MatchDataModule, width_reports: Sequence[RetrievalReport] = ()
) -> dict[str, float]:
    """Return flat results: the metrics of every direction with the ends of their intervals, and what they count.

    Also those of the same directions with vectors cut to a width, the metrics of each segment of queries, under
    `segments/`, the number of counted queries whose image data validation found to be nearly an image of the gallery,
    and the version of the data if it is not the first.
    """
    every = (*reports.values(), *width_reports)
    results = {key: value for report in every for key, value in report.as_scalars("val").items()}
    results |= {key: value for report in every for key, value in report.as_intervals("val").items()}
    for report in reports.values():
        results[f"counts/{report.direction}/num_queries"] = report.num_queries
        results[f"counts/{report.direction}/num_unanswerable"] = report.num_unanswerable
        counts = report.counts.as_counts() if report.counts is not None else {}
        results |= {f"counts/{report.direction}/{name}": count for name, count in counts.items()}
    facts = query_facts(datamodule.opened.queries)
    results |= _count_near(reports, facts, datamodule) | measure_segments_of(reports, facts)
    results |= {"num_products": max(report.num_products for report in reports.values())}
    versions = {name: version for name, version in datamodule.opened.versions.items() if version != FIRST_VERSION}
    return results | {DATA_VERSION if name == MAIN else f"{DATA_VERSION}/{name}": n for name, n in versions.items()}


def _count_near(
    reports: dict[str, RetrievalReport], facts: Mapping[int, QueryFacts], datamodule: MatchDataModule
) -> dict[str, float]:
    """Return how many counted query images are nearly a gallery image, by the findings of `prepare` if they exist."""
    path = datamodule.folder / FINDINGS_FILE if isinstance(datamodule.folder, Path) else None
    if path is None or not path.is_file():
        return {}
    near = {TARGET: found_ids(path, IN_CATALOG[:1]), REFERENCE: found_ids(path, IN_CATALOG), "": set()}
    counts = {
        name: sum(facts[key].query_id in near[report.counts.photo_truth] for key in report.hits.query_keys.tolist())
        for name, report in reports.items()
        if report.counts is not None
    }
    return {f"counts/{name}/num_near_gallery": count for name, count in counts.items() if count}


def collect_results(
    trainer: Trainer, reports: dict[str, RetrievalReport], datamodule: MatchDataModule, checkpoint: Path
) -> dict[str, float]:
    """Return a run's flat results: those of `checkpoint`, those before training, epoch and step."""
    callback = find_retrieval_eval(trainer)
    results = flatten(reports, datamodule, callback.width_reports) | {
        key.replace("val/", f"{INITIAL}/", 1): value for key, value in callback.initial.items()
    }
    return results | read_progress(checkpoint)


def save_evaluation(
    trainer: Trainer,
    matcher: Matcher,
    datamodule: MatchDataModule,
    config: Mapping[str, Any],
    folder: Path,
    checkpoint_fingerprint: str = XXH3,
    found: str | None = None,
) -> None:
    """Write the last pass into `folder`: record, embeddings unless there are too many, page and image of hits.

    Page and image show the monitored direction, or the first one that counts a query; every logger that takes images
    gets the image too.

    Args:
        checkpoint_fingerprint: of the evaluated checkpoint; the record's is computed as that one was.
        found: the fingerprint of the matcher, where it takes all processes to compute it.
    """
    callback = find_retrieval_eval(trainer)
    monitor = callback.reported_monitor()
    run = RunFacts(
        run_id=config["run"]["id"],
        config=_with_absolute_distractors(config, datamodule),
        fingerprint=found or fingerprint(matcher, like=checkpoint_fingerprint),
        monitor=monitor,
        data_folder=_absolute(datamodule.folder),
        val_split=datamodule.val_split,
    ).reading(datamodule.opened.versions)
    facts = query_facts(datamodule.opened.queries)
    write_record(
        folder / RECORD_FOLDER,
        run,
        callback.reports,
        facts,
        datamodule.opened.gallery,
        callback.describe_counting(),
        datamodule.evaluated.gallery_numbers,
    )
    if callback.tables is not None:
        embeddings = EvaluationEmbeddings(
            *callback.tables,
            _on_cpu(matcher),
            run.fingerprint,
            {name: [*read] for name, read in matcher.fields.items()},
        )
        write_embeddings(folder / RECORD_FOLDER, embeddings)
    from mim_lightning.analysis.figures.hits_grid import draw_hits

    direction = run.monitored.direction
    record = read_record(folder / RECORD_FOLDER)
    queries, gallery = datamodule.opened.queries, datamodule.opened.gallery
    images = PageImages(queries, gallery)
    every = (*callback.reports.values(), *callback.width_reports) if callback.width_reports else ()
    results = {key: value for report in every for key, value in report.as_scalars("val").items()}
    results |= {key: value for report in every for key, value in report.as_intervals("val").items()}
    history = read_history(folder).get(direction)
    page = folder / "report.html"
    write_report_page(record, page, history, images=images, results=results, full_width=matcher.dimension)
    hits_image = draw_hits({config["model"]["name"]: record}, direction, queries, gallery)
    with atomic_write(folder / "hits.png") as partial:
        hits_image.save(partial, "PNG")
    for logger in trainer.loggers:
        log_image = getattr(logger, "log_image", None)
        if log_image is not None:
            log_image(key=f"hits/{direction}", images=[hits_image])


def _on_cpu(matcher: Matcher) -> dict[str, Fusion]:
    return {name: deepcopy(fusion).cpu() for name, fusion in matcher.fusions.items()}


def _with_absolute_distractors(config: Mapping[str, Any], datamodule: MatchDataModule) -> dict[str, Any]:
    """Return the config with an absolute path, so that pages made in another folder find all images."""
    distractors = _absolute(datamodule.distractors) if datamodule.distractors else None
    return {**config, "data": {**config["data"], "distractors": distractors}}


def _absolute(place: PathOrUrl) -> str:
    return place if isinstance(place, str) else str(place.absolute())


def close_loggers(trainer: Trainer) -> None:
    """Finish what loggers keep open, or the next job of a sweep in this process would log into it."""
    for logger in trainer.loggers:
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish is not None:
            finish()
