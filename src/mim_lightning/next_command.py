"""The line after a command that names the next one, with its paths, ready to be pasted into the same shell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from mim_lightning.display.text import plain
from mim_lightning.interruption import is_entry_point

SCRIPT = "mim"
MAX_CHARS = 10_000


def print_next(command: str, *arguments: object) -> None:
    """Print the next command, where a command of ours was given: a call from Python goes on in Python.

    The first process alone calls it, and none after an error, or where the output is for programs.

    Args:
        command: its name, as "build_index".
        arguments: as a shell passes them, unquoted.
    """
    print_next_line(shlex.join([*program(Path.cwd()), command, *map(str, arguments)]))


def print_next_line(line: str) -> None:
    """Print a whole line of a shell as `print_next` does."""
    if is_entry_point() and plain(line, MAX_CHARS) == line:  # else a path would be printed that is not the path
        print(f"next: {line}", flush=True)


def print_next_service(index: object, checkpoint: object = None) -> None:
    """Print the command that serves an index, where the extra for that is installed.

    Args:
        checkpoint: that was given besides the index; None: none was.
    """
    if find_spec("uvicorn") is not None:
        print_next("serve", f"index={index}", *[f"checkpoint={checkpoint}"] * (checkpoint is not None))


def program(folder: Path) -> list[str]:
    """Return how a shell in a folder finds `mim`: by its name, beside the interpreter, or as a module."""
    beside = Path(sys.executable).with_name(SCRIPT)
    found = shutil.which(SCRIPT)
    if found is not None and Path(found).absolute() == beside.absolute():
        return [SCRIPT]
    if os.access(beside, os.X_OK):
        return [str(beside.relative_to(folder) if beside.is_relative_to(folder) else beside)]
    return [sys.executable, "-m", "mim_lightning"]


def folder_beside(checkpoint: str | Path, name: str) -> Path:
    """Return where something made of a checkpoint is put: in the folder of its run, else in the current one."""
    path = Path(checkpoint)
    return path.parent.parent / name if path.parent.name == "checkpoints" else Path(name)
