"""Run groups: evaluations of runs that differ only in seed or fold, which answer one question together.

Which config keys do not decide a result is a parameter: `run.PLACEMENT_KEYS`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.artifact_paths import RECORD_FOLDER
from mim_lightning.repetitions import REPEATED_KEYS, fold_of, seed_of

MAX_KEYS_IN_LABEL = 3

Leaves = dict[str, Any]  # config by dotted key


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in seed or fold; within a fold they ascend by seed."""

    label: str
    records: dict[int, tuple[EvaluationRecord, ...]]  # by fold; 0 if the data have no folds

    @property
    def run_ids(self) -> list[str]:
        return [record.facts.run_id for records in self.records.values() for record in records]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed_of(record.facts.config) for records in self.records.values() for record in records})

    @property
    def num_runs(self) -> int:
        return len(self.run_ids)

    def describe(self) -> str:
        """Return the number of runs, with their seeds and folds: "3 runs, seeds 1, 2, 3"."""

        def listed(name: str, values: Collection[int]) -> str:
            return f"{name}{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}"

        folds = f", {listed('fold', self.records)}" if len(self.records) > 1 else ""
        return f"{self.num_runs} run{'s' if self.num_runs > 1 else ''}, {listed('seed', self.seeds)}{folds}"


def group_runs(records: Sequence[EvaluationRecord], ignored_keys: Collection[str] = ()) -> list[RunGroup]:
    """Group evaluations, in the order of the first run of each group.

    Evaluations of equal config, seed and fold but other weights (another checkpoint of one run) are in different
    groups. The label of a group is the model's name, the config keys that distinguish it, or both.

    Args:
        records: in the order of the command line.
        ignored_keys: dotted keys, or prefixes of them, that do not decide a run's result.

    Raises:
        ValueError: a record is given twice.
    """
    _validate_distinct(records)
    leaves = [_leaves(record, ignored_keys) for record in records]
    groups: dict[str, list[int]] = {}
    seen: Counter[str] = Counter()
    for idx, (record, keys) in enumerate(zip(records, leaves, strict=True)):
        config = json.dumps(keys, sort_keys=True, default=str)
        run = f"{config} {seed_of(record.facts.config)} {fold_of(record.facts.config)}"
        groups.setdefault(f"{config} {seen[run]}", []).append(idx)
        seen[run] += 1
    members = list(groups.values())
    labels = _labels([records[rows[0]] for rows in members], [leaves[rows[0]] for rows in members])
    return [
        RunGroup(label, _by_fold([records[row] for row in rows])) for label, rows in zip(labels, members, strict=True)
    ]


def _validate_distinct(records: Sequence[EvaluationRecord]) -> None:
    seen: dict[Path, EvaluationRecord] = {}
    for record in records:
        path = record.folder.resolve()
        if path in seen:
            raise ValueError(f"{record.folder}: is given twice")
        seen[path] = record


def _by_fold(records: Sequence[EvaluationRecord]) -> dict[int, tuple[EvaluationRecord, ...]]:
    by_fold: dict[int, list[EvaluationRecord]] = {}
    for record in sorted(records, key=lambda record: seed_of(record.facts.config)):
        by_fold.setdefault(fold_of(record.facts.config), []).append(record)
    return {fold: tuple(by_fold[fold]) for fold in sorted(by_fold)}


def _leaves(record: EvaluationRecord, ignored_keys: Collection[str]) -> Leaves:
    dropped = (*REPEATED_KEYS, *ignored_keys)
    return {
        key: value
        for key, value in _flatten(record.facts.config).items()
        if not any(key == name or key.startswith(f"{name}.") for name in dropped)
    }


def _flatten(value: Any, key: str = "") -> Leaves:
    if isinstance(value, Mapping) and value:
        return {
            k: leaf for name, part in value.items() for k, leaf in _flatten(part, f"{key}.{name}".lstrip(".")).items()
        }
    return {key: _without_folder(value) if isinstance(value, str) else value}


def _without_folder(text: str) -> str:
    """Shorten a path to what it names: folders differ between machines, initial checkpoints between seeds and folds."""
    path = Path(text)
    if path.suffix == ".ckpt" and path.parent.name == "checkpoints":
        return re.sub(r"(-fold\d+of\d+)?-seed\d+(-[0-9a-f]{8})?$", "", path.parents[1].name) + f"/{path.name}"
    return path.name if path.is_absolute() else text


def _labels(records: Sequence[EvaluationRecord], leaves: Sequence[Leaves]) -> list[str]:
    names = [str(keys.get("model.name", "")) for keys in leaves]
    labels = []
    for name, own in zip(names, leaves, strict=True):
        namesakes = [keys for other, keys in zip(names, leaves, strict=True) if other == name]
        differences = _differing_keys(own, namesakes)
        parts = [name] if len(set(names)) > 1 or not differences else []
        labels.append(" ".join([*parts, *differences]))
    counts = Counter(labels)
    return [
        label if label and counts[label] == 1 else f"{label} ({_folder_name(record)})".lstrip()
        for label, record in zip(labels, records, strict=True)
    ]


def _folder_name(record: EvaluationRecord) -> str:
    folder = record.folder.resolve()
    return folder.parent.name if folder.name == RECORD_FOLDER else folder.name


def _differing_keys(own: Leaves, others: Sequence[Leaves]) -> list[str]:
    """Return "key=value" for each key whose value differs between the configs, the shortest keys first.

    If there are many, as in ablations: only keys that differ from the first config, so none for that one.
    """
    keys = {key for other in others for key in {*own, *other} if own.get(key) != other.get(key)}
    if len(keys) > MAX_KEYS_IN_LABEL:
        keys = {key for key in keys if own.get(key) != others[0].get(key)}
    ordered = sorted(keys, key=lambda key: (key.endswith("_target_"), key.count("."), key))
    texts = [_key_and_value(key, own.get(key)) for key in ordered[:MAX_KEYS_IN_LABEL]]
    return [*texts, f"+{len(keys) - MAX_KEYS_IN_LABEL}"] if len(keys) > MAX_KEYS_IN_LABEL else texts


def _key_and_value(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f"{'.'.join(key.split('.')[-2:])}={text.rsplit('.', 1)[-1] if key.endswith('_target_') else text}"
