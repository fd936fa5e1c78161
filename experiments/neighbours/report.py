"""Make the record's tables from its runs: hit@1 with intervals over families and seeds, and what training took.

python experiments/neighbours/report.py experiments/neighbours runs/neighbours

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

import numpy as np

from mim_lightning.analysis.record import read_record
from mim_lightning.metrics import bootstrap_intervals, paired_difference

OURS = ("ours, 3 towers", "ours, 2 towers")
METRICS = ("hit@1", "hit@10", "mrr")
NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class ArmRuns:
    """All runs of an arm, image to image; queries in ascending order of their ids."""

    costs: list[dict[str, float]]
    query_ids: list[str]
    families: list[str]  # of the relevant products, (Q,)
    scores: Mapping[str, np.ndarray]  # metric -> (S, Q)

    def interval(self, metric: str) -> str:
        low, high = bootstrap_intervals({metric: self.scores[metric]}, self.families, NUM_RESAMPLES)[metric]
        return f"{self.scores[metric].mean():.3f} [{low:.3f}, {high:.3f}]"

    def minus(self, other: "ArmRuns", metric: str) -> str:
        assert self.query_ids == other.query_ids
        found = paired_difference(self.scores[metric], other.scores[metric], self.families, NUM_RESAMPLES)
        bold = "**" if found.low > 0 or found.high < 0 else ""
        return f"{bold}{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{bold}"


def main() -> None:
    record, runs = map(Path, sys.argv[1:])
    with (runs / "products.csv").open(newline="", encoding="utf-8") as file:
        families = {row["product_id"]: row["family"] for row in csv.DictReader(file)}
    folders, facts = defaultdict[str, list[Path]](list), {}
    for path in sorted(runs.glob("*/cost.json"), key=lambda path: path.stat().st_mtime):
        facts = json.loads(path.read_text())
        folders[facts["arm"]].append(path.parent)
    arms = {name: read_arm(paths, families) for name, paths in folders.items()}
    write_results(record / "results.csv", arms)
    tables = {"table.md": [*overview(arms), "", footnote(facts)], "differences.md": differences(arms)}
    for name, lines in tables.items():
        text = "\n".join(lines) + "\n"
        (record / name).write_text(text)
        print(text)


def read_arm(folders: list[Path], families: Mapping[str, str]) -> ArmRuns:
    parts = [read_record(folder).directions["image_to_image"] for folder in folders]
    orders = [np.argsort(part.query_ids) for part in parts]
    first, order = parts[0], orders[0]
    query_ids = sorted(first.query_ids)
    assert all(sorted(part.query_ids) == query_ids for part in parts)
    return ArmRuns(
        [json.loads((folder / "cost.json").read_text()) for folder in folders],
        query_ids,
        [families[first.unit_ids[row]] for row in order],
        {name: np.stack([p.scores[name][o] for p, o in zip(parts, orders, strict=True)]) for name in METRICS},
    )


def write_results(path: Path, arms: Mapping[str, ArmRuns]) -> None:
    left_out = ("machine", "versions")
    rows = [
        {key: value for key, value in cost.items() if key not in left_out}
        | {metric: arm.scores[metric][seed_idx].mean() for metric in METRICS}
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
        cells = [arm.interval(metric) for metric in METRICS]
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
                cells = [arms[ours].minus(arm, metric) for metric in METRICS]
                yield f"| {ours} - {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
