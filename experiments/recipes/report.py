"""Make the record's tables: hit@1 of each arm over the folds, and its difference from the base, paired by query.

python -m experiments.recipes.report experiments/recipes runs/recipes/*

A run's folder is <set>-<arm>-<fold>; those without a result are left out. What the record holds of other runs stays, so
that folds and arms can be added one by one. An arm that lacks a fold is compared on the folds that it has. Writes what
`KeptRuns` keeps, and <set>.md (an arm a row).
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from experiments.kept_runs import KeptRuns
from experiments.query_scores import NUM_RESAMPLES, change_cell
from mim_lightning.metrics import paired_difference

METRIC = "hit@1"
DIRECTIONS = ("image_to_image", "composed_to_product")


class Arm(NamedTuple):
    """One run of the record."""

    set: str
    arm: str
    fold: str


def main() -> None:
    experiment, *folders = map(Path, sys.argv[1:])
    runs = KeptRuns(experiment, Arm, [METRIC])
    for folder in folders:
        if (folder / "results.json").is_file():
            runs.add(Arm(*folder.name.split("-")), folder, DIRECTIONS)
    runs.write()
    for name in sorted({run.set for run in runs.answers}):
        unscored = sorted({run.arm for run in runs.results if run.set == name and run not in runs.answers})
        if unscored:
            print(f"{name}.md stays as it is: no scores are kept of {', '.join(unscored)}; run these arms again too")
            continue
        text = "\n".join(table(name, runs)) + "\n"
        (experiment / f"{name}.md").write_text(text)
        print(text)


def table(name: str, kept: KeptRuns[Arm]) -> Iterator[str]:
    """Yield the lines of a set's table, of the runs of which every query's score is known."""
    arms: dict[str, list[Arm]] = {"base": []}
    for run in sorted(run for run in kept.answers if run.set == name):
        arms.setdefault(run.arm, []).append(run)
    yield f"| arm | folds | minutes | {' | '.join(f'{direction} | - base' for direction in DIRECTIONS)} |"
    yield "| --- | ---: | ---: " + "| ---: | ---: " * len(DIRECTIONS) + "|"
    first = [f"{average(kept, arms['base'], f'initial/{direction}/{METRIC}'):.3f} | " for direction in DIRECTIONS]
    yield f"| untrained | {folds(arms['base'])} | | {' | '.join(first)} |"
    for arm, runs in arms.items():
        cells = [arm, folds(runs), f"{average(kept, runs, 'fit_seconds') / 60:.1f}"]
        for direction in DIRECTIONS:
            cells.append(f"{average(kept, runs, f'val/{direction}/{METRIC}'):.3f}")
            cells.append("" if arm == "base" else difference(kept, runs, direction))
        yield f"| {' | '.join(cells)} |"


def folds(runs: list[Arm]) -> str:
    return ", ".join(run.fold for run in runs)


def average(kept: KeptRuns[Arm], runs: list[Arm], key: str) -> float:
    return mean(float(kept.results[run][key]) for run in runs)


def difference(kept: KeptRuns[Arm], runs: list[Arm], direction: str) -> str:
    """Return runs minus those of the base on the same folds; clusters are products."""
    pairs = []
    for run in runs:
        base = kept.answers.get(run._replace(arm="base"), {}).get(direction)
        if base is not None:
            score_of = dict(zip(base.query_ids, base.scores[METRIC], strict=True))
            mine = kept.answers[run][direction]
            rows = zip(mine.query_ids, mine.scores[METRIC], mine.unit_ids, strict=True)
            pairs += [(score, score_of[query], product) for query, score, product in rows if query in score_of]
    if not pairs:
        return ""
    left, right, products = zip(*pairs, strict=True)
    return change_cell(paired_difference(left, right, np.array(products), NUM_RESAMPLES))


if __name__ == "__main__":
    main()
