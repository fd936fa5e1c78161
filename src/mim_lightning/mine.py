"""mim mine checkpoint=<path> index=<folder> output=negatives.parquet: hard negatives by an index.

The queries of the training rows are searched in an index of the same model; what ranks high and is no answer goes into
a table, with which `train data/sampling=hard_negatives data.sampling.table=negatives.parquet` makes its batches.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from mim_lightning.artifact_paths import validate_index, validate_model
from mim_lightning.callable_module import make_callable
from mim_lightning.cli import as_override, run_entry_point
from mim_lightning.config import build
from mim_lightning.launch import set_up_process
from mim_lightning.next_command import print_next_line

VERBATIM_KEYS = ("checkpoint", "index", "output")


def main() -> None:
    run_entry_point("mine", mine, VERBATIM_KEYS)


def mine(config: dict[str, Any]) -> Path:
    """Write the table, print what was mined, and return the path of the table."""
    config = {**config, **{key: str(config[key]) for key in VERBATIM_KEYS}}  # 2024 is a number on the command line
    validate_index(config["index"])
    validate_model(config["checkpoint"])
    from mim_lightning.lit.console import silence_lightning
    from mim_lightning.negative_mining import mine_index

    settings = build(config["mining"])
    set_up_process(config, str(config["device"]))
    silence_lightning()
    mined = mine_index(config, settings)
    table = Path(config["output"])
    print(f"{table}: {mined.describe()}")
    _print_next(Path(config["checkpoint"]), table)
    return table


def _print_next(checkpoint: Path, table: Path) -> None:
    """Print the command of the model's run with the table, where the run has kept its command."""
    from mim_lightning.run import Run
    from mim_lightning.run_states import command_of

    folder = checkpoint.absolute().parent.parent
    chosen = ["data/sampling=hard_negatives", as_override("data.sampling.table", table.absolute())]
    with suppress(ValueError, OSError):  # the table is written, whatever became of the kept command
        if (line := command_of(Run(folder.name, folder), folder.parent, chosen)) is not None:
            print_next_line(line)


make_callable(__name__, mine, VERBATIM_KEYS)

if __name__ == "__main__":
    main()
