"""The job log of a sweep: `ledger.csv` in its folder, with one row for each job, complete at any time.

Each row is also a JSON file named by its run: a job that is started again replaces its row. Any number of processes
write to one log.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mim_lightning.display.text import csv_cell
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.locks import lock

RUNNING, FINISHED = "running", "finished"  # besides "failed" and "pruned", see `ErrorReport.status`
FILE = "ledger.csv"


@dataclass(frozen=True)
class JobRecord:
    """State of a job; `running` after the end of the sweep means that it was interrupted."""

    job: int
    overrides: dict[str, str]  # of the keys that vary
    status: str
    run_id: str = ""  # empty if the config is invalid
    monitor: str = ""
    results: dict[str, float] = field(default_factory=dict)
    was_resumed: bool = False
    reason: str = ""

    @property
    def key(self) -> str:
        return self.run_id or self._key_without_run

    @property
    def _key_without_run(self) -> str:
        return f"no-run-{hashlib.sha256(json.dumps(self.overrides, sort_keys=True).encode()).hexdigest()[:8]}"

    @property
    def label(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.overrides.items())


class JobLog:
    """The log of the sweep in a folder.

    Args:
        folder: of the sweep.
        keys: that vary; each has a column.
    """

    def __init__(self, folder: Path, keys: Sequence[str] = ()) -> None:
        self.path, self.keys = folder / FILE, tuple(keys)
        self._folder = folder / "jobs"

    def read(self) -> list[JobRecord]:
        records = [_read_record(path) for path in self._folder.glob("*.json")]
        return sorted(records, key=lambda record: (record.job, record.key))

    def find(self, key: str) -> JobRecord | None:
        path = self._folder / f"{key}.json"
        return _read_record(path) if path.exists() else None

    def write(self, record: JobRecord) -> None:
        """Add or replace the row of a job, and rewrite the CSV file."""
        with lock(self._folder / ".lock"):
            with atomic_write(self._folder / f"{record.key}.json") as partial:
                partial.write_text(json.dumps(asdict(record), indent=2))
            if record.run_id:  # an earlier start may have failed before it had a run
                (self._folder / f"{record._key_without_run}.json").unlink(missing_ok=True)
            self._write_csv(self.read())

    def _write_csv(self, records: Sequence[JobRecord]) -> None:
        metrics = dict.fromkeys(key for record in records for key in _metrics(record.results))
        with atomic_write(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            head = ["job", "run_id", "status", *self.keys, "monitor", "score", *metrics]
            writer.writerow([*head, "fit_seconds", "was_resumed", "reason"])
            for record in records:
                varied = [record.overrides.get(key, "") for key in self.keys]
                numbers = [record.results.get(key, "") for key in (*metrics, "fit_seconds")]
                score = record.results.get(record.monitor, "")
                cells = [record.job, record.run_id, record.status, *varied, record.monitor, score, *numbers]
                writer.writerow(map(csv_cell, [*cells, record.was_resumed, record.reason]))


def _metrics(results: Mapping[str, float]) -> list[str]:
    """Return the keys of validation metrics, without those of their intervals."""
    return [key for key in results if key.startswith("val/") and key.count("/") == 2]


def _read_record(path: Path) -> JobRecord:
    with errors_as_damaged_file(path, "remove it, and the job runs again"):
        record = JobRecord(**json.loads(path.read_text()))
        if not isinstance(record.overrides, dict) or not isinstance(record.results, dict):
            raise TypeError("is not a row of a job log")
        return record
