"""mim plot <run> ... --output <folder>: figures of one run, or of several side by side.

    mim plot runs/4tower-... --output figures
    mim plot runs/2tower-* runs/4tower-* --output figures --only curves,hits

curves.png: a metric by epoch, from before training on; losses.png: by pair, with the logit scale; hits.png: the first
hits of up to five models; map-<model>.png: the embedding space. Runs that differ only in seed or fold are one model. A
run that still trains has curves and losses.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.artifact_paths import RECORD_FOLDER, find_record
from mim_lightning.command import CommandParser, count, run_command, words
from mim_lightning.display.text import plain
from mim_lightning.fields import IMAGE_FIELDS
from mim_lightning.next_command import folder_beside, print_next

if TYPE_CHECKING:
    from mim_lightning.analysis.record import EvaluationRecord

CONFIG = "config.yaml"  # in the folder of a run from its start


def main() -> None:
    run_command(_parser(), plot)


def plot(runs: Sequence[Path], output: Path, only: Sequence[str] = (), **options: Any) -> None:
    """Save figures, see `save_figures`; `options` are the fields of `FigureOptions`."""
    for folder in runs:
        if not (folder / CONFIG).is_file():  # else the run may still train, without a record
            find_record(folder)
    # imported here, so that an error on the command line is reported at once
    from mim_lightning.analysis.figures.save import FigureOptions, group_evaluated_runs, save_figures
    from mim_lightning.run import PLACEMENT_KEYS, Run
    from mim_lightning.run_states import best_checkpoint, read_state

    groups = group_evaluated_runs([_read(folder) for folder in runs], PLACEMENT_KEYS)
    for group in groups:
        print(plain(f"{group.label}: {group.describe()}", 1_000))
    print(f"figures: {', '.join(map(str, save_figures(groups, FigureOptions(**options), output, only)))}")
    if (best := best_checkpoint([read_state(Run(folder.name, folder)) for folder in runs])) is not None:
        print_next("build_index", f"checkpoint={best}", f"output={folder_beside(best, 'index')}")


def _read(folder: Path) -> EvaluationRecord:
    """Read the record of a run, or what its config says if it has none yet."""
    from mim_lightning.analysis.record import EvaluationRecord, RunFacts, read_record
    from mim_lightning.config import load_stored_config

    if (folder / RECORD_FOLDER).is_dir() or not (folder / CONFIG).is_file():
        return read_record(folder)
    config = load_stored_config(folder / CONFIG)
    data = config["data"]
    facts = RunFacts(config["run"]["id"], config, "", config["monitor"], data["folder"], data["val_split"])
    return EvaluationRecord(folder / RECORD_FOLDER, facts, {})


def _parser() -> CommandParser:
    parser = CommandParser("plot", __doc__)
    parser.usage = "%(prog)s <run> ... --output <folder> [options]"
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="run", help="folder of a run or of an evaluation")
    add("--output", type=Path, required=True, metavar="FOLDER", help="of the figures")
    add("--only", type=words, default=[], metavar="NAMES", help="some of curves,losses,hits,map; default: all")
    add("--metric", help="of the curves; default: the monitored one")
    add("--direction", help="of the hits; default: the monitored one")
    add("--num-queries", type=count, default=8, metavar="N", help="rows of hits (8)")
    add("--num-hits", type=count, metavar="N", help="of each model and query; default: as many as are readable")
    add("--sides", type=_sides, default=IMAGE_FIELDS, metavar="QUERY,PRODUCT", help="of the map (the image towers)")
    add("--num-points", type=count, default=1500, metavar="N", help="on the map, at most (1500)")
    add("--seed", type=int, default=0, metavar="N", help="of the selection of queries and points (0)")
    return parser


def _sides(text: str) -> tuple[str, str]:
    sides = words(text)
    if len(sides) != 2:
        raise argparse.ArgumentTypeError(f"'{text}': give a query side and a product side, as query_image,product")
    return sides[0], sides[1]


if __name__ == "__main__":
    main()
