"""Draw differences.png from a record's differences.md: hit@1 of each arm minus the first arm's, with 95 % intervals.

    python experiments/plot_differences.py experiments/warm_start [...]

A direction a panel; filled where products were never trained on, hollow where they were.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from mim_lightning.display.style import FAINT, LINES, PAPER, new_panels, save_figure

METRIC, SEEN = "hit@1", "trained on"


class Difference(NamedTuple):
    """A row of differences.md."""

    arm: str
    baseline: str
    products: str
    direction: str
    ends: tuple[float, float, float]  # difference, lower and upper end


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for folder in map(Path, sys.argv[1:]):
        draw(read(folder / "differences.md"), folder / "differences.png")


def read(path: Path) -> list[Difference]:
    """Return the rows of the metric whose baseline is the first one's."""
    found = []
    for line in path.read_text("utf-8").splitlines()[2:]:
        pair, products, direction, metric, *_, cell = (cell.strip() for cell in line.split("|")[1:8])
        arm, baseline = pair.split(" - ")
        if metric == METRIC:
            difference, low, high = map(float, re.findall(r"[+-]\d+\.\d+", cell))
            found.append(Difference(arm, baseline, products, direction, (difference, low, high)))
    return [row for row in found if row.baseline == found[0].baseline]


def draw(rows: list[Difference], path: Path) -> None:
    baseline, directions = rows[0].baseline, [*dict.fromkeys(row.direction for row in rows)]
    arms = [baseline, *dict.fromkeys(row.arm for row in rows)]
    labels = [short_label(baseline, ""), *(short_label(arm, baseline) for arm in arms[1:])]
    num_lines = sum(label.count("\n") + 1 for label in labels)
    figure, panels = new_panels(len(directions), width=4.6, height=1.1 + 0.24 * max(num_lines, 2 * len(arms)))
    for axes, direction in zip(panels, directions, strict=True):
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.plot(0, 0, "|", color=FAINT, markersize=12)
        axes.grid(axis="y", visible=False)
        for row in rows:
            if row.direction == direction:
                middle, low, high = row.ends
                is_seen = row.products == SEEN
                axes.errorbar(
                    middle,
                    arms.index(row.arm) + (0.12 if is_seen else -0.12),
                    xerr=[[middle - low], [high - middle]],
                    fmt="o",
                    markersize=5,
                    color=LINES[is_seen],
                    markerfacecolor=PAPER if is_seen else None,
                    label=f"products {row.products}",
                )
        axes.set_yticks(range(len(arms)), labels if axes.get_subplotspec().is_first_col() else [""] * len(arms))
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(direction, loc="left")
        axes.set_xlabel(f"{METRIC} minus that of the first")
    legend = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=2, fontsize=8)
    save_figure(figure, path)


def short_label(arm: str, baseline: str) -> str:
    """Return the keys that differ from the baseline, one a line; a name as it is."""
    if "=" not in arm:
        return arm
    return "\n".join(word for word in arm.split(" ") if word not in baseline.split(" "))


if __name__ == "__main__":
    main()
