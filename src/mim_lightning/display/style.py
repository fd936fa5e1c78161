"""Style of all figures: colors for color-blind readers, light axes, text readable at half size.

matplotlib is in the extra `figures`, and is imported when a figure is made; figures have no global state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, RULE, PAPER = "#1f2328", "#6e7781", "#e3e6ea", "#ffffff"
RIGHT, WRONG = "#1f6feb", "#d1242f"  # of hits, as in the paper's figures 2 and 5
# Okabe and Ito 2008, "Color Universal Design"; its yellow is too pale for lines
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":")  # one for each pass through the colors
# Krzywinski 2013, "12-color palette for color blindness", reordered so that neighbours differ
TWELVE = (
    "#008DF9", "#E20134", "#009F81", "#FFC33B", "#8400CD", "#FF6E3A",
    "#00C2F9", "#FF5AAF", "#9F0162", "#00FCCF", "#A40122", "#FFB2FD",
)  # fmt: skip
OTHER = "#b8bec6"  # for labels without a color of their own
DPI = 150
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 11.5, 10.5, 9.5  # points


def new_figure(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """Return a figure of that size in inches, and its one pair of axes."""
    figure, panels = new_panels(1, width, height)
    return figure, panels[0]


def new_panels(
    num_panels: int, width: float = 3.5, height: float = 2.7, max_columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """Return a figure with as many pairs of axes, in rows of at most `max_columns`; width and height in inches of each.

    Raises:
        ValueError: matplotlib is not installed.
    """
    with extra_figures():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    if num_panels == 1:
        width = max(width, 6.4)  # room for title and legend
    num_columns = 2 if num_panels == 4 else min(num_panels, max_columns)  # four make a square
    num_rows = math.ceil(num_panels / num_columns)
    figure = Figure(figsize=(width * num_columns, height * num_rows), dpi=DPI, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(num_rows, num_columns, place + 1) for place in range(num_panels)]
    for axes in panels:
        _lighten(axes)
    return figure, panels


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whatever the suffix, and return the path; its folder is made."""
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        if legend is not None:
            legend.set_frame_on(False)
            _disable_math([*legend.get_texts(), legend.get_title()])
    for axes in figure.axes:
        _disable_math([axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png")
    return path


def _disable_math(texts: Iterable[Any]) -> None:
    """Draw dollar signs as such: text between two of them is not a formula."""
    for text in texts:
        text.set_parse_math(False)


def line_look(place: int) -> dict[str, Any]:
    """Return color, marker and dash of the line at a position: lines differ without color too."""
    rounds, place = divmod(place, len(LINES))
    return {"color": LINES[place], "marker": MARKERS[place], "linestyle": DASHES[rounds % len(DASHES)]}


def shorten(text: str, max_length: int) -> str:
    """Return a text of at most `max_length` characters, cut with an ellipsis."""
    return text if len(text) <= max_length else f"{text[: max_length - 1].rstrip()}…"


def colors_of(labels: Sequence[str]) -> dict[str, str]:
    """Return a color for each label: the first have one each, the others are gray."""
    return {label: TWELVE[place] if place < len(TWELVE) else OTHER for place, label in enumerate(labels)}


@contextmanager
def extra_figures() -> Iterator[None]:
    """Turn a failed import into a ValueError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "a package").split(".")[0]
        raise ValueError(f'{missing} is not installed; figures need pip install "mim-lightning[figures]"') from error


def _lighten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL_SIZE, colors=FAINT, labelcolor=INK, length=3)
    axes.title.set(fontsize=TITLE_SIZE, color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=TEXT_SIZE, color=INK)
