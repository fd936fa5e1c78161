"""A W&B workspace for the runs of a project, as code: metrics by epoch, sweeps, losses, throughput, tracked queries.

The panels show the keys that a run with `logger=wandb` logs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from mim_lightning.metric_names import WIDTH

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

MONITOR = "val/image_to_image/hit@1"  # models with two, three and four towers have this one
STEP = "trainer/global_step"  # axis of everything that is logged
DATA_WAIT = ("train/data_wait_fraction", "train/data_wait_share")  # the second: what older runs logged


def build_workspace(entity: str, project: str, pairs: Collection[str], monitor: str = MONITOR) -> Workspace:
    """Return the workspace, not yet saved; no network is needed.

    Args:
        entity: of the project.
        project: whose runs it shows.
        pairs: whose loss weights it shows.
        monitor: "val/<direction>/<metric>"; the sections on sweeps show the final evaluation of this one.

    Raises:
        ValueError: `monitor` is not such a key, or the extra `dashboard` is not installed.
    """
    parts = re.fullmatch(rf"val/([^/]+)/([^/]+(?:/{WIDTH}\d+)?)", monitor)
    if parts is None:
        raise ValueError(f"--monitor {monitor}: give val/<direction>/<metric>, such as {MONITOR}")
    direction, metric = parts.groups()
    result = f"result/{direction}/{metric}"  # of the checkpoint that is the result, not of the last pass
    weights = {pair: f"model.pairs.{pair}.weight" for pair in pairs}
    ws, wr = _libraries()
    sections = {  # name: panels, columns
        "Recall by epoch": (_recall_by_epoch(wr, monitor), 2),
        "Sweep": (_sweep(wr, result, list(weights.values())), 1),
        "By tower count": ([_bars(wr, result), _bars(wr, "train/rows_per_second")], 2),
        "By loss weight": ([_scatter(wr, weight, result, pair) for pair, weight in weights.items()], 3),
        "Losses and scale": (_losses(wr), 2),
        "Throughput": (_throughput(wr), 2),
        "Tracked queries": (_tracked_queries(wr, direction), 1),
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"mim_lightning: {direction} {metric}",
        sections=[
            ws.Section(
                name=name,
                panels=panels,
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns)),
            )
            for name, (panels, columns) in sections.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, smoothing_type="none"),
        runset_settings=ws.RunsetSettings(pinned_columns=[f"summary:{result}"]),
    )


def _recall_by_epoch(wr: Any, monitor: str) -> list[Any]:
    by_model = {"groupby": wr.Config("model.name"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    return [
        _lines(wr, f"{monitor} (epoch -1: before training)", "epoch", [monitor]),
        _lines(wr, f"{monitor}, mean of each model", "epoch", [monitor], **by_model),
        _lines(wr, f"{monitor} by step, for several validations in an epoch", STEP, [monitor]),
        _lines(wr, "hit@1, every direction", "epoch", regex="^val/[^/]+/hit@1$"),
        _lines(wr, "wrong category at 1", "epoch", regex="^val/[^/]+/wrong_category@1$"),
    ]


def _sweep(wr: Any, result: str, weights: Sequence[str]) -> list[Any]:
    # a line needs every value: keys of all models and weights of pairs are separate panels
    shared = ("model.name", "optim.lr", "data.batch_size", "loss.init_scale", "seed")
    return [
        _coordinates(wr, "settings and result", shared, result),
        _coordinates(wr, "loss weights and result", [*weights, "seed"], result),
        wr.ParameterImportancePlot(with_respect_to=result),
    ]


def _losses(wr: Any) -> list[Any]:
    return [
        _lines(wr, "loss by pair", STEP, regex="^train/loss/"),
        _lines(wr, "loss", STEP, ["train/loss"]),
        _lines(wr, "logit scale", STEP, regex="^train/logit_scale"),
        _lines(wr, "learning rate", STEP, regex="^lr-"),
    ]


def _throughput(wr: Any) -> list[Any]:
    return [
        _lines(wr, "rows a second", STEP, ["train/rows_per_second"]),
        _lines(wr, "fraction of time waiting for data", STEP, DATA_WAIT, range_y=(0.0, 1.0)),
    ]


def _tracked_queries(wr: Any, direction: str) -> list[Any]:
    return [
        wr.WeavePanelSummaryTable(table_name=f"tracked_queries/{direction}", layout=wr.Layout(w=24, h=20)),
        wr.MediaBrowser(title="hits: blue relevant, red not", media_keys=[f"hits/{direction}"], num_columns=1),
    ]


def _lines(wr: Any, title: str, x: str, y: Sequence[str] = (), regex: str | None = None, **more: Any) -> Any:
    return wr.LinePlot(title=title, x=x, y=list(y), metric_regex=regex, max_runs_to_show=100, **more)


def _coordinates(wr: Any, title: str, configs: Sequence[str], result: str) -> Any:
    column = wr.ParallelCoordinatesPlotColumn
    axes = [column(wr.Config(name), display_name=name, log=True if name == "optim.lr" else None) for name in configs]
    return wr.ParallelCoordinatesPlot(
        title=title, columns=[*axes, column(wr.SummaryMetric(result), display_name=result)]
    )


def _bars(wr: Any, metric: str) -> Any:
    by_model = {"groupby": wr.Config("model.name"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    return wr.BarPlot(title=f"{metric}, mean of each model", metrics=[metric], orientation="v", **by_model)


def _scatter(wr: Any, weight: str, result: str, title: str) -> Any:
    return wr.ScatterPlot(title=title, x=wr.Config(weight), y=wr.SummaryMetric(result))


def save_workspace(workspace: Workspace) -> str:
    """Save the workspace as a new view of its project, and return the URL.

    Raises:
        ValueError: no API key, no network, or no such project; with the message of W&B.
    """
    import wandb

    try:
        return workspace.save().url
    except wandb.Error as error:
        raise ValueError(
            f"W&B did not save the workspace of {workspace.entity}/{workspace.project}: {error}"
        ) from error


def describe_workspace(workspace: Workspace) -> str:
    """Return the sections and their panels, one line each."""
    lines = [f"{workspace.entity}/{workspace.project}: {workspace.name}"]
    for section in workspace.sections:
        lines += [section.name, *(f"  {type(panel).__name__}: {_title(panel)}" for panel in section.panels)]
    return "\n".join(lines)


def _title(panel: Any) -> str:
    return getattr(panel, "title", None) or getattr(panel, "table_name", None) or panel.with_respect_to


def _libraries() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ValueError('W&B workspaces are not installed: pip install "mim-lightning[dashboard]"') from error
    return ws, wr
