"""Make an experiment's table from the runs it names: mean and 95 % interval over seeds, a direction a row.

    python experiments/tabulate.py experiments/towers_grocery runs/*-grocery-seed*

The numbers are those of the last epoch: equal budgets, and nothing is chosen on the validation split. Reads each
run's config.yaml, results.json and csv log; writes results.csv (a run a row) and table.md into the folder.
"""

import argparse
import csv
import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import yaml

METRICS = ("hit@1", "hit@5", "hit@10", "mrr", "wrong_category@1")
# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
FACTS = ("best_epoch", "best_step", "fit_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    rows = [read_run(folder) for folder in sorted(arguments.runs) if (folder / "results.json").is_file()]
    twice = [key for key, count in Counter((row["model"], row["seed"]) for row in rows).items() if count > 1]
    if twice:
        parser.error(f"more than one run of {twice}: name the folders of one recipe only")
    write_csv(arguments.experiment / "results.csv", rows)
    table = make_table(rows)
    (arguments.experiment / "table.md").write_text(table)
    print(table)


def read_run(folder: Path) -> dict[str, object]:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    results = json.loads((folder / "results.json").read_text())
    results |= read_last_epoch(folder)
    kept = {key: value for key, value in results.items() if key.rsplit("/", 1)[-1] in METRICS or key in FACTS}
    return {"model": config["model"]["name"], "seed": config["seed"], **kept}


def read_last_epoch(folder: Path) -> dict[str, float]:
    """Return the last validation of a run; a resumed run has a log for each start."""
    last: dict[str, float] = {}
    for log in sorted(folder.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        with log.open(newline="") as file:
            for row in csv.DictReader(file):
                last |= {key: float(value) for key, value in row.items() if key.startswith("val/") and value}
    return last


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def make_table(rows: list[dict[str, object]]) -> str:
    groups = defaultdict(list)
    for row in rows:
        groups[row["model"]].append(row)
    lines = [f"| model | direction | {' | '.join(METRICS)} |", "| --- | --- " + "| ---: " * len(METRICS) + "|"]
    for stage in ("untouched", "val"):
        for model, members in sorted(groups.items()):
            directions = dict.fromkeys(key.split("/")[1] for key in members[0] if key.startswith("val/"))
            for direction in directions:
                cells = [
                    interval(
                        [
                            row[f"{stage}/{direction}/{metric}"]
                            for row in members
                            if f"{stage}/{direction}/{metric}" in row
                        ]
                    )
                    for metric in METRICS
                ]
                name = f"{model}, untouched" if stage == "untouched" else f"{model}, {len(members)} seeds"
                lines.append(f"| {name} | {direction} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def interval(values: list[float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    if not 1 < len(values) < len(STUDENT) + 2:
        return f"{mean:.3f}"
    half = STUDENT[len(values) - 2] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
