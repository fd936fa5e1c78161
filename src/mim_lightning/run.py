"""A run: a stable id made from what decides its result, and the folder that belongs to it.

A resolved config comes in, a Run goes out; the train door and sweeps use it. The same config gives the same id on
any machine, so running it again finds its own checkpoint, W&B run and result.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# what changes where a run happens or what is shown of it, not what comes out
IRRELEVANT = ("run", "paths", "logger", "callbacks")
IRRELEVANT_IN = {
    "trainer": (
        "accelerator",
        "devices",
        "num_nodes",
        "strategy",
        "log_every_n_steps",
        "enable_progress_bar",
        "enable_model_summary",
        "default_root_dir",
    ),
    "data": ("folder", "num_workers", "eval_batch_size"),
}
PENDING_ID = "pending"  # stands in conf/train.yaml until the id is known


@dataclass(frozen=True)
class Run:
    """Where everything of one run lies."""

    run_id: str
    folder: Path

    @property
    def config_path(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def results_path(self) -> Path:
        return self.folder / "results.json"

    @property
    def best_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def read_results(self) -> dict[str, float] | None:
        """Return the recorded result, or None while the run is not finished."""
        return json.loads(self.results_path.read_text()) if self.results_path.is_file() else None

    def write_results(self, results: Mapping[str, float]) -> None:
        # written aside and renamed: the file's presence says that the run is finished
        partial = self.results_path.with_suffix(".partial")
        partial.write_text(json.dumps(dict(results), indent=2))
        partial.rename(self.results_path)


def identify(config: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    """Return the run of a config, and the config with the run's id wherever it stands."""
    section = config["run"]
    run_id = section["id"]
    if run_id == PENDING_ID:
        run_id = f"{section['name']}-{_digest(config)}"
    config = _replace(config, PENDING_ID, run_id)
    return Run(run_id, Path(config["run"]["folder"])), config


def _digest(config: Mapping[str, Any]) -> str:
    relevant = copy.deepcopy({key: value for key, value in config.items() if key not in IRRELEVANT})
    for section, keys in IRRELEVANT_IN.items():
        relevant[section] = {key: value for key, value in relevant[section].items() if key not in keys}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:8]


def _replace(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _replace(part, old, new) for key, part in value.items()}
    return value.replace(old, new) if isinstance(value, str) else value
