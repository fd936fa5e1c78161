"""Make the record's tables: hit@1 of each arm over the folds, and its difference from the base, paired by query.

python -m experiments.recipes.report experiments/recipes runs/recipes/*

A run's folder is <set>-<arm>-<fold>; those without a result are left out. What the record holds of other runs stays, so
that folds and arms can be added one by one. An arm that lacks a fold is compared on the folds that it has. Writes
results.csv (a run a row), scores.parquet (a query of a run a row) and <set>.md (an arm a row).
"""

import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.query_scores import NUM_RESAMPLES, change_cell
from mim_lightning.analysis.record import read_record
from mim_lightning.metrics import paired_difference
from mim_lightning.run import Run

METRIC = "hit@1"
DIRECTIONS = ("image_to_image", "composed_to_product")


class Arm(NamedTuple):
    """One run of the record."""

    set: str
    arm: str
    fold: str


class Answer(NamedTuple):
    """What a run found for a query."""

    direction: str
    query_id: str
    product_id: str
    score: float


Results = dict[Arm, Mapping[str, float | str]]
Answers = dict[Arm, list[Answer]]


def main() -> None:
    experiment, *folders = map(Path, sys.argv[1:])
    results, answers = read_results(experiment / "results.csv"), read_answers(experiment / "scores.parquet")
    for folder in folders:
        if (folder / "results.json").is_file():
            run = Arm(*folder.name.split("-"))
            results[run], answers[run] = Run(folder.name, folder).read_results() or {}, [*answers_of(folder)]
    write_results(experiment / "results.csv", results)
    write_answers(experiment / "scores.parquet", answers)
    for name in sorted({run.set for run in answers}):
        text = "\n".join(table(name, results, answers)) + "\n"
        (experiment / f"{name}.md").write_text(text)
        print(text)


def answers_of(folder: Path) -> Iterator[Answer]:
    for name in DIRECTIONS:
        found = read_record(folder).directions[name]
        for row in zip(found.query_ids, found.unit_ids, found.scores[METRIC].tolist(), strict=True):
            yield Answer(name, *row)


def read_results(path: Path) -> Results:
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {Arm(*(row.pop(key) for key in Arm._fields)): row for row in csv.DictReader(file)}


def write_results(path: Path, results: Results) -> None:
    rows = [run._asdict() | results[run] for run in sorted(results)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_answers(path: Path) -> Answers:
    answers: Answers = {}
    for row in pq.read_table(path).to_pylist() if path.is_file() else ():
        run = Arm(*(row.pop(key) for key in Arm._fields))
        answers.setdefault(run, []).append(Answer(**row))
    return answers


def write_answers(path: Path, answers: Answers) -> None:
    rows = [run._asdict() | answer._asdict() for run in sorted(answers) for answer in answers[run]]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def table(name: str, results: Results, answers: Answers) -> Iterator[str]:
    """Yield the lines of a set's table, of the runs of which every query's score is known."""
    arms: dict[str, list[Arm]] = {"base": []}
    for run in sorted(run for run in answers if run.set == name):
        arms.setdefault(run.arm, []).append(run)
    yield f"| arm | folds | minutes | {' | '.join(f'{direction} | - base' for direction in DIRECTIONS)} |"
    yield "| --- | ---: | ---: " + "| ---: | ---: " * len(DIRECTIONS) + "|"
    first = [f"{average(results, arms['base'], f'initial/{direction}/{METRIC}'):.3f} | " for direction in DIRECTIONS]
    yield f"| untrained | {len(arms['base'])} | | {' | '.join(first)} |"
    for arm, runs in arms.items():
        cells = [arm, str(len(runs)), f"{average(results, runs, 'fit_seconds') / 60:.1f}"]
        for direction in DIRECTIONS:
            cells.append(f"{average(results, runs, f'val/{direction}/{METRIC}'):.3f}")
            cells.append("" if arm == "base" else difference(answers, runs, direction))
        yield f"| {' | '.join(cells)} |"


def average(results: Results, runs: list[Arm], key: str) -> float:
    return mean(float(results[run][key]) for run in runs)


def difference(answers: Answers, runs: list[Arm], direction: str) -> str:
    """Return runs minus those of the base on the same folds; clusters are products."""
    pairs = []
    for run in runs:
        base = {row.query_id: row for row in answers.get(run._replace(arm="base"), ()) if row.direction == direction}
        mine = [row for row in answers[run] if row.direction == direction and row.query_id in base]
        pairs += [(row.score, base[row.query_id].score, row.product_id) for row in mine]
    if not pairs:
        return ""
    left, right, products = zip(*pairs, strict=True)
    return change_cell(paired_difference(left, right, np.array(products), NUM_RESAMPLES))


if __name__ == "__main__":
    main()
