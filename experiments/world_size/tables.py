"""The table of this record: differences between two processes and one, in weights and in results.

python experiments/world_size/tables.py runs/world_size
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
EXEMPT = ("fit_seconds",)  # what the clock decides


def main(runs: Path) -> None:
    rows = [
        "| rows an epoch | in the last batch | arithmetic | furthest weight | results that differ | furthest result |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for queries in sorted(path for path in runs.glob("[0-9]*") if path.is_dir()):
        num_rows = 61 * int(queries.name)
        for precision in ("32-true", "64-true"):
            one, two = (_only_run(queries / precision / devices) for devices in ("1", "2"))
            weights = _furthest(_weights(one), _weights(two))
            results, others = _results(one), _results(two)
            apart = [abs(value - others[key]) for key, value in results.items()]
            rows.append(
                f"| {num_rows} | {num_rows % 64} | float{precision[:2]} | {weights:.1e} | "
                f"{sum(value > 0 for value in apart)} of {len(apart)} | {max(apart):.3f} |"
            )
    (HERE / "table.md").write_text("\n".join(rows) + "\n")


def _only_run(folder: Path) -> Path:
    (run,) = (path.parent for path in folder.glob("*/results.json"))
    return run


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]


def _furthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(float((value - two[name]).abs().max()) for name, value in one.items())


def _results(run: Path) -> dict[str, float]:
    results = json.loads((run / "results.json").read_text())
    return {key: value for key, value in results.items() if key not in EXEMPT}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
