"""Make an experiment's tables from its runs: means over seeds, and differences between arms.

    python experiments/tables.py experiments/towers_synthetic runs/towers_synthetic/*

The first run's arm is the baseline; runs that differ in seed and fold alone are one arm. With
product-disjoint data a run's own record is about products that are not in training; an evaluation in its folder `seen`
(split=val_seen) is about products that are. Writes into the folder:

    results.csv       a run a row, all metrics
    table.md          mean and 95 % interval over the runs of an arm (Student's t), a direction a row
    summary.md        hit@1 alone, an arm a column
    differences.md    each arm minus the first, and minus the one before: paired by query, with interval and p-value
"""

import argparse
import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mim_lightning.analysis.comparison.comparison import compare_groups
from mim_lightning.analysis.record import EvaluationRecord, read_record
from mim_lightning.analysis.run_groups import RunGroup, group_runs
from mim_lightning.run import PLACEMENT_KEYS, Run
from mim_lightning.sweep.summary import mean_interval

METRICS = ("hit@1", "hit@10", "mrr", "wrong_category@1")
COMPARED = ("hit@1", "wrong_category@1")
IGNORED_KEYS = (*PLACEMENT_KEYS, "data.vectors")  # of an arm: each seed has vectors of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="folder of the record")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs; those without a result are left out")
    parser.add_argument("--directions", nargs="+", default=["image_to_image"], help="whose differences are told")
    parser.add_argument("--first-only", action="store_true", help="differences from the first arm alone")
    parser.add_argument("--labels", nargs="+", help="of the arms, in order; default: what differs")
    arguments = parser.parse_args()
    folders = [folder for folder in arguments.runs if (folder / "results.json").is_file()]
    tables, summary, differences, rows = [HEADER], [], [DIFFERENCES_HEADER], []
    for products, subfolder in (("never trained on", "."), ("trained on", "seen")):
        found = [folder / subfolder for folder in folders if (folder / subfolder / "results.json").is_file()]
        if not found:
            continue
        arms = group_runs([read_record(folder) for folder in found], IGNORED_KEYS)
        if arguments.labels:
            arms = [replace(arm, label=label) for arm, label in zip(arms, arguments.labels, strict=True)]
        rows += [row(arm.label, products, record) for arm in arms for record in records_of(arm)]
        tables += [line for arm in arms for line in table_lines(arm, products)]
        summary += list(summary_lines(arms, products, is_first=not summary))
        pairs = list(pairs_of(arms, arguments.first_only))
        differences += list(difference_lines(pairs, products, arguments.directions))
    write_csv(arguments.experiment / "results.csv", rows)
    for name, lines in (("table.md", tables), ("summary.md", summary), ("differences.md", differences)):
        text = "\n".join(lines) + "\n"
        (arguments.experiment / name).write_text(text)
        print(text)


def records_of(arm: RunGroup) -> list[EvaluationRecord]:
    return [record for records in arm.records.values() for record in records]


def results_of(record: EvaluationRecord) -> dict[str, float]:
    return Run(record.facts.run_id, record.folder.parent).read_results() or {}


def row(label: str, products: str, record: EvaluationRecord) -> dict[str, object]:
    results = {
        key: value
        for key, value in results_of(record).items()
        if not key.endswith(("/low", "/high")) and not key.startswith("segments/")
    }
    return {"arm": label, "products": products, "run": record.facts.run_id, **results}


HEADER = (
    f"| model | products | direction | runs | {' | '.join(METRICS)} |\n| --- | --- | --- | ---: "
    + "| ---: " * len(METRICS)
    + "|"
)


def table_lines(arm: RunGroup, products: str) -> Iterator[str]:
    members = [results_of(record) for record in records_of(arm)]
    for direction in dict.fromkeys(key.split("/")[1] for key in members[0] if key.startswith("val/")):
        cells = [interval([m[key] for m in members if (key := f"val/{direction}/{metric}") in m]) for metric in METRICS]
        yield f"| {arm.label} | {products} | {direction} | {len(members)} | {' | '.join(cells)} |"


def summary_lines(arms: Sequence[RunGroup], products: str, is_first: bool) -> Iterator[str]:
    members = {arm.label: [results_of(record) for record in records_of(arm)] for arm in arms}
    if is_first:
        yield f"| hit@1 | products | untouched | {' | '.join(members)} |"
        yield "| --- | --- | ---: " + "| ---: " * len(members) + "|"
    keys = dict.fromkeys(key for results in members.values() for key in results[0] if key.startswith("val/"))
    for direction in dict.fromkeys(key.split("/")[1] for key in keys):
        name = f"{direction}/hit@1"
        cells = [interval([m[f"val/{name}"] for m in results if f"val/{name}" in m]) for results in members.values()]
        untouched = [m[f"initial/{name}"] for results in members.values() for m in results if f"initial/{name}" in m]
        yield f"| {direction} | {products} | {interval(untouched)[:5]} | {' | '.join(cells)} |"


DIFFERENCES_HEADER = (
    "| | products | direction | metric | from | to | difference, 95 % | relative | p | queries |\n"
    "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def pairs_of(arms: Sequence[RunGroup], first_only: bool) -> Iterator[tuple[RunGroup, RunGroup]]:
    yield from ((arms[0], arm) for arm in arms[1:])
    if not first_only:
        yield from itertools.pairwise(arms[1:])


def difference_lines(
    pairs: Sequence[tuple[RunGroup, RunGroup]], products: str, directions: Sequence[str]
) -> Iterator[str]:
    for before, after in pairs:
        for found in compare_groups([before, after], COMPARED, directions, [], 0, 10_000).overall:
            bold = "**" if found.is_clear else ""
            ends = f"{bold}{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{bold}"
            numbers = f"{found.baseline_mean:.3f} | {found.group_mean:.3f} | {ends}"
            yield (
                f"| {after.label} - {before.label} | {products} | {found.direction} | {found.metric} | {numbers} "
                f"| {found.relative:+.1%} | {found.p_value:.4f} | {found.num_queries} |"
            )


def interval(values: list[float]) -> str:
    if not values:
        return "-"
    mean, half = mean_interval(values)
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
