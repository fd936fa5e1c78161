"""Sweep the fusions of the composed query over several runs, and write table.md and fusion.png.

python experiments/fusion_weights/sweep.py experiments/fusion_weights runs/towers_synthetic/4tower-*
"""

import argparse
import statistics
from pathlib import Path

from mim_lightning.analysis.embeddings import read_embeddings
from mim_lightning.analysis.fusion_sweep import FusionCurve, sweep_fusion
from mim_lightning.analysis.record import read_record
from mim_lightning.display.style import new_figure, save_figure
from mim_lightning.types import Direction

DIRECTION, FUSIONS = "composed_to_product", ("query", "product")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="folder of the record")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    arguments = parser.parse_args()
    curves = {fusion: [sweep(folder, fusion) for folder in arguments.runs] for fusion in FUSIONS}
    text = "\n".join(table(curves)) + "\n"
    (arguments.experiment / "table.md").write_text(text)
    draw(curves, arguments.experiment / "fusion.png")
    print(text)


def sweep(folder: Path, fusion: str) -> FusionCurve:
    record = read_record(folder)
    direction = Direction(**record.facts.config["directions"][DIRECTION])
    return sweep_fusion(read_embeddings(record.folder), DIRECTION, direction, fusion, num_weights=21)


def table(curves: dict[str, list[FusionCurve]]) -> list[str]:
    lines = [
        "| fusion | run | picture alone | trained, share 0.50 | best of the curve | at share | words alone "
        "| chosen on other products, 95 % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for fusion, runs in curves.items():
        for number, curve in enumerate(runs, start=1):
            chosen = curve.chosen
            lines.append(
                f"| {fusion} | {number} | {curve.values[-1]:.3f} | {curve.trained_value:.3f} | {max(curve.values):.3f} "
                f"| {curve.best_weight:.2f} | {curve.values[0]:.3f} "
                f"| {chosen.difference:+.3f} [{chosen.low:+.3f}, {chosen.high:+.3f}] |"
            )
    return lines


def draw(curves: dict[str, list[FusionCurve]], path: Path) -> None:
    figure, axes = new_figure(width=6.4, height=4.0)
    for fusion, runs in curves.items():
        means = [statistics.fmean(values) for values in zip(*(curve.values for curve in runs), strict=True)]
        (line,) = axes.plot(runs[0].weights, means, label=f"weights of '{fusion}', mean of {len(runs)} runs")
        for curve in runs:
            axes.plot(curve.weights, curve.values, color=line.get_color(), alpha=0.25, linewidth=1)
    axes.axvline(0.5, linestyle="--", color="grey", linewidth=1, label="as trained")
    axes.set_xlabel("share of the picture (0: words alone, 1: picture alone)")
    axes.set_ylabel("hit@1, products never trained on")
    axes.set_title(f"{DIRECTION}: fusion weights after training")
    axes.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    main()
