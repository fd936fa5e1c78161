"""python -m mim_lightning.plot <run> ... --output <folder>: figures of one run, or of several side by side.

    python -m mim_lightning.plot runs/4tower-... --output figures
    python -m mim_lightning.plot runs/2tower-* runs/3tower-* runs/4tower-* --output figures --only curves,hits
    python -m mim_lightning.plot runs/4tower-... --output figures --only map --sides query_image,product

curves.png: a metric by epoch, from the untouched model on; losses.png: by pair, with the logit scale; hits.png: the
same queries answered by up to five models; map-<model>.png: the embedding space. Runs that differ in seed or fold
alone are one model. A run that still trains has curves and losses.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.command import CommandParser, count, run_command, words
from mim_lightning.display.text import plain
from mim_lightning.fields import IMAGE_FIELDS

if TYPE_CHECKING:
    from mim_lightning.analysis.record import EvaluationRecord


def main() -> None:
    run_command(_parser(), draw)


def draw(runs: Sequence[Path], output: Path, only: Sequence[str] = (), **wishes: Any) -> None:
    """Write the figures named in `only` into `output`; without any, all that the runs have what it takes for.

    `wishes` are the fields of `evidence.figures.of_runs.Wishes`.
    """
    # imported here, so that a wrong word on the command line is told at once
    from mim_lightning.analysis.figures.save import PAINTERS, Wishes, arms_of
    from mim_lightning.run import PLACEMENT_KEYS

    unknown = [name for name in only if name not in PAINTERS]
    if unknown:
        raise ValueError(f"--only {unknown[0]}: no such figure; there are {', '.join(PAINTERS)}")
    arms = arms_of([_read(folder) for folder in runs], PLACEMENT_KEYS)
    for arm in arms:
        print(plain(f"{arm.label}: {arm.describe()}", 1_000))
    paths, reasons = [], []
    for name in only or PAINTERS:
        try:
            paths += PAINTERS[name](arms, Wishes(**wishes), output)
        except ValueError as error:
            if only:
                raise
            reasons.append(str(error))
            print(f"{name} left out: {error}")
    if not paths:
        raise ValueError(f"nothing could be drawn: {reasons[0]}")
    print(f"figures: {', '.join(map(str, paths))}")


def _read(folder: Path) -> EvaluationRecord:
    """Read a run's record, or of a run without one what its config tells."""
    from mim_lightning.analysis.record import RECORD_FOLDER, EvaluationRecord, RunFacts, read_record
    from mim_lightning.config import load_stored_config

    if (folder / RECORD_FOLDER).is_dir() or not (folder / "config.yaml").is_file():
        return read_record(folder)
    config = load_stored_config(folder / "config.yaml")
    data = config["data"]
    facts = RunFacts(config["run"]["id"], config, "", config["monitor"], data["folder"], data["val_split"])
    return EvaluationRecord(folder / RECORD_FOLDER, facts, {})


def _parser() -> CommandParser:
    parser = CommandParser("draw", __doc__)
    parser.usage = "%(prog)s <run> ... --output <folder> [options]"
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="run", help="folder of a run or of an evaluation")
    add("--output", type=Path, required=True, metavar="FOLDER", help="where to leave the figures")
    add("--only", type=words, default=[], metavar="NAMES", help="some of curves,losses,hits,map; default: all")
    add("--metric", help="of the curves; default: the monitored one")
    add("--direction", help="of the hits; default: the monitored one")
    add("--num-queries", type=count, default=8, metavar="N", help="rows of hits (8)")
    add("--num-hits", type=count, metavar="N", help="of a model and query; default: as many as can be read")
    add("--sides", type=_sides, default=IMAGE_FIELDS, metavar="QUERY,PRODUCT", help=(
        "towers or fusions on the map; default: query_image,product_image"
    ))  # fmt: skip
    add("--num-points", type=count, default=1500, metavar="N", help="on the map, at most (1500)")
    add("--seed", type=int, default=0, metavar="N", help="of the queries and points that are chosen (0)")
    return parser


def _sides(text: str) -> tuple[str, str]:
    sides = words(text)
    if len(sides) != 2:
        raise argparse.ArgumentTypeError(f"'{text}': give a query side and a product side, as query_image,product")
    return sides[0], sides[1]


if __name__ == "__main__":
    main()
