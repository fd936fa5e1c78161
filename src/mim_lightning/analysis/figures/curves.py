"""Training curves: retrieval metrics by epoch, or by step where an epoch has several validations; losses by step.

The runs of a group, which differ in seed or fold, are one line: their mean, in a band from the lowest to the highest.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mim_lightning.analysis.figures.training_log import INITIAL_EPOCH, Series, TrainingLog
from mim_lightning.display.style import (
    FAINT,
    INK,
    PAPER,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    line_look,
    new_panels,
    shorten,
)
from mim_lightning.metric_names import WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, SCALE = "train/loss/", "train/logit_scale"
MAX_POINTS = 200  # of a line by step; with more, neighbors are averaged
MAX_MARKERS, FEW_MARKERS = 30, 6  # a line of more than 30 points has 6 markers

Logs = Mapping[str, Sequence[TrainingLog]]  # by label of the run group


@dataclass(frozen=True)
class Curve:
    """One scalar of a group's runs at the P epochs or steps that all of them have."""

    positions: np.ndarray  # (P,)
    mean: np.ndarray  # (P,)
    low: np.ndarray  # (P,) over the runs
    high: np.ndarray  # (P,)


def merge_runs(runs: Sequence[Series]) -> Curve:
    """Return mean, lowest and highest value of S runs at each position that all have."""
    positions = sorted(set(runs[0]).intersection(*runs[1:]))
    values_SP = np.array([[run[position] for position in positions] for run in runs], dtype=np.float64)
    return Curve(np.array(positions), values_SP.mean(axis=0), values_SP.min(axis=0), values_SP.max(axis=0))


def draw_recall(logs: Logs, metric: str = "hit@1") -> Figure:
    """Draw one metric, one panel a direction, with a hollow point before training, which is epoch -1 or step 0.

    The horizontal axis is the epoch, or the step where a run has several validations in an epoch.

    Raises:
        ValueError: no run logged the metric, or matplotlib is not installed.
    """
    names = _names(logs, lambda log: [name for name in log.by_epoch if name.endswith(f"/{metric}")])
    if not names:
        known = _names(logs, lambda log: [name.split("/", 2)[-1] for name in log.by_epoch])
        raise ValueError(f"--metric {metric}: no run logged it; there are {', '.join(known) or 'none yet'}")
    is_by_step = any(log.has_passes_within_epochs for runs in logs.values() for log in runs)
    place, initial = ("step", 0) if is_by_step else ("epoch", INITIAL_EPOCH)
    figure, panels = new_panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        for idx, (label, runs) in enumerate(logs.items()):
            scalars = [log.by_pass if is_by_step else log.by_epoch for log in runs]
            series = [values[name] for values in scalars if name in values]
            _draw_line(axes, idx, label, _align(series) if is_by_step else series, initial)
        axes.set_title(name.split("/")[1].replace("_", " "), loc="left")
        if not is_by_step:
            _mark_epochs(axes)
    _equalize_heights(panels)
    _name_axes(panels, place, metric)
    _finish(figure, panels, logs, f"{metric} by {place}", f"hollow point at {place} {initial}: before training")
    return figure


def draw_losses(logs: Logs) -> Figure:
    """Draw the unweighted loss of each pair by step, one panel a pair, and the logit scale.

    Raises:
        ValueError: no run logged losses, or matplotlib is not installed.
    """
    losses = _names(
        logs, lambda log: [name for name in log.by_step if name.startswith(LOSS) and f"/{WIDTH}" not in name]
    )
    scales = _names(logs, lambda log: [name for name in log.by_step if name.startswith(SCALE)])
    if not losses:
        raise ValueError("no run has logged a loss by pair yet")
    figure, panels = new_panels(len(losses) + len(scales))
    for axes, name in zip(panels, [*losses, *scales], strict=True):
        for idx, (label, runs) in enumerate(logs.items()):
            _draw_line(axes, idx, label, [log.by_step[name] for log in runs if name in log.by_step])
        axes.set_title(_pair_title(name), loc="left")
    _equalize_heights(panels[: len(losses)])
    _name_axes(panels[: len(losses)], "step", "loss")
    _name_axes(panels[len(losses) :], "step", "factor")
    num_points = max(len(log.by_step.get(name, ())) for runs in logs.values() for log in runs for name in losses)
    averaged = f"; neighboring steps averaged to {MAX_POINTS} points" if num_points > MAX_POINTS else ""
    _finish(figure, panels, logs, "Loss by pair, and logit scale", f"losses without the pairs' weights{averaged}")
    return figure


def _names(logs: Logs, of_log: Callable[[TrainingLog], Sequence[str]]) -> list[str]:
    """Return names of scalars, those that most runs have first."""
    counts = Counter(name for runs in logs.values() for log in runs for name in dict.fromkeys(of_log(log)))
    return [name for name, _ in counts.most_common()]


def _pair_title(name: str) -> str:
    name = name.removeprefix("train/").removeprefix("loss/")
    return re.sub("_(?=query|product)", " ~ ", name).replace("_", " ").replace("/", ", ")


def _align(runs: Sequence[Series]) -> Sequence[Series]:
    """Give the passes of runs the same steps: folds differ in rows, and so in the step of a fraction of an epoch."""
    if len({len(run) for run in runs}) != 1:
        return runs
    steps = [round(sum(places) / len(runs)) for places in zip(*runs, strict=True)]
    return [dict(zip(steps, run.values(), strict=True)) for run in runs]


def _draw_line(axes: Axes, idx: int, label: str, runs: Sequence[Series], initial: int = INITIAL_EPOCH) -> None:
    if not runs:
        return  # this group has no such pair or direction
    curve, look = _thin(merge_runs(runs)), line_look(idx)
    is_initial = curve.positions == initial
    marked = np.flatnonzero(~is_initial)
    if len(marked) > MAX_MARKERS:
        marked = marked[np.linspace(0, len(marked) - 1, FEW_MARKERS).round().astype(int)]
    line = {**look, "linewidth": 1.8, "markersize": 4.5, "zorder": 3, "label": label}
    axes.plot(curve.positions, curve.mean, markevery=marked.tolist(), **line)
    axes.fill_between(curve.positions, curve.low, curve.high, color=look["color"], alpha=0.18, linewidth=0)
    if is_initial.any():  # a line without points breaks the layout
        hollow = {**look, "linestyle": "", "markersize": 5.5, "markerfacecolor": PAPER, "zorder": 4, "clip_on": False}
        axes.plot(curve.positions[is_initial], curve.mean[is_initial], **hollow)


def _thin(curve: Curve) -> Curve:
    """Average neighboring points down to `MAX_POINTS`."""
    if len(curve.positions) <= MAX_POINTS:
        return curve
    parts = np.array_split(np.arange(len(curve.positions)), MAX_POINTS)
    columns = (curve.positions, curve.mean, curve.low, curve.high)
    return Curve(*(np.array([values[part].mean() for part in parts]) for values in columns))


def _mark_epochs(axes: Axes) -> None:
    """Put ticks at epoch -1 and at whole epochs; at 0 only if there is room beside -1."""
    last = axes.get_xlim()[1]
    first = 0 if last < 8 else 1
    axes.set_xticks([INITIAL_EPOCH, *(tick for tick in axes.get_xticks() if first <= tick <= last and tick % 1 == 0)])


def _equalize_heights(panels: Sequence[Axes]) -> None:
    """Give panels of one quantity the same vertical range, from 0."""
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, top)


def _name_axes(panels: Sequence[Axes], x: str, y: str) -> None:
    """Label the horizontal axis of each panel, and the vertical one of the first in each row."""
    for axes in panels:
        axes.set_xlabel(x)
        spec = axes.get_subplotspec()
        if axes is panels[0] or (spec is not None and spec.is_first_col()):
            axes.set_ylabel(y)


def _finish(figure: Figure, panels: Sequence[Axes], logs: Logs, title: str, note: str) -> None:
    """Add title and legend, and the height that they need."""
    if max(map(len, logs.values())) > 1:
        note = f"line: mean of a group's runs; band: lowest to highest; {note}"
    lines = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = [label for label in logs if label in lines]
    width = int(10 * figure.get_figwidth())  # characters in one line, approximately
    labels = [
        f"{shorten(name, width - 20)} ({len(logs[name])} run{'s' if len(logs[name]) > 1 else ''})" for name in shown
    ]
    num_columns = max(1, min(len(labels), width // (8 + max(map(len, labels)))))
    notes = textwrap.wrap(note, int(1.15 * width))
    figure.suptitle(title, fontsize=TITLE_SIZE + 2, fontweight="bold", color=INK, x=0.01, ha="left")
    legend = figure.legend(
        [lines[name] for name in shown], labels, loc="outside lower left", ncols=num_columns, fontsize=TEXT_SIZE,
        title="\n".join(notes), title_fontsize=SMALL_SIZE, alignment="left",
    )  # fmt: skip
    legend.get_title().set_color(FAINT)
    num_lines = len(notes) + -(-len(labels) // num_columns)
    figure.set_figheight(figure.get_figheight() + 0.5 + 0.2 * num_lines)
