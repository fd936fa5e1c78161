"""The look: one line for a missing package, colors that differ, no global state."""

from __future__ import annotations

import ast
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.analysis import figures
from mim_lightning.analysis.figures.embedding_map import project_points
from mim_lightning.display import style


@pytest.mark.parametrize("package", ["matplotlib", "sklearn"])
def test_a_missing_package_is_one_line_that_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError, match=rf'{package} is not installed.*pip install "mim-lightning\[figures\]"'
    ) as error:
        style.new_figure() if package == "matplotlib" else project_points(np.eye(12, dtype=np.float32))
    assert "\n" not in str(error.value)


def test_no_figure_touches_pyplot_or_global_settings() -> None:
    for path in Path(str(figures.__file__)).parent.glob("*.py"):
        source = path.read_text()
        modules = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        assert not any("pyplot" in str(module) for module in modules) and "rcParams" not in source, path


def test_arms_differ_in_more_than_color() -> None:
    looks = [style.line_look(place) for place in range(14)]
    assert len({tuple(look.values()) for look in looks}) == 14
    for look, other in pairwise(looks):
        assert look["color"] != other["color"] and look["marker"] != other["marker"]


def test_a_dollar_sign_is_no_formula(tmp_path: Path) -> None:
    figure, axes = style.new_figure()
    axes.plot([0, 1], [1, 10], label="cost $5, now $\\frac{$")
    axes.set_yscale("log")
    axes.set_title("$x_$")
    axes.legend(title="$\\frac{$")
    assert style.save_figure(figure, tmp_path / "a.png").is_file()


def test_figures_have_the_given_size_and_their_folder_is_made(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    figure, axes = style.new_figure(width=8, height=3)
    axes.plot([0, 1], [0, 1], label="line")
    axes.legend()
    path = style.save_figure(figure, tmp_path / "new" / "line.png")
    assert path == tmp_path / "new" / "line.png"
    assert image.imread(path).shape[:2] == (3 * style.DPI, 8 * style.DPI)
    assert [len(style.new_panels(count)[1]) for count in (1, 4, 7)] == [1, 4, 7]
