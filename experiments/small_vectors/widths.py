"""What `results.json` of the runs says by width: a row a run and width, and their table.

python experiments/small_vectors/widths.py runs/small_vectors/*/
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
KEY, FULL = "val/image_to_image/ndcg@10", 128


def main(folders: list[str]) -> None:
    rows = []
    for folder in folders:
        results = json.loads((Path(folder) / "results.json").read_text())
        config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
        arm = "with" if config["loss"].get("widths") else "without"
        for width in (8, 16, 32, FULL):
            key = KEY if width == FULL else f"{KEY}/width_{width}"
            facts = {"arm": arm, "seed": config["seed"], "width": width}
            rows.append(
                {**facts, "ndcg@10": results[key], "low": results[f"{key}/low"], "high": results[f"{key}/high"]}
            )
    rows.sort(key=lambda row: (row["seed"], row["width"], row["arm"]))
    with (HERE / "widths.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = {(row["seed"], row["width"], row["arm"]): row for row in rows}

    def cell(*key: object) -> str:
        row = found.get(key)  # type: ignore[call-overload]
        return f"{row['ndcg@10']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if row else "not run"

    lines = ["| seed | width | trained with widths | without |", "| ---: | ---: | ---: | ---: |"]
    for seed, width in dict.fromkeys((row["seed"], row["width"]) for row in rows):
        lines.append(f"| {seed} | {width} | {cell(seed, width, 'with')} | {cell(seed, width, 'without')} |")
    (HERE / "widths.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
