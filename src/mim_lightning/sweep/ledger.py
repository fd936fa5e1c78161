"""The ledger of a sweep: a row a job, in a file that is whole at any time.

Rows come in from whatever process ran the job; `ledger.csv` in the sweep's folder goes out, and rows for the table at
the end. Each row is a file of its own, named by the run, so a job that is started again replaces its row.
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

RUNNING, FINISHED = "running", "finished"  # besides a Failure's "failed" and "pruned"
FILE = "ledger.csv"


@dataclass(frozen=True)
class Row:
    """What is known of a job; `running` after the sweep's end means that it was interrupted."""

    job: int
    overrides: dict[str, str]  # of the keys that vary
    status: str
    run_id: str = ""  # empty where no run could be made of the config
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


class Ledger:
    """The rows of the sweep whose folder this is.

    Args:
        folder: of the sweep.
        keys: what varies; each has a column.
    """

    def __init__(self, folder: Path, keys: Sequence[str] = ()) -> None:
        self.path, self.keys = folder / FILE, tuple(keys)
        self._rows = folder / "jobs"

    def read(self) -> list[Row]:
        rows = [_read_row(path) for path in self._rows.glob("*.json")]
        return sorted(rows, key=lambda row: (row.job, row.key))

    def find(self, key: str) -> Row | None:
        path = self._rows / f"{key}.json"
        return _read_row(path) if path.exists() else None

    def write(self, row: Row) -> None:
        """Put a row in its place and write the CSV file anew."""
        with lock(self._rows / ".lock"):
            with atomic_write(self._rows / f"{row.key}.json") as partial:
                partial.write_text(json.dumps(asdict(row), indent=2))
            if row.run_id:  # an earlier start may not have come as far as a run
                (self._rows / f"{row._key_without_run}.json").unlink(missing_ok=True)
            self._write_csv(self.read())

    def _write_csv(self, rows: Sequence[Row]) -> None:
        metrics = dict.fromkeys(key for row in rows for key in _metrics(row.results))
        with atomic_write(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            head = ["job", "run_id", "status", *self.keys, "monitor", "score", *metrics]
            writer.writerow([*head, "fit_seconds", "was_resumed", "reason"])
            for row in rows:
                varied = [row.overrides.get(key, "") for key in self.keys]
                numbers = [row.results.get(key, "") for key in (*metrics, "fit_seconds")]
                score = row.results.get(row.monitor, "")
                cells = [row.job, row.run_id, row.status, *varied, row.monitor, score, *numbers]
                writer.writerow(map(csv_cell, [*cells, row.was_resumed, row.reason]))


def _metrics(results: Mapping[str, float]) -> list[str]:
    """Return the keys of validation metrics, without the ends of their intervals."""
    return [key for key in results if key.startswith("val/") and key.count("/") == 2]


def _read_row(path: Path) -> Row:
    with errors_as_damaged_file(path, "remove it, and the job is run again"):
        row = Row(**json.loads(path.read_text()))
        if not isinstance(row.overrides, dict) or not isinstance(row.results, dict):
            raise TypeError("no row of a ledger")
        return row
