"""The tables and the figure of this record, from results.json."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
BATCHES = (1024, 4096, 16_384)
ORDERS = ("shuffled", "grouped")

found = json.loads((HERE / "results.json").read_text())


def quality(order: str, batch: int) -> list[dict]:
    return [row for row in found["quality"] if row["order"] == order and row["batch"] == batch]


windows = sorted({row["window"] for row in found["quality"]})
rows = [
    f"| order | batch | {' | '.join(f'{window} shards' for window in windows)} | all rows together |",
    f"| --- | ---: |{' ---: |' * (len(windows) + 1)}",
]
for order in ORDERS:
    for batch in BATCHES:
        members = {row["window"]: row for row in quality(order, batch)}
        cells = [
            f"{'**' * row['is_default']}{row['meet_again']:.3f}{'**' * row['is_default']}" if row else ""
            for row in map(members.get, windows)
        ]
        uniform = next(iter(members.values()))["uniform"]
        rows.append(f"| {order} | {batch:,} | {' | '.join(cells)} | {uniform:.3f} |")
(HERE / "quality.md").write_text("\n".join(rows) + "\n")

rows = [
    "| order | rows | window, shards | first batch, s | further batches, ms | MiB | quality, s |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
]
rows += [
    f"| {row['order']} | {row['rows']:,} | {row['window']} | {row['first_batch_s']:.3f} | "
    f"{1000 * row['batch_s']:.1f} | {row['mib']:.0f} | {row['quality_s']:.1f} |"
    for row in found["plans"]
]
(HERE / "plans.md").write_text("\n".join(rows) + "\n")

figure, panels = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
for axes, order in zip(panels, ORDERS, strict=True):
    for batch in BATCHES:
        members = quality(order, batch)
        (line,) = axes.plot(
            [row["window"] for row in members], [row["meet_again"] for row in members], "o-", label=f"batch {batch:,}"
        )
        axes.axhline(members[0]["uniform"], color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", title=order, xlabel="shards in the window, of 200")
panels[0].set_ylabel("pairs of a shard that meet again")
panels[0].legend()
figure.savefig(HERE / "quality.png", dpi=110)
