"""Comparison of run groups, each against the first: overall, by segment, and query by query."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mim_lightning.analysis.comparison.differences import Difference, MeasuredPair, QueryChange, find_changes
from mim_lightning.analysis.comparison.pairing import PairedDirection, pair_direction
from mim_lightning.analysis.run_groups import RunGroup
from mim_lightning.io.atomic import atomic_write


@dataclass(frozen=True)
class Comparison:
    """Differences between run groups, and the queries that changed most."""

    groups: tuple[RunGroup, ...]  # the baseline first
    overall: tuple[Difference, ...]
    by_segment: tuple[Difference, ...]
    gained: tuple[QueryChange, ...]  # by direction and group, the largest change first
    lost: tuple[QueryChange, ...]
    notes: tuple[str, ...]


def compare_groups(
    groups: Sequence[RunGroup],
    metrics: Sequence[str] = ("hit@1",),
    directions: Sequence[str] = (),
    segments: Sequence[str] | None = None,
    num_changes: int = 8,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare every run group with the first one.

    Differences are paired by query, with the queries of one product as a cluster; the runs of a group are resampled
    too. The change of a query is in the reciprocal rank of the first relevant product, mean over the group's runs:
    what a shopper sees at the top counts most.

    Args:
        groups: at least two.
        metrics: keys of the records' scores.
        directions: empty: all that a group shares with the baseline.
        segments: None: all that the records have.
        num_changes: number of queries that gained, and as many that lost, by direction and group.
        num_resamples: of bootstrap and randomization each.
        seed: of both.

    Raises:
        ValueError: the runs do not share a direction, metric or segment, or cannot be paired.
    """
    if len(groups) < 2:
        raise ValueError(
            f"{groups[0].num_runs} runs that differ only in seed or fold: one group, nothing to compare it with"
        )
    overall: list[Difference] = []
    by_segment: list[Difference] = []
    gained: list[QueryChange] = []
    lost: list[QueryChange] = []
    notes: list[str] = []
    baseline, *others = groups
    for group in others:
        for direction in _shared_directions(baseline, group, directions):
            paired = pair_direction(direction, baseline, group)
            notes += [*paired.notes, *_single_runs(paired)]
            for metric in metrics:
                measured = MeasuredPair(paired, metric, num_resamples, seed)
                notes += measured.notes
                overall += measured.overall()
                by_segment += measured.by_segment(_known_segments(paired, segments))
            changes = find_changes(paired)
            gained += [change for change in changes if change.gain > 0][:num_changes]
            lost += [change for change in changes if change.gain < 0][:num_changes]
    return Comparison(
        tuple(groups), _sorted(overall), _sorted(by_segment), tuple(gained), tuple(lost), tuple(dict.fromkeys(notes))
    )


def write_json(comparison: Comparison, path: Path) -> None:
    """Write all numbers of a comparison; null for nan."""
    content = {
        "arms": [
            {
                "label": group.label,
                "runs": {fold: [r.facts.run_id for r in records] for fold, records in group.records.items()},
            }
            for group in comparison.groups
        ],
        "overall": [_plain(row) | {"is_clear": row.is_clear, "relative": row.relative} for row in comparison.overall],
        "by_segment": [_plain(row) | {"is_clear": row.is_clear} for row in comparison.by_segment],
        "gained": [_plain(change) for change in comparison.gained],
        "lost": [_plain(change) for change in comparison.lost],
        "notes": comparison.notes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False), "utf-8")


def _plain(row: Difference | QueryChange) -> dict[str, Any]:
    names = {"group": "arm", "group_mean": "arm_mean"}  # in the file, since its first version
    return {names.get(key, key): value for key, value in asdict(row).items() if key != "facts"}


def _sorted(rows: Sequence[Difference]) -> tuple[Difference, ...]:
    """Put the groups of one direction and metric side by side; everything else keeps its order."""
    order = {key: idx for idx, key in enumerate(dict.fromkeys((row.direction, row.metric) for row in rows))}
    return tuple(sorted(rows, key=lambda row: order[row.direction, row.metric]))


def _shared_directions(baseline: RunGroup, group: RunGroup, wanted: Sequence[str]) -> list[str]:
    records = [record for side in (baseline, group) for runs in side.records.values() for record in runs]
    shared = [name for name in records[0].directions if all(name in record.directions for record in records)]
    for name in wanted:
        if name not in shared:
            raise ValueError(
                f"--direction {name}: {baseline.label} and {group.label} share {', '.join(shared) or 'none'}"
            )
    if not shared:
        raise ValueError(f"{baseline.label} and {group.label} have no direction in common")
    return [name for name in shared if name in wanted or not wanted]


def _single_runs(paired: PairedDirection) -> list[str]:
    sides = [side.label for side in (paired.before, paired.after) if len(side.parts) == 1]
    what = "one run of each fold" if len(paired.before.parts[0]) > 1 else "one run"
    return [f"{label}: {what}; the intervals do not include the variation between seeds" for label in sides]


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
