"""Draw curve.png from curve.json: rows a second and memory against the rows of a batch, an arm a line.

python experiments/train_throughput/plot_curve.py
"""

import json
from pathlib import Path
from statistics import median

from mim_lightning.display.style import line_look, new_panels, save_figure

HERE = Path(__file__).parent

curve = json.loads((HERE / "curve.json").read_text())["curve"]
tried = sorted({int(size) for by_size in curve.values() for size in by_size})
figure, panels = new_panels(2, width=4.2, height=3.4)
for place, (arm, by_size) in enumerate(curve.items()):
    sizes = [int(size) for size in by_size]
    rates = [median(one["rows"] / one["seconds"] for one in segments) for segments in by_size.values()]
    peaks = [max(one["peak_gib"] for one in segments) for segments in by_size.values()]
    for axes, values in zip(panels, (rates, peaks), strict=True):
        axes.plot(sizes, values, label=arm, markersize=4, **line_look(place))
for axes, title in zip(panels, ("rows a second", "peak memory, GiB"), strict=True):
    axes.set_xscale("log", base=2)
    axes.set_xticks(tried, [str(size) for size in tried])
    axes.set_xlabel("rows of a batch")
    axes.set_title(title, loc="left")
    axes.set_ylim(bottom=0)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
save_figure(figure, HERE / "curve.png")
