"""mim <command> [arguments]: every command under one name; python -m mim_lightning is the same."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

COMMANDS = {
    "data": ("prepare",),
    "training": ("train", "runs", "mine"),
    "evaluation": ("evaluate", "compare", "plot", "tune_fusion", "wandb_workspace"),
    "catalog and search": ("build_index", "calibrate", "tune_index", "search", "serve", "ab_report"),
    "the model elsewhere": ("embed", "export"),
}
NAMES = [name for names in COMMANDS.values() for name in names]
WITHOUT_CONFIG = ("runs", "compare", "plot", "tune_fusion", "tune_index", "wandb_workspace")  # they have options
COMPLETION = ("-sc", "--shell-completion")  # Hydra's
PACKAGE = "mim_lightning"


def main() -> None:
    """Run the command that the first argument names, with the arguments after it."""
    words = sys.argv[1:]
    if words[:1] == ["help"] and words[1:]:
        words = [words[1], "--help"]
    if words == ["--version"]:
        print(f"mim_lightning {version(PACKAGE)}")
        return
    if not words or words[0] in ("-h", "--help", "help"):
        print(describe_commands())
        sys.exit(0 if words else 2)
    if words[0] in COMPLETION:
        _complete(words)
        return
    name = words[0].replace("-", "_")
    if name not in NAMES:
        close = get_close_matches(name, NAMES, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(NAMES)};"
        sys.exit(_fail(f"'{words[0]}' is no command; {hint}"))
    sys.argv = [f"mim {name}", *words[1:]]
    importlib.import_module(_module_of(name)).main()


def former_script() -> None:
    """Run the command of a script that the package installed before there was `mim`."""
    name = Path(sys.argv[0]).stem.removeprefix("mim-")
    name = {"report": "ab-report", "draw": "plot", "dashboard": "wandb-workspace"}.get(name, name).replace("-", "_")
    print(f"{Path(sys.argv[0]).stem}: now `mim {name}`; the former name is accepted until version 0.3", file=sys.stderr)
    sys.argv[1:] = [name, *sys.argv[1:]]
    main()


def describe_commands() -> str:
    """Return the commands by group with one line each, for a terminal of 80 columns."""
    lines = ["usage: mim <command> [arguments]"]
    width = max(map(len, NAMES))
    for group, names in COMMANDS.items():
        lines += ["", group, *(f"  {name:<{width}}  {_purpose(name)}" for name in names)]
    return "\n".join([*lines, "", "mim <command> --help says more; mim --version"])


def _complete(words: list[str]) -> None:
    """Answer Hydra's completion of a shell, which knows one command: names here, keys and options by the command."""
    if not words[1:2] or not words[1].startswith("query="):  # install, uninstall: of all commands
        sys.argv = ["mim", *words]
        importlib.import_module(_module_of("train")).main()
        return
    line = os.environ.get("COMP_LINE", "")
    _, *typed = line.split() or [""]
    if not typed or (len(typed) == 1 and not line[-1:].isspace()):
        print(*(name for name in NAMES if name.startswith(typed[0] if typed else "")))
    elif (name := typed[0].replace("-", "_")) in NAMES and name not in WITHOUT_CONFIG:
        os.environ["COMP_LINE"] = "mim " + line.split(maxsplit=1)[1].removeprefix(typed[0]).lstrip()
        sys.argv = ["mim", *words]
        importlib.import_module(_module_of(name)).main()


def _module_of(name: str) -> str:
    return f"{PACKAGE}.search.__main__" if name == "search" else f"{PACKAGE}.{name}"


def _purpose(name: str) -> str:
    """Return what a command does: the first line of its module's docstring, after the colon. Nothing is imported."""
    found = find_spec(_module_of(name))
    assert found is not None and found.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""
    return docstring.splitlines()[0].partition(": ")[2].rstrip(".")


def _fail(text: str) -> int:
    print(f"error: {text} see mim --help", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
