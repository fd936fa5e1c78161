"""Modules of entry points that can be called: `mim_lightning.train("model=4tower")` in Python, as on the command line.

`mim_lightning.train` is a module, which `python -m` runs; the same name is to be what a notebook calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from mim_lightning.cli import compose_arguments
from mim_lightning.config import Config


class CallableModule(ModuleType):
    """A module that is called with the arguments of its command line, each a string such as "model=4tower".

    Raises:
        ValueError: arguments that do not compose, with the line that the command prints. Other errors are those of the
            work itself, as they are: what the command prints as one line is then a ValueError or OSError, mostly.
    """

    _call: Callable[..., Any]

    def __call__(self, *arguments: str) -> Any:
        return self._call(*arguments)


def make_callable(module: str, function: Callable[[Config], Any], verbatim_keys: Sequence[str] = ()) -> None:
    """Have the module of an entry point called as its function is, with a config composed of the arguments.

    Args:
        module: its `__name__`; a module that is run, `__main__`, stays as it is.
        verbatim_keys: as of `run_entry_point`.
    """
    if module == "__main__":
        return
    name = module.rpartition(".")[2]

    def call(*arguments: str) -> Any:
        return function(compose_arguments(name, arguments, verbatim_keys))

    found = sys.modules[module]
    found.__class__ = CallableModule
    found._call = call  # type: ignore[attr-defined]
