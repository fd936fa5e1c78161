"""Which evaluations answer the same question: runs that differ in seed and fold alone form one arm.

EvaluationRecords come in, `Arm`s with labels go out; the compare door calls it. The keys that are no part of a
run's result come from `run`, which decides run ids by them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_lightning.analysis.record import RECORD_FOLDER, EvaluationRecord

FOLD_KEY = "data.protocol.fold"
REPEATED = ("seed", "data.seed", FOLD_KEY, "data.protocol.label")  # what tells the runs of one arm apart
MAX_KEYS_IN_LABEL = 3

Leaves = dict[str, Any]  # config by dotted key


@dataclass(frozen=True)
class Arm:
    """One side of a comparison; within a fold, the runs ascend by seed."""

    label: str
    records: dict[int, tuple[EvaluationRecord, ...]]  # by fold, 0 where the data have no folds

    @property
    def run_ids(self) -> list[str]:
        return [record.facts.run_id for records in self.records.values() for record in records]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed_of(record) for records in self.records.values() for record in records})

    @property
    def num_runs(self) -> int:
        return len(self.run_ids)

    def describe(self) -> str:
        """Return how many runs there are, with their seeds and folds: "3 runs, seeds 1, 2, 3"."""

        def count(name: str, values: Collection[int]) -> str:
            return f"{name}{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}"

        folds = f", {count('fold', self.records)}" if len(self.records) > 1 else ""
        return f"{self.num_runs} run{'s' if self.num_runs > 1 else ''}, {count('seed', self.seeds)}{folds}"


def seed_of(record: EvaluationRecord) -> int:
    return int(record.facts.config.get("seed", 0))


def group_arms(records: Sequence[EvaluationRecord], irrelevant: Collection[str] = ()) -> list[Arm]:
    """Sort evaluations into arms, in the order in which their first run was given.

    Evaluations of equal config, seed and fold but other weights (another checkpoint of one run) go to arms of
    their own. An arm is called by its model's name, by the config keys that set it apart, or by both.

    Args:
        records: as given on the command line.
        irrelevant: dotted keys, or starts of them, that do not decide a run's result.

    Raises:
        ValueError: a record is given twice.
    """
    _refuse_repeats(records)
    leaves = [_leaves(record, irrelevant) for record in records]
    arms: dict[str, list[int]] = {}
    seen: Counter[str] = Counter()
    for place, (record, keys) in enumerate(zip(records, leaves, strict=True)):
        config = json.dumps(keys, sort_keys=True, default=str)
        run = f"{config} {seed_of(record)} {_fold_of(record)}"
        arms.setdefault(f"{config} {seen[run]}", []).append(place)
        seen[run] += 1
    members = list(arms.values())
    labels = _labels([records[places[0]] for places in members], [leaves[places[0]] for places in members])
    return [
        Arm(label, _by_fold([records[place] for place in places]))
        for label, places in zip(labels, members, strict=True)
    ]


def _refuse_repeats(records: Sequence[EvaluationRecord]) -> None:
    seen: dict[Path, EvaluationRecord] = {}
    for record in records:
        path = record.folder.resolve()
        if path in seen:
            raise ValueError(f"{record.folder}: given twice")
        seen[path] = record


def _fold_of(record: EvaluationRecord) -> int:
    protocol = record.facts.config.get("data", {}).get("protocol") or {}
    return int(protocol.get("fold", 0))


def _by_fold(records: Sequence[EvaluationRecord]) -> dict[int, tuple[EvaluationRecord, ...]]:
    folds = sorted({_fold_of(record) for record in records})
    return {fold: tuple(sorted((r for r in records if _fold_of(r) == fold), key=seed_of)) for fold in folds}


def _leaves(record: EvaluationRecord, irrelevant: Collection[str]) -> Leaves:
    dropped = (*REPEATED, *irrelevant)
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
    return {key: _without_place(value) if isinstance(value, str) else value}


def _without_place(text: str) -> str:
    """Cut a path to what it names: folders differ between machines, and a run to start from between seeds and folds."""
    path = Path(text)
    if path.suffix == ".ckpt" and path.parent.name == "checkpoints":
        return re.sub(r"(-fold\d+of\d+)?-seed\d+(-[0-9a-f]{8})?$", "", path.parents[1].name) + f"/{path.name}"
    return path.name if path.is_absolute() else text


def _labels(records: Sequence[EvaluationRecord], leaves: Sequence[Leaves]) -> list[str]:
    names = [str(keys.get("model.name", "")) for keys in leaves]
    labels = []
    for name, own in zip(names, leaves, strict=True):
        namesakes = [keys for other, keys in zip(names, leaves, strict=True) if other == name]
        told = _describe(own, namesakes)
        parts = [name] if len(set(names)) > 1 or not told else []
        labels.append(" ".join([*parts, *told]))
    counts = Counter(labels)
    return [
        label if label and counts[label] == 1 else f"{label} ({_folder_name(record)})".lstrip()
        for label, record in zip(labels, records, strict=True)
    ]


def _folder_name(record: EvaluationRecord) -> str:
    folder = record.folder.resolve()
    return folder.parent.name if folder.name == RECORD_FOLDER else folder.name


def _describe(own: Leaves, others: Sequence[Leaves]) -> list[str]:
    """Return "key=value" for what this config has and not all of the others share, the shortest keys first.

    Where that is a lot, as in ablations, what it has otherwise than the first of them: nothing for that one.
    """
    keys = {key for other in others for key in {*own, *other} if own.get(key) != other.get(key)}
    if len(keys) > MAX_KEYS_IN_LABEL:
        keys = {key for key in keys if own.get(key) != others[0].get(key)}
    ordered = sorted(keys, key=lambda key: (key.endswith("_target_"), key.count("."), key))
    told = [_tell(key, own.get(key)) for key in ordered[:MAX_KEYS_IN_LABEL]]
    return [*told, f"+{len(keys) - MAX_KEYS_IN_LABEL}"] if len(keys) > MAX_KEYS_IN_LABEL else told


def _tell(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f"{'.'.join(key.split('.')[-2:])}={text.rsplit('.', 1)[-1] if key.endswith('_target_') else text}"
