"""The W&B workspace as code: what it shows, built without a network; faults are one line."""

import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces.workspaces import Workspace

from mim_lightning.analysis.workspace import build_workspace
from mim_lightning.config import compose
from mim_lightning.wandb_workspace import main

PAIRS = list(compose("train", ["model=4tower"])["model"]["pairs"])
MONITOR = "val/composed_to_product/hit@1"
RESULT = "result/composed_to_product/hit@1"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def workspace() -> Workspace:
    return build_workspace("team", "shop", PAIRS, MONITOR)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Start the entry point with arguments."""

    def start(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["wandb_workspace", *words])
        main()

    return start


def panels(workspace: Workspace, kind: type) -> Iterator[Any]:
    return (panel for section in workspace.sections for panel in section.panels if isinstance(panel, kind))


def test_it_belongs_to_the_project_and_can_be_sent(workspace: Workspace) -> None:
    spec = workspace._to_model().model_dump(by_alias=True, exclude_none=True)  # what `save` sends
    assert (spec["entity"], spec["project"]) == ("team", "shop")
    found = spec["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in found] == [
        "Recall by epoch",
        "Sweep",
        "By tower count",
        "By loss weight",
        "Losses and scale",
        "Throughput",
        "Tracked queries",
    ]
    assert all(section["panels"] for section in found)


def test_recall_starts_at_epoch_minus_one(workspace: Workspace) -> None:
    plots = [panel for panel in panels(workspace, wr.LinePlot) if MONITOR in panel.y]
    assert [panel.x for panel in plots] == ["epoch", "epoch", "trainer/global_step"], "or by step"
    assert all(panel.range_x == (None, None) for panel in plots)


def test_parallel_coordinates_end_in_the_result(workspace: Workspace) -> None:
    settings, weights = panels(workspace, wr.ParallelCoordinatesPlot)
    for plot in (settings, weights):
        assert plot.columns[-1].metric == wr.SummaryMetric(RESULT)
    names = [column.metric.name for column in settings.columns[:-1]]
    assert {"model.name", "optim.lr", "seed"} <= set(names)
    assert len(PAIRS) == 6
    assert [column.metric.name for column in weights.columns[:6]] == [f"model.pairs.{pair}.weight" for pair in PAIRS]
    assert [plot.x.name for plot in panels(workspace, wr.ScatterPlot)] == [f"model.pairs.{p}.weight" for p in PAIRS]
    assert all(plot.y == wr.SummaryMetric(RESULT) for plot in panels(workspace, wr.ScatterPlot))


def test_tower_count_and_throughput(workspace: Workspace) -> None:
    recall, speed = panels(workspace, wr.BarPlot)
    assert (recall.metrics, speed.metrics) == ([RESULT], ["train/rows_per_second"])
    assert recall.groupby == wr.Config("model.name") and recall.groupby_aggfunc == "mean"
    shown = {key for panel in panels(workspace, wr.LinePlot) for key in panel.y}
    assert {
        "train/rows_per_second",
        "train/data_wait_fraction",
        "train/data_wait_share",
    } <= shown  # the last: of older runs


def test_the_browser_shows_the_monitored_direction(workspace: Workspace) -> None:
    (table,) = panels(workspace, wr.WeavePanelSummaryTable)
    assert table.table_name == "tracked_queries/composed_to_product"
    at_a_width = build_workspace("team", "shop", PAIRS, "val/image_to_image/hit@1/width_64")
    assert at_a_width.name == "mim_lightning: image_to_image hit@1/width_64"


@pytest.mark.parametrize("monitor", ["val/hit@1", "train/loss", "val/a/hit@1/width_", "val//hit@1", "val/a/b/c"])
def test_a_monitor_must_be_a_metric_of_a_direction(
    monitor: str, call: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call("--entity", "team", "--monitor", monitor)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --monitor {monitor}: give val/<direction>/<metric>, such as val/image_to_image/hit@1\n"
    )


def test_the_entity_must_be_named(call: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        call()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: the following arguments are required: --entity")


def test_a_dry_run_lists_the_panels_and_saves_nothing(
    call: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Workspace, "save", lambda _: pytest.fail("saved"))
    call("--entity", "team", "--project", "shop", "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "team/shop: mim_lightning: image_to_image hit@1"
    assert "  ParallelCoordinatesPlot: settings and result" in lines
    assert "  WeavePanelSummaryTable: tracked_queries/image_to_image" in lines


def test_saving_prints_the_url(
    call: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = []
    monkeypatch.setattr(Workspace, "save", lambda workspace: saved.append(workspace) or workspace)
    monkeypatch.setattr(Workspace, "url", "https://wandb.ai/team/mim_lightning?nw=1")
    call("--entity", "team")
    assert capsys.readouterr().out == "https://wandb.ai/team/mim_lightning?nw=1\n"
    assert [(workspace.entity, workspace.project) for workspace in saved] == [("team", "mim_lightning")]


@pytest.mark.parametrize(
    "error", [wandb.errors.UsageError("No API key\nconfigured."), wandb.errors.CommError("no network")]
)
def test_errors_of_wandb_are_one_line(
    error: Exception, call: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: Workspace) -> None:
        raise error

    monkeypatch.setattr(Workspace, "save", refuse)
    with pytest.raises(SystemExit) as stopped:
        call("--entity", "team")
    assert stopped.value.code == 2
    reason = " ".join(str(error).split())
    assert capsys.readouterr().err == f"error: W&B did not save the workspace of team/mim_lightning: {reason}\n"


def test_without_the_extra_one_line_names_it(
    call: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("wandb_workspaces", "wandb_workspaces.reports.v2", "wandb_workspaces.workspaces"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stopped:
        call("--entity", "team", "--dry-run")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        'error: W&B workspaces are not installed: pip install "mim-lightning[dashboard]"\n'
    )
