"""What two or more arms differ in, with how sure one can be: overall, by segment, and query by query.

Arms come in, a `Comparison` goes out; the compare door prints it as a table, a page and JSON. The first arm is the
baseline, each other arm is compared with it over the same queries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mim_lightning.analysis.comparison.changes import Change, find_changes
from mim_lightning.analysis.comparison.differences import Difference, MeasuredPair
from mim_lightning.analysis.comparison.pairing import PairedDirection, pair_direction
from mim_lightning.analysis.run_groups import Arm


@dataclass(frozen=True)
class Comparison:
    arms: tuple[Arm, ...]  # the baseline first
    overall: tuple[Difference, ...]
    by_segment: tuple[Difference, ...]
    gained: tuple[Change, ...]  # by direction and arm, the largest change first
    lost: tuple[Change, ...]
    notes: tuple[str, ...]


def compare_arms(
    arms: Sequence[Arm],
    metrics: Sequence[str] = ("hit@1",),
    directions: Sequence[str] = (),
    segments: Sequence[str] | None = None,
    num_changes: int = 8,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare every arm with the first one.

    Differences are paired by query, and queries of one product stand or fall together; an arm's runs with other
    seeds are drawn anew in every resample too. Queries change by the reciprocal rank of the first relevant
    product, mean over an arm's runs: what a shopper sees at the top counts most.

    Args:
        arms: at least two.
        metrics: keys of the records' scores.
        directions: none given, all that an arm shares with the baseline.
        segments: None, all that the records have.
        num_changes: how many queries to tell that gained, and as many that lost, by direction and arm.
        num_resamples: of bootstrap and randomisation each.
        seed: of both.

    Raises:
        ValueError: a direction, metric or segment that the runs do not share, or runs that cannot be paired.
    """
    if len(arms) < 2:
        raise ValueError(
            f"{arms[0].num_runs} runs that differ in seed or fold alone: one arm, nothing to compare it with"
        )
    overall: list[Difference] = []
    by_segment: list[Difference] = []
    gained: list[Change] = []
    lost: list[Change] = []
    notes: list[str] = []
    baseline, *others = arms
    for arm in others:
        for direction in _shared_directions(baseline, arm, directions):
            paired = pair_direction(direction, baseline, arm)
            notes += [*paired.notes, *_lonely(paired)]
            for metric in metrics:
                told = MeasuredPair(paired, metric, num_resamples, seed)
                notes += told.notes
                overall += told.overall()
                by_segment += told.by_segment(_known_segments(paired, segments))
            changes = find_changes(paired)
            gained += [change for change in changes if change.gain > 0][:num_changes]
            lost += [change for change in changes if change.gain < 0][:num_changes]
    return Comparison(
        tuple(arms), _sorted(overall), _sorted(by_segment), tuple(gained), tuple(lost), tuple(dict.fromkeys(notes))
    )


def write_json(comparison: Comparison, path: Path) -> None:
    """Write every number of a comparison; null stands where there is none."""
    content = {
        "arms": [
            {
                "label": arm.label,
                "runs": {fold: [r.facts.run_id for r in records] for fold, records in arm.records.items()},
            }
            for arm in comparison.arms
        ],
        "overall": [vars(row) | {"is_clear": row.is_clear, "relative": row.relative} for row in comparison.overall],
        "by_segment": [vars(row) | {"is_clear": row.is_clear} for row in comparison.by_segment],
        **{
            kind: [{key: value for key, value in asdict(change).items() if key != "facts"} for change in changes]
            for kind, changes in (("gained", comparison.gained), ("lost", comparison.lost))
        },
        "notes": comparison.notes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False))


def _sorted(rows: Sequence[Difference]) -> tuple[Difference, ...]:
    """Put the arms of one direction and metric side by side; everything else keeps its order."""
    places = {key: place for place, key in enumerate(dict.fromkeys((row.direction, row.metric) for row in rows))}
    return tuple(sorted(rows, key=lambda row: places[row.direction, row.metric]))


def _shared_directions(baseline: Arm, arm: Arm, wanted: Sequence[str]) -> list[str]:
    records = [record for side in (baseline, arm) for runs in side.records.values() for record in runs]
    shared = [name for name in records[0].directions if all(name in record.directions for record in records)]
    for name in wanted:
        if name not in shared:
            raise ValueError(
                f"--direction {name}: {baseline.label} and {arm.label} share {', '.join(shared) or 'none'}"
            )
    if not shared:
        raise ValueError(f"{baseline.label} and {arm.label} have no direction in common")
    return [name for name in shared if name in wanted or not wanted]


def _lonely(paired: PairedDirection) -> list[str]:
    sides = [side.label for side in (paired.before, paired.after) if len(side.parts) == 1]
    what = "one run of each fold" if len(paired.before.parts[0]) > 1 else "one run"
    told = "how much results vary with the seed is not part of the intervals"
    return [f"{label}: {what}; {told}" for label in sides]


def _known_segments(paired: PairedDirection, wanted: Sequence[str] | None) -> list[str]:
    for name in wanted or ():
        if name not in paired.segments:
            raise ValueError(f"--segments {name}: {paired.direction} has {', '.join(paired.segments) or 'none'}")
    return [name for name in paired.segments if wanted is None or name in wanted]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
