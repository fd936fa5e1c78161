"""A sweep over the weights of a fusion after training, of any kind: stored embeddings are fused and ranked again.

The result is a metric at every weight, and what choosing the best weight is worth on products it was not chosen on.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.analysis.embeddings import EvaluationEmbeddings
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.display.text import plain
from mim_lightning.io.atomic import atomic_write
from mim_lightning.metrics import PairedDifference, bootstrap_intervals, paired_difference
from mim_lightning.metrics.directions import evaluate_directions
from mim_lightning.model.fusion import (
    FIXED_SUM,
    MEASURED,
    SCORE_KINDS,
    SCORE_PRODUCT,
    Fusion,
    Fusions,
    as_fusion,
    weights_of,
)
from mim_lightning.types import Direction, RetrievalReport

SWEPT_KINDS = (FIXED_SUM, *SCORE_KINDS)  # those that need no training


@dataclass(frozen=True)
class FusionCurve:
    """One metric of one direction by the weight of a fusion's first tower, 0 (the second alone) to 1."""

    direction: str
    metric: str
    fusion: str
    kind: str
    is_centered: bool
    parts: tuple[str, str]  # the two towers, of weights w and 1 - w
    weights: list[float]  # of the first
    values: list[float]
    intervals: list[tuple[float, float]]  # 95 %, over products
    trained_weight: float
    trained_value: float
    best_weight: float
    best: Fusion  # with these weights
    chosen: PairedDifference  # best against trained weight, each half of the products with the choice of the other

    @property
    def label(self) -> str:
        if self.is_centered:
            return f"{self.kind}, centered"
        return f"{self.kind}, centered as trained" if self.best.center else self.kind


def choose_ends(
    record: EvaluationRecord, embeddings: EvaluationEmbeddings, direction: str | None, fusion: str | None
) -> tuple[str, Direction, str]:
    """Return the direction to sweep, its ends, and which of its fusions.

    Args:
        direction: None: the monitored one, or if that has no fusion the first whose query is one, or whose gallery.
        fusion: None: the query side's, else the gallery side's.

    Raises:
        ValueError: the evaluation has no such direction, or the direction has no fusion.
    """
    known = {key: ends for key, ends in record.facts.config["directions"].items() if ends is not None}
    fused = [key for key in record.directions if known.get(key, {}).get("query") in embeddings.fusions]
    with_fusion = [key for key, ends in known.items() if {ends["query"], ends["gallery"]} & embeddings.fusions.keys()]
    first = [record.facts.monitored.direction, *fused, *record.directions]
    name = direction or next((key for key in first if key in with_fusion), first[0])
    if name not in known:
        raise ValueError(f"--direction {name}: no such direction; {record.folder} has {', '.join(known)}")
    ends = Direction(**known[name])
    sides = [end for end in (ends.query, ends.gallery) if end in embeddings.fusions]
    if fusion is None and not sides:
        way = f"give one of {', '.join(with_fusion)}" if with_fusion else "nor has another: this model has towers alone"
        raise ValueError(f"--direction {name}: has no fusion on either side; {way}")
    return name, ends, sides[0] if fusion is None else fusion


def sweep_kinds(
    embeddings: EvaluationEmbeddings,
    name: str,
    direction: Direction,
    fusion: str,
    metric: str,
    num_weights: int,
    kinds: Sequence[tuple[str | None, bool]] | None,
) -> list[FusionCurve]:
    """Return the curve of each kind, see `sweep_fusion`.

    Args:
        kinds: each with whether it is centered; None: all that the direction allows, centered and not.
    """
    if kinds is None:
        kinds = list(itertools.product(usable_kinds(embeddings, direction, fusion), (False, True)))
    return [
        sweep_fusion(embeddings, name, direction, fusion, metric, num_weights, kind=kind, is_centered=is_centered)
        for kind, is_centered in kinds
    ]


def usable_kinds(embeddings: EvaluationEmbeddings, direction: Direction, fusion: str) -> tuple[str, ...]:
    """Return the `SWEPT_KINDS` of a fusion that the direction's other side allows: both combine scores alike."""
    other = _other_side(embeddings.fusions, direction, fusion)
    if other is None or other.needs_one_vector:
        return SWEPT_KINDS
    return tuple(kind for kind in SWEPT_KINDS if kind not in SCORE_KINDS or kind == other.kind)


def sweep_fusion(
    embeddings: EvaluationEmbeddings,
    name: str,
    direction: Direction,
    fusion: str,
    metric: str = "hit@1",
    num_weights: int = 21,
    other_fusions: Fusions | None = None,
    kind: str | None = None,
    is_centered: bool = False,
) -> FusionCurve:
    """Evaluate a direction at evenly spaced weights of `fusion`'s first tower.

    The curve and its best weight use all queries, so its maximum is biased upward. `chosen` is not: the products are
    halved by key, the best weight of each half is used on the other, and that is compared with the trained weights.

    Args:
        embeddings: of queries and gallery, by tower.
        name: of the direction.
        direction: to evaluate; one of its sides is `fusion`.
        fusion: of two towers.
        metric: "hit@k", "recall@k", "ndcg@k" with k of 1, 5, 10, or "mrr", "map".
        num_weights: points of the curve, both ends included.
        other_fusions: to take the place of other trained fusions.
        kind: one of `SWEPT_KINDS`; None: as trained, of a kind that learns its weights the fixed sum.
        is_centered: subtract from each tower its mean over these embeddings; else centered as trained, or not.

    Raises:
        ValueError: the direction does not use the fusion, the fusion does not have two towers, or no such metric.

    Source: our choice.
    """
    fusions: dict[str, Fusion | Mapping[str, Any]] = {**embeddings.fusions, **(other_fusions or {})}
    if fusion not in (direction.query, direction.gallery) or fusion not in fusions:
        raise ValueError(f"directions.{name}: does not use the fusion '{fusion}'; there are {list(fusions)}")
    own = weights_of(fusions[fusion])
    if len(own) != 2:
        raise ValueError(f"model.fusions.{fusion}: a fusion sweep needs two towers, it has {list(own)}")
    first, second = own
    trained_weight = own[first] / sum(own.values())
    table = embeddings.queries if fusion == direction.query else embeddings.gallery
    width = next(iter(table.vectors.values())).shape[1]
    given = as_fusion(fusion, fusions[fusion], width)
    swept_kind = kind or (given.kind if given.kind in SWEPT_KINDS else FIXED_SUM)
    options = {"kind": swept_kind, "center": MEASURED if is_centered else given.center}
    if swept_kind == SCORE_PRODUCT:
        other = _other_side(fusions, direction, fusion)
        # two sides have one floor; of a fusion of another kind it is the default
        options["floor"] = (given if other is None or other.kind != SCORE_PRODUCT else other).options["floor"]

    def make(weight: float) -> Fusion:
        made = Fusion(fusion, {first: weight, second: 1 - weight, **options}, width)
        if is_centered:
            made.set_means({part: table.vectors[part][table.present[part]].mean(dim=0) for part in own})
        elif given.center:
            made.set_means({part: given.mean_of(part) for part in own})
            made.num_mean_updates.copy_(given.num_mean_updates)
        return made.eval()

    def evaluate(made: Fusion | None) -> RetrievalReport:
        changed = fusions if made is None else {**fusions, fusion: made}
        reports = evaluate_directions(
            {name: direction}, embeddings.queries, embeddings.gallery, changed, embeddings.fields
        )
        return reports[name]

    trained = evaluate(None)
    rising = [name for name in trained.scores if not name.startswith(("wrong_", "same_"))]  # higher is better
    if metric not in rising:
        raise ValueError(f"no metric '{metric}' to choose by; there are {', '.join(rising)}")
    weights = np.linspace(0, 1, num_weights).tolist()
    scores_WQ = np.stack([evaluate(make(weight)).scores[metric].numpy() for weight in weights])
    clusters_Q, trained_Q = trained.cluster_keys.numpy(), trained.scores[metric].numpy()
    best_weight = weights[_best_idx(scores_WQ, trained_weight)]
    intervals = bootstrap_intervals({str(i): row for i, row in enumerate(scores_WQ)}, clusters_Q)
    return FusionCurve(
        direction=name,
        metric=metric,
        fusion=fusion,
        kind=swept_kind,
        is_centered=is_centered,
        parts=(first, second),
        weights=weights,
        values=np.nanmean(scores_WQ, axis=1).tolist(),
        intervals=list(intervals.values()),
        trained_weight=trained_weight,
        trained_value=trained.values[metric],
        best_weight=best_weight,
        best=make(best_weight),
        chosen=paired_difference(_cross_chosen(scores_WQ, clusters_Q, trained_weight), trained_Q, clusters_Q),
    )


def print_curve(curve: FusionCurve) -> None:
    """Print the curve with a mark at the best weight, and what the choice is worth."""
    first, second = curve.parts
    how = "" if curve.label == FIXED_SUM else f" ({curve.label})"
    title = f"{curve.direction}: {curve.metric} by weight of {first} in '{curve.fusion}'{how}; the rest is {second}"
    table = Table(
        title=escape(plain(title)), title_justify="left", box=SIMPLE, caption="fractions, 0 to 1; intervals 95 %"
    )
    for column in ("weight", curve.metric, "interval"):
        table.add_column(Text(plain(column)), justify="right")
    table.add_column("")
    for weight, value, (low, high) in zip(curve.weights, curve.values, curve.intervals, strict=True):
        mark = "best" if weight == curve.best_weight else ""
        table.add_row(f"{weight:.2f}", f"{value:.3f}", f"{low:.3f} - {high:.3f}", mark)
    Console().print(table)
    chosen = curve.chosen
    print(
        f"trained weight {curve.trained_weight:.2f}: {curve.trained_value:.3f}; a weight chosen on half of the "
        f"products changes that by {chosen.difference:+.3f} [{chosen.low:+.3f}, {chosen.high:+.3f}] on the other half "
        f"(p {chosen.p_value:.3f}, {chosen.num_queries} queries, {chosen.num_clusters} products)"
    )


def print_kinds(curves: Sequence[FusionCurve]) -> None:
    """Print one line a kind: the best of its curve, and what choosing its weight on other products is worth."""
    first = curves[0]
    title = f"{first.direction}: {first.metric} by kind of '{first.fusion}'; as trained {first.trained_value:.3f}"
    table = Table(
        title=escape(plain(title)), title_justify="left", box=SIMPLE, caption="fractions, 0 to 1; intervals 95 %"
    )
    table.add_column("kind")
    for column in (f"weight of {first.parts[0]}", first.metric, "change on other products", "interval"):
        table.add_column(Text(plain(column)), justify="right")
    for curve in curves:
        chosen = curve.chosen
        interval = f"{chosen.low:+.3f} - {chosen.high:+.3f}"
        table.add_row(
            curve.label, f"{curve.best_weight:.2f}", f"{max(curve.values):.3f}", f"{chosen.difference:+.3f}", interval
        )
    Console().print(table)


def write_curve(curve: FusionCurve, folder: Path) -> list[Path]:
    """Write `fusion.csv` and `fusion.png` into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, image = folder / "fusion.csv", folder / "fusion.png"
    with atomic_write(table) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("share", curve.metric, "low", "high"))
        for weight, value, (low, high) in zip(curve.weights, curve.values, curve.intervals, strict=True):
            writer.writerow((weight, value, low, high))
    _draw_curve(curve, image)
    return [table, image]


def _other_side(fusions: Fusions, direction: Direction, fusion: str) -> Fusion | None:
    other = direction.gallery if direction.query == fusion else direction.query
    return as_fusion(other, fusions[other], 1) if other != fusion and other in fusions else None


def _best_idx(scores_WQ: np.ndarray, trained_weight: float) -> int:
    """Return the index of the best mean; of equal ones the nearest to the trained weight."""
    means = np.nanmean(scores_WQ, axis=1)
    distances = np.abs(np.linspace(0, 1, len(means)) - trained_weight)
    return int(np.lexsort((distances, -means))[0])


def _cross_chosen(scores_WQ: np.ndarray, clusters_Q: np.ndarray, trained_weight: float) -> np.ndarray:
    """Return the score of each query (Q,) at the weight that is best for the other half of the products."""
    is_odd = clusters_Q % 2 == 1  # keys are hashes: as good as random
    chosen_Q = np.empty(scores_WQ.shape[1])
    for half in (is_odd, ~is_odd):
        if half.all():
            raise ValueError("a fusion sweep needs queries of more products")
        chosen_Q[half] = scores_WQ[_best_idx(scores_WQ[:, ~half], trained_weight)][half]
    return chosen_Q


def _draw_curve(curve: FusionCurve, path: Path) -> None:
    from mim_lightning.display.style import BLUE, ORANGE, new_figure, save_figure

    figure, axes = new_figure(width=6.4, height=4.0)
    lows, highs = zip(*curve.intervals, strict=True)
    axes.fill_between(curve.weights, lows, highs, color=BLUE, alpha=0.15, label="95 % interval", linewidth=0)
    axes.plot(curve.weights, curve.values, color=BLUE, marker="o", markersize=3)
    axes.axvline(curve.trained_weight, color=ORANGE, linestyle="--", label="trained weights")
    best = curve.weights.index(curve.best_weight)
    axes.plot([curve.best_weight], [curve.values[best]], marker="*", markersize=13, color=ORANGE, linestyle="")
    axes.set_xlabel(f"weight of {curve.parts[0]} (0: {curve.parts[1]} alone)")
    axes.set_ylabel(curve.metric)
    axes.set_title(f"{curve.direction}: weights of '{curve.fusion}'")
    axes.legend()
    with atomic_write(path) as partial:
        save_figure(figure, partial)
