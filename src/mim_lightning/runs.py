"""mim runs [<folder>]: runs with their state, best metric and how to go on.

    mim runs
    mim runs /scratch/runs --state stopped,failed

The latest is first. A run is running (a process has its lock), finished, out of time (trainer.max_time ended it),
failed, pruned (by a sweep), stopped, damaged, or unknown (its lock may not be read).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mim_lightning.command import CommandParser, run_command, words


def main() -> None:
    parser = CommandParser("runs", __doc__)
    default = Path(os.environ.get("MIM_RUNS_DIR", "runs"))
    parser.add_argument("folder", nargs="?", type=Path, default=default, help=f"of runs ({default}), as paths.runs")
    parser.add_argument("--state", dest="states", type=words, metavar="STATES", help="which to list; default: all")
    run_command(parser, runs)


def runs(folder: Path, states: Sequence[str] | None = None) -> None:
    """Print the runs in a folder, and how to go on with those that are not finished."""
    # imported here, so that an error on the command line is reported at once
    from mim_lightning.next_command import folder_beside, print_next
    from mim_lightning.run_states import STATES, best_checkpoint, print_states, read_states

    states = STATES if states is None else states
    if unknown := [state for state in states if state not in STATES]:
        raise ValueError(f"--state {unknown[0]}: give some of {', '.join(STATES)}")
    found = read_states(folder)
    if listed := [state for state in found if state.state in states]:
        print_states(listed)
        if (best := best_checkpoint(listed)) is not None and not any(state.next_command for state in listed):
            print_next("build_index", f"checkpoint={best}", f"output={folder_beside(best, 'index')}")
    else:
        print(f"{folder}: none of {len(found)} runs is {' or '.join(states)}")


if __name__ == "__main__":
    main()
