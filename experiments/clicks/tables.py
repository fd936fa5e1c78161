"""Tables and figure of the record: what was learnt of positions, and what training on clicks found.

python experiments/clicks/tables.py experiments/clicks <folder of simulate.py> <folder of arms.py>
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from mim_lightning.metrics.intervals import bootstrap_intervals, paired_difference

BASELINES = {
    **dict.fromkeys(("position", "sponsored", "none", "cascade"), "counted"),
    **dict.fromkeys(("popular", "graded"), "plain"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("record", "logs", "ranks"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    if (found := arguments.logs / "coverage.csv").is_file():
        (arguments.record / "coverage.csv").write_text(found.read_text())
    if (arguments.record / "coverage.csv").is_file():
        lines = position_lines(arguments.record / "coverage.csv")
        (arguments.record / "positions.md").write_text("\n".join(lines) + "\n")
    runs = read_runs(arguments.ranks)
    if not runs:
        return
    (arguments.record / "table.md").write_text("\n".join(arm_lines(runs)) + "\n")
    with (arguments.record / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "arm", "seed", "hit@1", "mrr"])
        for (group, arm), seeds in runs.items():
            for seed, rows in seeds.items():
                ranks = np.array([int(row["rank"]) for row in rows])
                writer.writerow([group, arm, seed, f"{(ranks == 1).mean():.6f}", f"{(1 / ranks).mean():.6f}"])


def position_lines(path: Path) -> list[str]:
    """Return a row a position: planted, mean estimate of all logs, and how often the interval holds the planted one."""
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    lines = ["| shoppers | position | planted | mean estimate | mean interval | holds it | clicks below a click |"]
    lines.append("| --- | ---: | ---: | ---: | --- | ---: | ---: |")
    groups = defaultdict(list)
    for row in rows:
        if row["position"] != "1":
            groups[row["kind"], int(row["position"])].append(row)
    for (kind, position), found in groups.items():
        planted = float(found[0]["planted"]) if found[0]["planted"] else None
        value, low, high = (np.mean([float(row[name]) for row in found]) for name in ("examination", "low", "high"))
        held = sum(float(row["low"]) <= (planted or 0) <= float(row["high"]) for row in found)
        cells = ("-", "-") if planted is None else (f"{planted:.3f}", f"{held} of {len(found)}")
        after = np.mean([float(row["after_click"]) for row in found])
        lines.append(
            f"| {kind} | {position} | {cells[0]} | {value:.3f} | [{low:.3f}, {high:.3f}] | {cells[1]} | {after:.2f} |"
        )
    return lines


def read_runs(folder: Path) -> dict[tuple[str, str], dict[int, list[dict[str, str]]]]:
    runs: dict[tuple[str, str], dict[int, list[dict[str, str]]]] = defaultdict(dict)
    for path in sorted(folder.glob("*.csv")):
        group, arm, seed = path.stem.split("-")
        with path.open(newline="") as file:
            runs[group, arm][int(seed)] = [*csv.DictReader(file)]
    return runs


def arm_lines(runs: dict[tuple[str, str], dict[int, list[dict[str, str]]]]) -> list[str]:
    lines = ["| group | arm | seeds | hit@1, 95 % | mrr, 95 % | mrr minus baseline, 95 % | p |"]
    lines.append("| --- | --- | ---: | --- | --- | --- | ---: |")
    for group, baseline in BASELINES.items():
        arms = [arm for one, arm in runs if one == group]
        for arm in sorted(arms, key=lambda name: name != baseline):
            ranks = ranks_of(runs[group, arm])
            products = [row["product_id"] for row in next(iter(runs[group, arm].values()))]
            means = {"hit@1": (ranks == 1).astype(float), "mrr": 1 / ranks}
            ends = bootstrap_intervals(means, products)
            cells = [f"{means[name].mean():.3f} [{low:.3f}, {high:.3f}]" for name, (low, high) in ends.items()]
            against = ["", ""]
            if arm != baseline:
                found = paired_difference(1 / ranks, 1 / ranks_of(runs[group, baseline]), products)
                bold = "**" if found.low > 0 or found.high < 0 else ""
                against = [
                    f"{bold}{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{bold}",
                    f"{found.p_value:.4f}",
                ]
            lines.append(f"| {group} | {arm} | {len(ranks)} | {' | '.join([*cells, *against])} |")
    return lines


def ranks_of(seeds: dict[int, list[dict[str, str]]]) -> np.ndarray:
    return np.array([[int(row["rank"]) for row in rows] for rows in seeds.values()])


if __name__ == "__main__":
    main()
