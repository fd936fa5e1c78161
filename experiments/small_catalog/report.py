"""Make the record's tables: means and 95 % intervals over the subsets of a set (Student's t), paired by subset.

python experiments/small_catalog/report.py experiments/small_catalog runs/small_catalog/*

A run's folder is <recipe>-<model>-<set>-<k>; what it found before its first step is the arm "untouched".

Writes results.csv (a run a row), table.md (hit@1 by set and direction, an arm a column) and differences.md.
"""

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from mim_lightning.run import Run
from mim_lightning.sweep.summary import mean_interval

DIRECTIONS = (
    "image_to_image",
    "image_to_text",
    "image_to_product",
    "text_to_product",
    "composed_to_product",
    "composed_to_other_product",
    "image_to_asked_product",
)
COMPARED = [  # one arm minus another, in these directions
    ("small_catalog 4tower", "small_catalog 4tower, untouched", DIRECTIONS),
    (
        "small_catalog 3tower",
        "small_catalog 3tower, untouched",
        ("image_to_image", "image_to_text", "image_to_product"),
    ),
    ("small_catalog 4tower", "grocery 4tower", DIRECTIONS),
    ("small_catalog 3tower", "small_catalog 2tower", ("image_to_image",)),
    ("small_catalog 4tower", "small_catalog 2tower", ("image_to_image",)),
]
PARTS = ("text_to_product", "image_to_asked_product")  # of composed_to_product
Values = Mapping[tuple[str, str, str], Mapping[str, float]]  # arm, set, direction -> subset -> hit@1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="folder of the record")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs; those without a result are left out")
    arguments = parser.parse_args()
    rows, values = [], defaultdict[tuple[str, str, str], dict[str, float]](dict)
    for folder in arguments.runs:
        if not (folder / "results.json").is_file():
            continue
        recipe, model, subset = folder.name.split("-", 2)
        results = Run(folder.name, folder).read_results() or {}
        rows.append({"arm": f"{recipe} {model}", "subset": subset, **results})
        for direction in DIRECTIONS:
            for stage, arm in (("val", f"{recipe} {model}"), ("initial", f"{recipe} {model}, untouched")):
                if (key := f"{stage}/{direction}/hit@1") in results:
                    values[arm, subset.split("-")[0], direction][subset] = results[key]
    with (arguments.experiment / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    for name, lines in (("table.md", table_lines(values)), ("differences.md", difference_lines(values))):
        text = "\n".join(lines) + "\n"
        (arguments.experiment / name).write_text(text)
        print(text)


def table_lines(values: Values) -> Iterator[str]:
    arms = list(dict.fromkeys(arm for arm, _, _ in values))
    yield f"| set | direction, hit@1 | {' | '.join(arms)} |"
    yield "| --- | --- " + "| ---: " * len(arms) + "|"
    for kind in sorted({kind for _, kind, _ in values}):
        for direction in DIRECTIONS:
            found = [values.get((arm, kind, direction), {}) for arm in arms]
            if any(found):
                yield f"| {kind} | {direction} | {' | '.join(shown(list(part.values())) for part in found)} |"


def difference_lines(values: Values) -> Iterator[str]:
    yield "| set | direction, hit@1 | | from | to | difference, 95 % | subsets |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    for kind in sorted({kind for _, kind, _ in values}):
        compared = [((arm, kind, d), (other, kind, d)) for arm, other, ds in COMPARED for d in ds]
        both = ("small_catalog 4tower", kind, "composed_to_product")
        compared += [(both, (both[0], kind, part)) for part in PARTS]
        for after, before in compared:
            one, other = values.get(after, {}), values.get(before, {})
            subsets = sorted({*one} & {*other})
            if subsets:
                means = [sum(part[subset] for subset in subsets) / len(subsets) for part in (other, one)]
                name = after[2] if after[2] == before[2] else f"{after[2]} - {before[2]}"
                what = f"{after[0]} - {before[0]}" if after[0] != before[0] else after[0]
                difference = shown([one[subset] - other[subset] for subset in subsets], "+.3f")
                ends = f"{means[0]:.3f} | {means[1]:.3f} | {difference}"
                yield f"| {kind} | {name} | {what} | {ends} | {len(subsets)} |"


def shown(values: list[float], style: str = ".3f") -> str:
    if not values:
        return "-"
    mean, half = mean_interval(values)
    return f"{mean:{style}}" if math.isnan(half) else f"{mean:{style}} ± {half:.3f}"


if __name__ == "__main__":
    main()
