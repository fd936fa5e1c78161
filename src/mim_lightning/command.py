"""What the doors without a config share: words of the command line, and a user's mistake in one line.

An argument parser and a function come in; the function is called with the parsed words. `door` does the same for
the doors that compose a config.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from mim_lightning.display.text import error_text
from mim_lightning.interruption import Interruption, interruptible

FULL_ERRORS = "MIM_FULL_ERRORS"


class CommandParser(argparse.ArgumentParser):
    """The parser of `python -m mim_lightning.<name>`: its errors are one line, its help begins with the file's."""

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m mim_lightning.{name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message}; see {self.prog} --help"))


def run_command(parser: CommandParser, function: Callable[..., Any]) -> None:
    """Call `function` with the words of the command line; what a user can mend ends as one line and exit code 2."""
    try:
        with interruptible():
            function(**vars(parser.parse_args()))
    except Interruption as stopped:
        print(stopped.describe(), file=sys.stderr)
        raise
    except (ValueError, OSError) as error:
        if FULL_ERRORS in os.environ:
            raise
        sys.exit(_fail(" ".join(str(error).split())))


def words(text: str) -> list[str]:
    """Return the parts of an argument such as "hit@1,mrr"."""
    return [word.strip() for word in text.split(",")]


def count(text: str) -> int:
    """Return an argument that is a whole number, 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': must be a whole number, 1 or more")
    return int(text)


def _fail(text: str) -> int:
    print(f"error: {error_text(text)}", file=sys.stderr)
    return 2
