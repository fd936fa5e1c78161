"""The figures of one or more runs as files: curves, losses, hits side by side, and a map of each model.

`FIGURES` lists them by name; `save_figures` saves some or all. A figure that takes long prints what it does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mim_lightning.analysis.embeddings import read_embeddings
from mim_lightning.analysis.figures.curves import draw_losses, draw_recall
from mim_lightning.analysis.figures.embedding_map import draw_map, project_points, select_points
from mim_lightning.analysis.figures.hits_grid import MAX_MODELS, draw_hits
from mim_lightning.analysis.figures.training_log import TrainingLog, read_log
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.analysis.run_groups import RunGroup, group_runs
from mim_lightning.data.preparation.prepared import open_prepared, open_products
from mim_lightning.display.style import extra_figures, save_figure, shorten
from mim_lightning.fields import PRODUCT_IMAGE, QUERY_IMAGE
from mim_lightning.io.atomic import atomic_write
from mim_lightning.repetitions import seed_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureOptions:
    """What the figures show."""

    metric: str | None = None  # by epoch; None: the monitored one
    direction: str | None = None  # of hits; None: the monitored one, or the first that all models have
    num_queries: int = 8
    num_hits: int | None = None  # of each model; None: as many as are readable
    sides: tuple[str, str] = (QUERY_IMAGE, PRODUCT_IMAGE)  # of the map
    num_points: int = 1500  # of the map
    seed: int = 0  # of the selection of queries and points, and of t-SNE


def group_evaluated_runs(records: Sequence[EvaluationRecord], ignored_keys: Collection[str]) -> list[RunGroup]:
    """Group runs, see `group_runs`; of a group with evaluated runs, those that still train are omitted."""
    return [_evaluated(group) for group in group_runs(records, ignored_keys)]


def _evaluated(group: RunGroup) -> RunGroup:
    evaluated = {fold: tuple(r for r in records if r.directions) for fold, records in group.records.items()}
    evaluated = {fold: records for fold, records in evaluated.items() if records}
    return replace(group, records=evaluated) if evaluated else group


def save_figures(
    groups: Sequence[RunGroup], options: FigureOptions, folder: Path, only: Sequence[str] = ()
) -> list[Path]:
    """Save the figures named in `only`; without names, all for which the runs have the data.

    Raises:
        ValueError: no such figure, or one of `only`, or all of them, cannot be drawn.
    """
    unknown = [name for name in only if name not in FIGURES]
    if unknown:
        raise ValueError(f"--only {unknown[0]}: no such figure; there are {', '.join(FIGURES)}")
    paths, reasons = [], []
    for name in only or FIGURES:
        try:
            paths += FIGURES[name](groups, options, folder)
        except ValueError as error:
            if only:
                raise
            reasons.append(str(error))
            print(f"{name} skipped: {error}")
    if not paths:
        raise ValueError(f"no figure could be drawn: {reasons[0]}")
    return paths


def save_curves(groups: Sequence[RunGroup], options: FigureOptions, folder: Path) -> list[Path]:
    """Draw one metric by epoch into curves.png."""
    metric = options.metric or _first(groups[0]).facts.monitored.metric
    return [_save(draw_recall(_logs(groups), metric), folder / "curves.png")]


def save_losses(groups: Sequence[RunGroup], options: FigureOptions, folder: Path) -> list[Path]:
    """Draw losses and logit scale by step into losses.png."""
    return [_save(draw_losses(_logs(groups)), folder / "losses.png")]


def save_hits(groups: Sequence[RunGroup], options: FigureOptions, folder: Path) -> list[Path]:
    """Draw the hits of the first run of each group, side by side, into hits.png.

    Raises:
        ValueError: the groups share no direction or fold, or their images are missing.
    """
    if len(groups) > MAX_MODELS:
        print(f"hits: the first {MAX_MODELS} of {len(groups)} models; give fewer runs to choose others")
    records = _side_by_side(groups[:MAX_MODELS])
    facts = next(iter(records.values())).facts
    direction = options.direction or _shared_direction(records, facts.monitored.direction)
    data_folder, distractors = facts.data_folder, facts.config.get("data", {}).get("distractors")
    versions = facts.data_version("main"), facts.data_version("distractors")
    queries = open_prepared(data_folder, version=versions[0]).queries(facts.val_split)
    products = open_products(data_folder, distractors, versions=versions)
    image = draw_hits(records, direction, queries, products, options.num_queries, options.num_hits, options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "hits.png") as partial:
        image.save(partial, "PNG")
    return [folder / "hits.png"]


def save_maps(groups: Sequence[RunGroup], options: FigureOptions, folder: Path) -> list[Path]:
    """Draw the embedding space of the first run of each group into map-<label>.png."""
    with extra_figures():
        import matplotlib  # noqa: F401 - before minutes are spent on t-SNE
    paths = []
    for group in groups:
        record = _first(group)
        points = select_points(record, read_embeddings(record.folder), *options.sides, options.num_points, options.seed)
        print(f"map of {group.label}: t-SNE of {len(points.labels):,} points", flush=True)
        title = f"{shorten(_name(group, record), 40)}: map of the embedding space"
        figure = draw_map(points, project_points(points.vectors, options.seed), title)
        paths.append(_save(figure, folder / f"map-{_slug(group.label)}.png"))
    return paths


FIGURES: Mapping[str, Callable[[Sequence[RunGroup], FigureOptions, Path], list[Path]]] = {
    "curves": save_curves,
    "losses": save_losses,
    "hits": save_hits,
    "map": save_maps,
}


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        save_figure(figure, partial)
    return path


def _first(group: RunGroup) -> EvaluationRecord:
    return next(iter(group.records.values()))[0]


def _name(group: RunGroup, record: EvaluationRecord) -> str:
    """Return the label of one run of a group."""
    return f"{group.label}, seed {seed_of(record.facts.config)}" if group.num_runs > 1 else group.label


def _logs(groups: Sequence[RunGroup]) -> dict[str, list[TrainingLog]]:
    return {
        group.label: [read_log(record.folder.parent) for records in group.records.values() for record in records]
        for group in groups
    }


def _side_by_side(groups: Sequence[RunGroup]) -> dict[str, EvaluationRecord]:
    """Return a run of each group, all of one fold: other folds have other queries."""
    folds = [fold for fold in groups[0].records if all(fold in group.records for group in groups)]
    if not folds:
        raise ValueError(
            f"hits: {', '.join(group.label for group in groups)} have no fold in common, so no query either"
        )
    return {_name(group, group.records[folds[0]][0]): group.records[folds[0]][0] for group in groups}


def _shared_direction(records: Mapping[str, EvaluationRecord], monitored: str) -> str:
    first, *others = records.values()
    shared = [name for name in first.directions if all(name in other.directions for other in others)]
    if not shared:
        raise ValueError(f"hits: {', '.join(records)} have no direction in common, or no evaluation record yet")
    return monitored if monitored in shared else shared[0]


def _slug(label: str) -> str:
    return re.sub("[^A-Za-z0-9.=_-]+", "-", label).strip("-")[:80]
