"""Draws `docs/images/pipeline.svg`: the stages of the pipeline, and on every arrow the type that is handed on.

    python docs/make_pipeline.py

A test checks that every type named here exists in the package.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mim_lightning.display.style import BLUE, FAINT, GREEN, INK, ORANGE, PAPER, PURPLE, VERMILION

PICTURE = Path(__file__).parent / "images" / "pipeline.svg"
WIDTH, HEIGHT = 1.72, 0.62  # of a box, in inches
COLUMN, ROW = 2.92, 1.42  # from one box to the next, in inches
# stage -> (column, row, package, color of its part of the pipeline)
STAGES = {
    "tables": (0, 0, "products and queries", FAINT),
    "manifest": (1, 0, "data.sources, data.manifest", BLUE),
    "validation": (2, 0, "data.splits, data.validation", BLUE),
    "preparation": (3, 0, "data.preparation", BLUE),
    "versions": (4, 1, "data.versions", BLUE),
    "shards": (3, 1, "data.shards", BLUE),
    "sampling": (2, 1, "data.sampling", BLUE),
    "loading": (1, 1, "data.loading", BLUE),
    "training step": (0, 1, "lit.module", VERMILION),
    "matcher": (0, 2, "model, encoders", GREEN),
    "loss": (1, 2, "losses", GREEN),
    "metrics": (2, 2, "metrics", PURPLE),
    "records, pages": (3, 2, "analysis", PURPLE),
    "checkpoint": (0, 3, "model.checkpoint, inference", ORANGE),
    "index": (1, 3, "search, search.index", ORANGE),
    "searcher": (2, 3, "search", ORANGE),
    "service": (3, 3, "search.service", ORANGE),
}
# (from, to, what is handed on, bend of the arrow); a type is written module:Name, anything else is text
ARROWS = [
    ("tables", "manifest", "CSV, Parquet,\nJSONL", 0),
    ("manifest", "validation", "data.manifest.manifest:Manifest", 0),
    ("validation", "preparation", "data.manifest.manifest:Manifest", 0),
    ("preparation", "shards", "tar files,\nindex.json", 0),
    ("preparation", "versions", "data.preparation.prepared:PreparedData", 0),
    ("versions", "shards", "further shards,\nnew index", 0),
    ("shards", "sampling", "sizes, keys", 0),
    ("sampling", "loading", "data.sampling.order:BatchOrder", 0),
    ("shards", "loading", "types:Sample", -0.26),
    ("loading", "training step", "types:Batch", 0),
    ("training step", "matcher", "types:Batch", 0),
    ("matcher", "loss", "types:Embeddings", 0),
    ("loss", "training step", "types:StepResult", 0),
    ("matcher", "metrics", "types:Embeddings", 0.22),
    ("metrics", "records, pages", "types:RetrievalReport", 0),
    ("matcher", "checkpoint", "weights, config,\nfingerprint", 0),
    ("checkpoint", "index", "inference.model:LoadedModel", 0),
    ("index", "searcher", "search.index.interface:ProductIndex", 0),
    ("checkpoint", "searcher", "inference.model:LoadedModel", 0.22),
    ("searcher", "service", "search.searcher:SearchResult", 0),
]


def type_of(handed: str) -> tuple[str, str] | None:
    """Return module and name of a type on an arrow, or None where the arrow carries files or plain values."""
    module, _, name = handed.partition(":")
    return (f"mim_lightning.{module}", name) if name else None


def draw() -> Figure:
    """Return the picture."""
    columns = 1 + max(column for column, *_ in STAGES.values())
    rows = 1 + max(row for _, row, *_ in STAGES.values())
    width, height = (columns - 1) * COLUMN + WIDTH + 0.3, (rows - 1) * ROW + HEIGHT + 0.75  # room for the lowest arrow
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.15, width - 0.15), ylim=(height - 0.15, -0.15))
    axes.set_axis_off()
    boxes = {}
    for stage, (column, row, package, color) in STAGES.items():
        left, top = column * COLUMN, row * ROW
        boxes[stage] = FancyBboxPatch(
            (left, top), WIDTH, HEIGHT, "round,pad=0,rounding_size=0.08", fc=PAPER, ec=color, lw=1.6
        )
        axes.add_patch(boxes[stage])
        axes.text(left + WIDTH / 2, top + 0.24, stage, ha="center", va="center", color=INK, size=11, weight="bold")
        axes.text(left + WIDTH / 2, top + 0.45, package, ha="center", va="center", color=FAINT, size=7.5)
    for start, end, handed, bend in ARROWS:
        _draw_arrow(axes, start, end, handed.rpartition(":")[2], bend, boxes)
    return figure


def _draw_arrow(axes: Axes, start: str, end: str, label: str, bend: float, boxes: dict[str, FancyBboxPatch]) -> None:
    (x0, y0), (x1, y1) = (_center(name) for name in (start, end))
    axes.add_patch(
        FancyArrowPatch(
            (x0, y0), (x1, y1), connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>,head_length=5,head_width=3",
            patchA=boxes[start], patchB=boxes[end], shrinkA=1, shrinkB=1, color=INK, lw=1.1, zorder=0,
        )
    )  # fmt: skip
    x, y = (x0 + x1) / 2 - bend * (y1 - y0) / 2, (y0 + y1) / 2 + bend * (x1 - x0) / 2
    is_upright = x0 == x1
    axes.text(
        x + (0.07 if is_upright else 0), y - (0 if is_upright else 0.09), label, color=INK, size=8, family="monospace",
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        ha="left" if is_upright else "center", va="center" if is_upright else "bottom",
    )  # fmt: skip


def _center(stage: str) -> tuple[float, float]:
    column, row, *_ = STAGES[stage]
    return column * COLUMN + WIDTH / 2, row * ROW + HEIGHT / 2


if __name__ == "__main__":
    with rc_context({"svg.hashsalt": "pipeline"}):  # the same names inside the file every time
        draw().savefig(PICTURE, metadata={"Date": None})
    print(PICTURE)
