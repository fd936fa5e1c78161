"""The names that a package exports, each imported at its first use (PEP 562).

Configs, checkpoints and users name a class by its package, `mim_lightning.encoders.TimmImage`, never by a file. The
`__init__` of a package lists such names with their modules, so that importing it imports no vendor that is not used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def export_lazily(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        modules: by exported name, the module that defines it.
    """

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(modules[name]), name)

    return find, lambda: sorted(modules)
