"""Make the record's tables: hit@1 of each arm over the folds, and its difference from the base, paired by query.

python -m experiments.recipes.report experiments/recipes runs/recipes/*

A run's folder is <set>-<arm>-<fold>; those without a result are left out, and in a set, arms that lack a fold are
compared on the folds that they have. Writes results.csv (a run a row) and <set>.md (an arm a row).
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean

from experiments.query_scores import NUM_RESAMPLES, change_cell
from mim_lightning.analysis.comparison.comparison import compare_groups
from mim_lightning.analysis.record import EvaluationRecord, read_record
from mim_lightning.analysis.run_groups import RunGroup
from mim_lightning.run import Run

DIRECTIONS = ("image_to_image", "composed_to_product")
Folds = dict[int, EvaluationRecord]


def main() -> None:
    experiment, *folders = map(Path, sys.argv[1:])
    arms = defaultdict[str, dict[str, Folds]](lambda: defaultdict(dict))  # set -> arm -> fold -> record
    rows = []
    for folder in folders:
        if (folder / "results.json").is_file():
            set_name, arm, fold = folder.name.split("-")
            arms[set_name][arm][int(fold)] = read_record(folder)
            rows.append({"set": set_name, "arm": arm, "fold": fold} | (results_of(arms[set_name][arm][int(fold)])))
    with (experiment / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    for set_name, of_set in arms.items():
        text = "\n".join(table(of_set)) + "\n"
        (experiment / f"{set_name}.md").write_text(text)
        print(text)


def results_of(record: EvaluationRecord) -> dict[str, float]:
    return Run(record.facts.run_id, record.folder.parent).read_results() or {}


def minutes_of(record: EvaluationRecord) -> float:
    return results_of(record)["fit_seconds"] / 60


def table(arms: Mapping[str, Folds]) -> Iterator[str]:
    base = arms["base"]
    yield f"| arm | folds | minutes | {' | '.join(f'{name} | - base' for name in DIRECTIONS)} |"
    yield "| --- | ---: | ---: " + "| ---: | ---: " * len(DIRECTIONS) + "|"
    first = {name: [results_of(record)[f"initial/{name}/hit@1"] for record in base.values()] for name in DIRECTIONS}
    yield f"| untrained | {len(base)} | | {' | '.join(f'{mean(first[name]):.3f} | ' for name in DIRECTIONS)} |"
    for arm, folds in sorted(arms.items(), key=lambda item: item[0] != "base"):
        cells = [arm, str(len(folds)), f"{mean(minutes_of(record) for record in folds.values()):.1f}"]
        for name in DIRECTIONS:
            cells.append(f"{mean(results_of(record)[f'val/{name}/hit@1'] for record in folds.values()):.3f}")
            cells.append(difference(base, folds, name) if arm != "base" else "")
        yield f"| {' | '.join(cells)} |"


def difference(base: Folds, folds: Folds, direction: str) -> str:
    shared = sorted(base.keys() & folds.keys())
    if not shared:
        return ""
    groups = [
        RunGroup(label, {fold: (side[fold],) for fold in shared}) for label, side in (("base", base), ("arm", folds))
    ]
    (found,) = compare_groups(groups, ("hit@1",), (direction,), [], 0, NUM_RESAMPLES).overall
    return change_cell(found)


if __name__ == "__main__":
    main()
