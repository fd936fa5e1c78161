"""How an entry point on argparse starts: parse the arguments, call a function, and report errors in one line.

Apart from `cli`, which does the same for entry points that compose a config, so that these import no Hydra.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from mim_lightning.display.text import error_text, escape_unprintable
from mim_lightning.interruption import Interruption, interruptible
from mim_lightning.io.os_errors import describe_os_error

FULL_ERRORS = "MIM_FULL_ERRORS"


class CommandParser(argparse.ArgumentParser):
    """The parser of `python -m mim_lightning.<name>`: errors are one line, help begins with the module's docstring."""

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f"mim {name}" if sys.argv[0] == f"mim {name}" else f"python -m mim_lightning.{name}",
            description=_fitted(description or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message}; see {self.prog} --help"))


def _fitted(text: str) -> str:
    """Return a docstring with paragraphs as wide as the terminal; examples, which are indented, stay as they are."""
    width = shutil.get_terminal_size().columns
    parts = text.strip().split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else textwrap.fill(part, width) for part in parts)


def run_command(parser: CommandParser, function: Callable[..., Any]) -> None:
    """Call `function` with the parsed arguments; an error that the user can fix is one line and exit code 2."""
    escape_unprintable()
    try:
        with interruptible():
            function(**vars(parser.parse_args()))
    except Interruption as stopped:
        print(stopped.describe(), file=sys.stderr)
        raise
    except (ValueError, OSError) as error:
        if FULL_ERRORS in os.environ:
            raise
        sys.exit(_fail(describe_os_error(error) if isinstance(error, OSError) else " ".join(str(error).split())))


def words(text: str) -> list[str]:
    """Return the parts of an argument such as "hit@1,mrr"."""
    return [word.strip() for word in text.split(",")]


def counts(text: str) -> list[int]:
    """Return the parts of an argument such as "16,32,64"."""
    try:
        return [count(word) for word in words(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}': give whole numbers, as 16,32,64") from error


def count(text: str) -> int:
    """Return an argument that is a whole number, 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': must be a whole number, 1 or more")
    return int(text)


def _fail(text: str) -> int:
    print(f"error: {error_text(text)}", file=sys.stderr)
    return 2
