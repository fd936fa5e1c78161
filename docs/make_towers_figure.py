"""Draws `docs/images/towers.png`: what product text does for matching by image, from the record of the drawn shop.

python docs/make_towers_figure.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mim_lightning.display.style import BLUE, FAINT, GREEN, INK, ORANGE, PAPER

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "experiments" / "towers_synthetic" / "results.csv"
PICTURE = ROOT / "docs" / "images" / "towers.png"
TOWERS = {
    "2tower": ("2 towers: images alone", FAINT),
    "3tower": ("3 towers: and product text", BLUE),
    "4tower": ("4 towers: and query text", GREEN),
}
PANELS = {
    "val/image_to_image/hit@1": "the first hit is the product",
    "val/image_to_image/wrong_category@1": "the first hit is of a wrong category",
}


def main() -> None:
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    with RECORD.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["products"] == "never trained on":
                for key in PANELS:
                    values[key, row["arm"]].append(100 * float(row[key]))
    figure = Figure(figsize=(8.0, 2.3), dpi=150, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
        axes.set_facecolor(PAPER)
        for place, (arm, (_, color)) in enumerate(TOWERS.items()):
            runs = values[key, arm]
            mean = sum(runs) / len(runs)
            axes.barh(place, mean, color=color, height=0.62)
            axes.plot(runs, [place] * len(runs), "o", color=INK, markersize=3.5, markerfacecolor=ORANGE)
            axes.annotate(f"{mean:.0f} %", (max(runs) + 2, place), va="center", fontsize=10, color=INK)
        axes.set_yticks(range(len(TOWERS)), [label for label, _ in TOWERS.values()], fontsize=9, color=INK)
        axes.set_xlim(0, 80)
        axes.set_title(title, fontsize=10, color=INK, loc="left")
        axes.set_xlabel("% of photos of products never trained on", fontsize=8, color=INK)
        axes.tick_params(axis="x", labelsize=8, colors=INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()  # of both
    figure.savefig(PICTURE, facecolor=PAPER)


if __name__ == "__main__":
    main()
