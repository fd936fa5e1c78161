"""Make the record's tables from its runs: hit@1 with intervals over families and seeds, and what training took.

python -m experiments.neighbours.report experiments/neighbours runs/neighbours

Writes results.csv (a run a row), table.md, and differences.md: ours minus each other arm, paired by query.
"""

import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from experiments.query_scores import QueryScores
from mim_lightning.analysis.record import read_record

OURS = ("ours, 3 towers", "ours, 2 towers")
METRICS = ("hit@1", "hit@10", "mrr")


@dataclass(frozen=True)
class ArmRuns:
    """All runs of an arm, image to image."""

    costs: list[dict[str, float]]
    found: QueryScores


def main() -> None:
    record, runs = map(Path, sys.argv[1:])
    with (runs / "products.csv").open(newline="", encoding="utf-8") as file:
        families = {row["product_id"]: row["family"] for row in csv.DictReader(file)}
    folders, facts = defaultdict[str, list[Path]](list), {}
    for path in sorted(runs.glob("*/cost.json"), key=lambda path: path.stat().st_mtime):
        facts = json.loads(path.read_text())
        folders[facts["arm"]].append(path.parent)
    arms = {name: read_arm(paths, families) for name, paths in folders.items()}
    assert len({tuple(arm.found.query_ids) for arm in arms.values()}) == 1
    write_results(record / "results.csv", arms)
    tables = {"table.md": [*overview(arms), "", footnote(facts)], "differences.md": differences(arms)}
    for name, lines in tables.items():
        text = "\n".join(lines) + "\n"
        (record / name).write_text(text)
        print(text)


def read_arm(folders: list[Path], families: Mapping[str, str]) -> ArmRuns:
    found = QueryScores.of([read_record(folder).directions["image_to_image"] for folder in folders], families)
    return ArmRuns([json.loads((folder / "cost.json").read_text()) for folder in folders], found)


def write_results(path: Path, arms: Mapping[str, ArmRuns]) -> None:
    left_out = ("machine", "versions")
    rows = [
        {key: value for key, value in cost.items() if key not in left_out}
        | {metric: arm.found.scores[metric][seed_idx].mean() for metric in METRICS}
        for arm in arms.values()
        for seed_idx, cost in enumerate(arm.costs)
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, max(rows, key=len), restval="")
        writer.writeheader()
        writer.writerows(rows)


def overview(arms: Mapping[str, ArmRuns]) -> Iterator[str]:
    yield "| | runs | hit@1 | hit@10 | mrr | seconds | CPU seconds | peak memory, GiB | training adds, GiB | lines |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, arm in arms.items():
        cells = [arm.found.interval(metric) for metric in METRICS]
        trained = [cost for cost in arm.costs if "seconds" in cost]
        if trained:
            cells += [f"{median(cost[key] for cost in trained):.0f}" for key in ("seconds", "cpu_seconds")]
            cells.append(f"{max(cost['peak_gib'] for cost in trained):.2f}")
            cells.append(f"{max(cost['peak_gib'] - cost['start_gib'] for cost in trained):.2f}")
            cells.append(f"{trained[0]['lines']:.0f}")
        else:
            cells += [""] * 5
        yield f"| {name} | {len(arm.costs)} | {' | '.join(cells)} |"


def footnote(facts: Mapping[str, str | Mapping[str, str]]) -> str:
    named = ", ".join(f"{name} {number}" for name, number in dict(facts["versions"]).items())
    return f"*Image to image; times are medians, memory the largest of the runs; {facts['machine']}; {named}.*"


def differences(arms: Mapping[str, ArmRuns]) -> Iterator[str]:
    yield "| image to image | hit@1 | hit@10 | mrr |"
    yield "| --- | ---: | ---: | ---: |"
    for ours in OURS:
        for name, arm in arms.items():
            if ours in arms and name != ours and not (ours == OURS[1] and name == OURS[0]):
                cells = [arms[ours].found.minus(arm.found, metric) for metric in METRICS]
                yield f"| {ours} - {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
