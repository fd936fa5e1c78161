"""The groups of conf/: which of them a command chooses from, and the options that a person may choose."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra

from mim_lightning.config import conf_dir

BASE = "base"  # which the other options of its group extend, and nobody chooses
MIN_WIDTH = 40  # of help, in characters


def describe_groups(name: str) -> str:
    """Return the groups of a command with their options for --help, in lines as wide as the terminal; a pipe has 80.

    Short ones stand two in a line, after the others. Groups with nothing to choose are left out; those that the user's
    own conf/ adds are not.
    """
    width = max(MIN_WIDTH, shutil.get_terminal_size().columns)
    chosen = {group.split("@")[0]: group for group in groups_of(name)}  # encoder/text@tokenizer=minilm
    entries = [
        f"{chosen.get(group, group)}: {', '.join(options)}"
        for group, options in sorted(_all_groups(GlobalHydra.instance().config_loader()))
        if (len(options) > 1 and _is_below(group, chosen)) or not (Path(conf_dir()) / group).is_dir()
    ]
    column = width // 2 - 2
    long = [textwrap.fill(line, width, subsequent_indent="  ") for line in entries if len(line) > column]
    short = [line for line in entries if len(line) <= column]
    pairs = zip_longest(short[::2], short[1::2], fillvalue="")
    return "\n".join([*long, *(f"{left:<{column + 2}}{right}".rstrip() for left, right in pairs)])


def _is_below(group: str, chosen: Collection[str]) -> bool:
    return any(f"{group}/".startswith(f"{part}/") for part in chosen)


def _all_groups(loader: ConfigLoader, parent: str = "") -> Iterator[tuple[str, list[str]]]:
    for part in loader.list_groups(parent):
        group = f"{parent}/{part}" if parent else part
        if group != "hydra":
            yield group, choices(loader.get_group_options(group))
            yield from _all_groups(loader, group)


def choices(options: Sequence[str]) -> list[str]:
    """Return the options of a group that a person may choose."""
    return sorted(option for option in options if option != BASE)


def options_of(group: str) -> list[str]:
    """Return the options of a group in conf/ that a person may choose."""
    return choices([path.stem for path in (Path(conf_dir()) / group).glob("*.yaml")])


def groups_of(name: str) -> set[str]:
    """Return the groups that `conf/<name>.yaml` chooses from, or may: `data: null`."""
    defaults = yaml.safe_load((Path(conf_dir()) / f"{name}.yaml").read_text("utf-8"))["defaults"]
    return {str(key) for entry in defaults if isinstance(entry, dict) for key in entry}


def options_with(key: str) -> tuple[str, list[str]]:
    """Return the group that a key belongs to or is, and its options that have the key; none: no group has it."""
    words = key.split(".")
    for length in range(len(words), 0, -1):
        group = "/".join(words[:length])
        files = sorted((Path(conf_dir()) / group).glob("*.yaml"))
        found = [path.stem for path in files if _has(path, words[length:])]
        if found:
            return group, options_of(group) if BASE in found else found
    return "", []


def _has(path: Path, words: Sequence[str]) -> bool:
    """Does the file of an option itself state a key?"""
    part: Any = yaml.safe_load(path.read_text("utf-8"))
    for word in words:
        if not isinstance(part, dict) or word not in part:
            return False
        part = part[word]
    return True
