"""A map of the embedding space: photos and products as points, near to each other where the model finds them alike.

Points with their places in the plane come in, a matplotlib figure goes out; the draw door saves it. Colour tells the
category, the mark whether a point is a photo from the street or a product of the shop.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from mim_lightning.analysis.figures.map_points import OTHER_LABEL, MapPoints
from mim_lightning.display.style import (
    FAINT,
    INK,
    OTHER,
    PAPER,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    TWELVE,
    colours_of,
    new_figure,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MAX_LINES = 300  # more lines between queries and products hide the points
MAX_LABEL = 22  # characters of a category


def draw_map(points: MapPoints, places: np.ndarray, title: str) -> Figure:
    """Draw P points at their `places` (P, 2); the most frequent categories have a colour, the others are grey.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, axes = new_figure(width=9.0, height=6.4)
    counts = Counter(label for label in points.labels if label != OTHER_LABEL)
    by_size = [label for label, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    # by name, so that maps of several models paint a category alike
    colours = colours_of(sorted(by_size[: len(TWELVE)]) + by_size[len(TWELVE) :])
    x, y = places.T
    if _has_lines(points):
        for line in points.lines:
            axes.plot(x[list(line)], y[list(line)], color=OTHER, linewidth=0.7, alpha=0.7, zorder=1)
    shades = np.array([colours.get(label, OTHER) for label in points.labels])
    street, shop = points.is_street, ~points.is_street
    axes.scatter(x[street], y[street], c=shades[street], marker="o", s=22, alpha=0.65, linewidths=0, zorder=2)
    axes.scatter(x[shop], y[shop], c=shades[shop], marker="^", s=62, edgecolors=INK, linewidths=0.7, zorder=3)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.suptitle(title, fontsize=TITLE_SIZE + 2, fontweight="bold", color=INK, x=0.01, ha="left")
    figure.supxlabel(_caption(points), fontsize=SMALL_SIZE, color=FAINT, x=0.01, ha="left")
    _add_legend(axes, colours, points)
    return figure


def _has_lines(points: MapPoints) -> bool:
    return 0 < len(points.lines) <= MAX_LINES


def _caption(points: MapPoints) -> str:
    shown = (int(points.is_street.sum()), int((~points.is_street).sum()))
    totals = ((points.num_queries, "queries"), (points.num_products, "products"))
    sampled = " and ".join(
        f"{count:,} of {total:,} {what}" if count < total else f"{count:,} {what}"
        for count, (total, what) in zip(shown, totals, strict=True)
    )
    joined = "\nA line joins a photo with the product that it shows." if _has_lines(points) else ""
    return f"t-SNE of {sampled}: near is alike, distances between groups say little.{joined}"


def _add_legend(axes: Axes, colours: dict[str, str], points: MapPoints) -> None:
    from matplotlib.lines import Line2D

    def mark(label: str, colour: str, marker: str = "s", edge: str = PAPER) -> Line2D:
        return Line2D(
            [], [], label=label, color=colour, marker=marker, markersize=8, markeredgecolor=edge, linestyle=""
        )

    query_side, product_side = points.sides
    entries = [mark(f"street: {query_side}", FAINT, "o"), mark(f"shop: {product_side}", PAPER, "^", INK)]
    shown = [label for label, colour in colours.items() if colour != OTHER]
    entries += [mark(shorten(label, MAX_LABEL), colours[label]) for label in shown]
    if len(colours) > len(shown) or OTHER_LABEL in points.labels:
        entries.append(mark("other categories", OTHER))
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=TEXT_SIZE, borderaxespad=0)
