"""The figures of one or more runs as files: curves, losses, hits side by side, and a map for each model.

Arms, what was asked for and a folder come in, paths go out; the draw door calls one painter of `PAINTERS` after the
other. A painter prints what takes long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mim_lightning.analysis.embeddings import read_embeddings
from mim_lightning.analysis.figures.curves import draw_losses, draw_recall
from mim_lightning.analysis.figures.embedding_map import draw_map
from mim_lightning.analysis.figures.hits_grid import draw_hits
from mim_lightning.analysis.figures.hits_layout import MAX_MODELS
from mim_lightning.analysis.figures.map_points import choose_points, place_points
from mim_lightning.analysis.figures.training_log import TrainingLog, read_log
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.analysis.run_groups import Arm, group_arms, seed_of
from mim_lightning.data.preparation.prepared import open_prepared, open_products
from mim_lightning.display.style import extra_figures, save, shorten
from mim_lightning.fields import PRODUCT_IMAGE, QUERY_IMAGE


@dataclass(frozen=True)
class Wishes:
    """What a figure is to show."""

    metric: str | None = None  # by epoch; None: the monitored one
    direction: str | None = None  # of hits; None: the monitored one, or else the first that all models have
    num_queries: int = 8
    num_hits: int | None = None  # a model; None: as many as can be read
    sides: tuple[str, str] = (QUERY_IMAGE, PRODUCT_IMAGE)  # of the map
    num_points: int = 1500  # of the map
    seed: int = 0  # of the choice of queries and points, and of t-SNE


def arms_of(records: Sequence[EvaluationRecord], irrelevant: Collection[str]) -> list[Arm]:
    """Sort runs into arms, see `group_arms`.

    A run without an evaluation, because it still trains, is left out beside finished runs of its arm.
    """
    return [_finished(arm) for arm in group_arms(records, irrelevant)]


def _finished(arm: Arm) -> Arm:
    finished = {fold: tuple(r for r in records if r.directions) for fold, records in arm.records.items()}
    finished = {fold: records for fold, records in finished.items() if records}
    return replace(arm, records=finished) if finished else arm


def paint_curves(arms: Sequence[Arm], wishes: Wishes, folder: Path) -> list[Path]:
    """Draw one metric by epoch into curves.png."""
    metric = wishes.metric or _first(arms[0]).facts.monitor.rsplit("/", 1)[1]
    return [save(draw_recall(_logs(arms), metric), folder / "curves.png")]


def paint_losses(arms: Sequence[Arm], wishes: Wishes, folder: Path) -> list[Path]:
    """Draw losses and logit scale by step into losses.png."""
    return [save(draw_losses(_logs(arms)), folder / "losses.png")]


def paint_hits(arms: Sequence[Arm], wishes: Wishes, folder: Path) -> list[Path]:
    """Draw the hits of each arm's first run, side by side, into hits.png.

    Raises:
        ValueError: no direction or fold that all arms have, or their pictures are not at hand.
    """
    if len(arms) > MAX_MODELS:
        print(f"hits: the first {MAX_MODELS} of {len(arms)} models; give fewer runs to choose others")
    records = _side_by_side(arms[:MAX_MODELS])
    facts = next(iter(records.values())).facts
    direction = wishes.direction or _shared_direction(records, facts.monitor.split("/")[1])
    folder_of_data, distractors = facts.data_folder, facts.config.get("data", {}).get("distractors")
    queries = open_prepared(folder_of_data).queries(facts.val_split)
    products = open_products(folder_of_data, distractors)
    picture = draw_hits(records, direction, queries, products, wishes.num_queries, wishes.num_hits, wishes.seed)
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / "hits.png")
    return [folder / "hits.png"]


def paint_maps(arms: Sequence[Arm], wishes: Wishes, folder: Path) -> list[Path]:
    """Draw the embedding space of each arm's first run into map-<arm>.png."""
    with extra_figures():
        import matplotlib  # noqa: F401 - before minutes are spent on places for it
    paths = []
    for arm in arms:
        record = _first(arm)
        points = choose_points(record, read_embeddings(record.folder), *wishes.sides, wishes.num_points, wishes.seed)
        print(f"map of {arm.label}: placing {len(points.labels):,} points", flush=True)
        title = f"{shorten(_name(arm, record), 40)}: map of the embedding space"
        figure = draw_map(points, place_points(points.vectors, wishes.seed), title)
        paths.append(save(figure, folder / f"map-{_slug(arm.label)}.png"))
    return paths


PAINTERS: Mapping[str, Callable[[Sequence[Arm], Wishes, Path], list[Path]]] = {
    "curves": paint_curves,
    "losses": paint_losses,
    "hits": paint_hits,
    "map": paint_maps,
}


def _first(arm: Arm) -> EvaluationRecord:
    return next(iter(arm.records.values()))[0]


def _name(arm: Arm, record: EvaluationRecord) -> str:
    """Return what a figure of one of an arm's runs calls it."""
    return f"{arm.label}, seed {seed_of(record)}" if arm.num_runs > 1 else arm.label


def _logs(arms: Sequence[Arm]) -> dict[str, list[TrainingLog]]:
    return {
        arm.label: [read_log(record.folder.parent) for records in arm.records.values() for record in records]
        for arm in arms
    }


def _side_by_side(arms: Sequence[Arm]) -> dict[str, EvaluationRecord]:
    """Return a run of each arm, all of one fold: other folds ask other queries."""
    folds = [fold for fold in arms[0].records if all(fold in arm.records for arm in arms)]
    if not folds:
        raise ValueError(f"hits: {', '.join(arm.label for arm in arms)} have no fold in common, so no query either")
    return {_name(arm, arm.records[folds[0]][0]): arm.records[folds[0]][0] for arm in arms}


def _shared_direction(records: Mapping[str, EvaluationRecord], monitored: str) -> str:
    first, *others = records.values()
    shared = [name for name in first.directions if all(name in other.directions for other in others)]
    if not shared:
        raise ValueError(f"hits: {', '.join(records)} have no direction in common, or no evaluation record yet")
    return monitored if monitored in shared else shared[0]


def _slug(label: str) -> str:
    return re.sub("[^A-Za-z0-9.=_-]+", "-", label).strip("-")[:80]
