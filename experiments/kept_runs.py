"""The runs of a record as it keeps them, so that runs can be added one by one, at other times and on other machines.

results.csv       a run a row, all that it reports
scores.parquet    a query of a run in a direction a row: what differences paired by query are made of
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mim_lightning.analysis.record import SCORE, SEGMENT, DirectionRecord, read_record
from mim_lightning.io.atomic import atomic_write
from mim_lightning.run import Run

Key = TypeVar("Key", bound=NamedTuple)
IDS = ("query_id", "unit_id")  # unit: a relevant product


@dataclass(frozen=True)
class QueryAnswers:
    """One run in one direction; row q of every column belongs to the same query. See `DirectionRecord`."""

    query_ids: Sequence[str]
    unit_ids: Sequence[str]
    scores: Mapping[str, np.ndarray]  # metric -> (Q,) float64
    segments: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, record: DirectionRecord, metrics: Sequence[str]) -> "QueryAnswers":
        scores = {name: record.scores[name] for name in metrics if name in record.scores}
        return cls(record.query_ids, record.unit_ids, scores, record.segments)


class KeptRuns(Generic[Key]):
    """The runs of a record by key, a tuple of texts that names the columns which hold it."""

    def __init__(self, experiment: Path, key: type[Key], metrics: Sequence[str]) -> None:
        """Read what `experiment` keeps of these `metrics`, if anything."""
        self._experiment, self._metrics = experiment, metrics
        self.results: dict[Key, Mapping[str, float | str]] = _read_results(experiment / "results.csv", key)
        self.answers: dict[Key, dict[str, QueryAnswers]] = _read_answers(experiment / "scores.parquet", key)

    def add(self, key: Key, folder: Path, directions: Sequence[str]) -> None:
        """Add a finished run, in place of one of the same key."""
        self.results[key] = Run(folder.name, folder).read_results() or {}
        found = read_record(folder).directions
        self.answers[key] = {name: QueryAnswers.of(found[name], self._metrics) for name in directions if name in found}

    def write(self) -> None:
        if not self.answers:
            sys.exit(f"{self._experiment}: none of the given folders is of a run with a result, and no run is kept")
        rows = [key._asdict() | self.results[key] for key in sorted(self.results)]
        table = pa.concat_tables([*map(self._table, sorted(self.answers))], promote_options="default")
        with atomic_write(self._experiment / "scores.parquet") as partial:
            pq.write_table(table, partial, compression="zstd")
        with atomic_write(self._experiment / "results.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
            writer.writeheader()
            writer.writerows(rows)

    def _table(self, key: Key) -> pa.Table:
        parts = []
        for direction, found in self.answers[key].items():
            columns = {name: [text] * len(found.query_ids) for name, text in key._asdict().items()}
            columns["direction"] = [direction] * len(found.query_ids)
            columns |= dict(zip(IDS, (list(found.query_ids), list(found.unit_ids)), strict=True))
            columns |= {SEGMENT + name: list(labels) for name, labels in found.segments.items()}
            parts.append(pa.table(columns | {SCORE + name: values for name, values in found.scores.items()}))
        return pa.concat_tables(parts, promote_options="default")


def _read_results(path: Path, key: type[Key]) -> dict[Key, Mapping[str, float | str]]:
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {key(*(row.pop(name) for name in key._fields)): row for row in csv.DictReader(file)}


def _read_answers(path: Path, key: type[Key]) -> dict[Key, dict[str, QueryAnswers]]:
    """Read runs in the order of the file; a column without a value for a direction is not one of it."""
    answers: dict[Key, dict[str, QueryAnswers]] = {}
    if not path.is_file():
        return answers
    table = pq.read_table(path)
    groups = (*key._fields, "direction")
    for group in table.group_by(groups, use_threads=False).aggregate([]).to_pylist():
        filter_ = pa.compute.scalar(True)
        for name in groups:
            filter_ = filter_ & (pa.compute.field(name) == group[name])
        rows = table.filter(filter_)
        filled = {
            name: column for name, column in zip(rows.column_names, rows.columns, strict=True) if not column.null_count
        }
        answers.setdefault(key(*(group[name] for name in key._fields)), {})[group["direction"]] = QueryAnswers(
            *(filled[name].to_pylist() for name in IDS),
            {n.removeprefix(SCORE): c.to_numpy() for n, c in filled.items() if n.startswith(SCORE)},
            {n.removeprefix(SEGMENT): c.to_pylist() for n, c in filled.items() if n.startswith(SEGMENT)},
        )
    return answers
