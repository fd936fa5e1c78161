"""Tabulate what the checkpoints of the record say of the former gallery: one row a seed and arm, and cross.csv."""

import argparse
import csv
from dataclasses import asdict
from pathlib import Path

from mim_lightning.model.checkpoint import load_matcher
from mim_lightning.model.compatibility import deciding_result

HEADER = (
    "| new model | seed | direction | old/old | new/old | difference, 95 % | may search the old index | queries |\n"
    "| --- | ---: | --- | ---: | ---: | ---: | --- | ---: |"
)
DIRECTIONS = ("query_to_product", "image_to_product", "composed_to_product")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    lines, rows = [HEADER], []
    for folder in sorted(parser.parse_args().runs.glob("*-[0-9]*")):
        kind, _, seed = folder.name.rpartition("-")
        if kind not in ("plain", "compatible"):
            continue
        for results in load_matcher(folder / "checkpoints" / "last.ckpt").galleries.values():
            decides = deciding_result(results, "product")
            for result in results:
                rows.append({"arm": kind, "seed": seed, **asdict(result)})
                if result.direction in DIRECTIONS:
                    allowed = ("yes" if result.is_allowed else "no") if result == decides else ""
                    difference = f"{result.value - result.former:+.3f} [{result.low:+.3f}, {result.high:+.3f}]"
                    lines.append(
                        f"| {kind} | {seed} | {result.direction} | {result.former:.3f} | {result.value:.3f} "
                        f"| {difference} | {allowed} | {result.num_queries} |"
                    )
    here = Path(__file__).parent
    (here / "cross.md").write_text("\n".join(lines) + "\n")
    with (here / "cross.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
