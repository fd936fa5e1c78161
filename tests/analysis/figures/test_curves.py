"""Curves: the numbers that were logged, epoch -1 first, one line and band for each run group."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.image import imread
from matplotlib.lines import Line2D

from mim_lightning.analysis.figures.curves import MAX_POINTS, draw_losses, draw_recall, merge_runs
from mim_lightning.analysis.figures.training_log import TrainingLog
from mim_lightning.display.style import BLUE, PAPER, VERMILION, save_figure

IMAGE, TEXT = "val/image_to_image/hit@1", "val/image_to_text/hit@1"


def by_epoch(**series: dict[int, float]) -> TrainingLog:
    return TrainingLog({{"image": IMAGE, "text": TEXT}[name]: values for name, values in series.items()}, {})


def lines(axes: Axes) -> dict[str, Line2D]:
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def points(line: Line2D) -> dict[float, float]:
    return dict(zip(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist(), strict=True))


def test_runs_are_merged_where_all_have_a_value() -> None:
    runs = [{-1: 0.1, 4: 0.5, 9: 0.9}, {-1: 0.2, 4: 0.7}, {-1: 0.6, 4: 0.3, 2: 0.0}]
    curve = merge_runs(runs)
    assert curve.positions.tolist() == [-1, 4]
    for column, measure in (("mean", statistics.fmean), ("low", min), ("high", max)):
        expected = [measure([run[place] for run in runs]) for place in (-1, 4)]
        np.testing.assert_allclose(getattr(curve, column), expected)


def test_several_validations_in_an_epoch_are_points_by_step() -> None:
    passes = [{0: 0.1, 4: 0.3, 8: 0.4, 12: 0.6}, {0: 0.2, 6: 0.5, 10: 0.6, 14: 0.8}]  # folds of other sizes
    logs = [TrainingLog({IMAGE: {-1: run[0], 0: 0.4, 1: 0.6}}, {}, {IMAGE: run}) for run in passes]
    rare = TrainingLog({IMAGE: {-1: 0.3, 0: 0.5}}, {}, {IMAGE: {0: 0.3, 8: 0.5}})
    figure = draw_recall({"often": logs, "once an epoch": [rare]})
    (axes,) = figure.axes
    assert axes.get_xlabel() == "step" and figure.get_suptitle() == "hit@1 by step"
    assert points(lines(axes)["often"]) == pytest.approx({0: 0.15, 5: 0.4, 9: 0.5, 13: 0.7})
    assert points(lines(axes)["once an epoch"]) == {0: 0.3, 8: 0.5}
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == PAPER]
    assert [np.asarray(line.get_xdata()).tolist() for line in hollow] == [[0], [0]]


def test_recall_is_what_was_logged_a_panel_a_direction() -> None:
    logs = {
        "2tower": [by_epoch(image={-1: 0.01, 4: 0.2, 9: 0.3})],
        "4tower": [
            by_epoch(text={-1: 0.0, 4: 0.1}, image={-1: 0.02, 4: 0.4, 9: 0.5}),
            by_epoch(text={-1: 0.1, 4: 0.3}, image={-1: 0.04, 4: 0.6, 9: 0.9}),
        ],
    }
    figure = draw_recall(logs)
    image, text = figure.axes
    assert (image.get_title("left"), text.get_title("left")) == ("image to image", "image to text")
    assert points(lines(image)["2tower"]) == {-1: 0.01, 4: 0.2, 9: 0.3}
    assert points(lines(image)["4tower"]) == pytest.approx({-1: 0.03, 4: 0.5, 9: 0.7})
    assert list(lines(text)) == ["4tower"]
    assert points(lines(text)["4tower"]) == pytest.approx({-1: 0.05, 4: 0.2})
    assert [to_hex(line.get_color()).upper() for line in lines(image).values()] == [BLUE, VERMILION]
    assert to_hex(lines(text)["4tower"].get_color()).upper() == VERMILION  # an arm looks the same in all panels
    assert image.get_ylabel() == "hit@1" and image.get_xlabel() == text.get_xlabel() == "epoch"
    assert image.get_ylim() == text.get_ylim() and image.get_ylim()[0] == 0


def test_the_model_before_training_is_a_hollow_first_point_at_epoch_minus_one() -> None:
    (axes,) = draw_recall({"2tower": [by_epoch(image={-1: 0.01, 4: 0.2, 9: 0.3})]}).axes
    line, hollow = axes.get_lines()
    assert np.asarray(line.get_xdata())[0] == -1
    assert points(hollow) == {-1: 0.01}
    assert hollow.get_markerfacecolor() == PAPER and line.get_markerfacecolor() != PAPER
    assert line.get_markevery() == [1, 2]
    assert -1 in axes.get_xticks() and 0 not in axes.get_xticks()


def test_the_band_reaches_from_the_lowest_to_the_highest_run() -> None:
    logs = {"4tower": [by_epoch(image={-1: 0.1, 4: low}) for low in (0.3, 0.8, 0.4)]}
    (axes,) = draw_recall(logs).axes
    corners = axes.collections[0].get_paths()[0].vertices
    at_four = corners[corners[:, 0] == 4, 1]
    assert (at_four.min(), at_four.max()) == (0.3, 0.8)
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["4tower (3 runs)"]
    assert "band: lowest to highest" in legend.get_title().get_text().replace("\n", " ")


def test_losses_have_a_panel_a_pair_and_one_for_the_scale() -> None:
    steps = {
        "train/loss/query_image_product_text": {9: 4.0, 19: 3.0},
        "train/loss/query_product": {9: 2.0, 19: 1.0},
        "train/loss": {9: 6.0, 19: 4.0},
        "train/logit_scale": {9: 14.0, 19: 15.0},
    }
    figure = draw_losses({"4tower": [TrainingLog({}, steps)]})
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["query image ~ product text", "query ~ product", "logit scale"]
    assert [points(lines(axes)["4tower"]) for axes in figure.axes] == [
        {9: 4.0, 19: 3.0},
        {9: 2.0, 19: 1.0},
        {9: 14.0, 19: 15.0},
    ]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim() != figure.axes[2].get_ylim()


def test_long_lines_are_averaged_and_the_figure_says_so() -> None:
    steps = {9 + 10 * number: float(number % 7) for number in range(10 * MAX_POINTS)}
    figure = draw_losses({"2tower": [TrainingLog({}, {"train/loss/query_product": steps})]})
    drawn = points(lines(figure.axes[0])["2tower"])
    assert len(drawn) == MAX_POINTS
    first_ten = list(steps)[:10]
    assert drawn[statistics.fmean(first_ten)] == pytest.approx(statistics.fmean(steps[step] for step in first_ten))
    assert f"averaged to {MAX_POINTS} points" in figure.legends[0].get_title().get_text().replace("\n", " ")


def test_long_names_stay_inside_the_image(tmp_path: Path) -> None:
    logs = {f"4tower {'key=value ' * 12}{number}": [by_epoch(image={-1: 0.1, 4: 0.5})] for number in range(9)}
    figure = draw_recall(logs)
    pixels = imread(save_figure(figure, tmp_path / "new" / "curves.png"))
    assert (pixels[:, -3:, :3] == 1).all() and (pixels[-3:, :, :3] == 1).all()
    looks = {(line.get_color(), line.get_linestyle()) for line in lines(figure.axes[0]).values()}
    assert len(looks) == 9


def test_an_unknown_metric_is_an_error_that_lists_the_logged_ones() -> None:
    with pytest.raises(ValueError, match=r"--metric mrr: no run logged it; there are hit@1"):
        draw_recall({"2tower": [by_epoch(image={-1: 0.1})]}, "mrr")
    with pytest.raises(ValueError, match=r"logged it; there are hit@1/width_64"):
        draw_recall({"2tower": [TrainingLog({f"{IMAGE}/width_64": {0: 0.1}}, {})]}, "mrr")
    with pytest.raises(ValueError, match="no run has logged a loss by pair"):
        draw_losses({"2tower": [by_epoch(image={-1: 0.1})]})
