"""The config reference: pages made from the files of conf/ and their comments."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

CONF = Path(__file__).parents[1] / "conf"
GROUPS = {  # the pages, in the order in which a person meets them
    "commands": "Commands",
    "data": "Data",
    "model": "Model",
    "encoder": "Encoders",
    "loss": "Loss",
    "training": "Training",
    "experiment": "Recipes",
    "sweep": "Sweeps",
    "places": "Logging and folders",
}
PAGE_OF = {  # config group -> page; a group that is not named has a page of its own
    **dict.fromkeys(("optim", "schedule", "trainer", "callbacks", "debug"), "training"),
    **dict.fromkeys(("logger", "paths"), "places"),
    "hydra": "sweep",
}
INTRODUCTION = """\
Made from the files of `conf/` and their comments. A command composes one of its own with an option of each group;
`--cfg job` prints the result and `--info defaults` the files it is made of, without running.
`key=value` sets a key, `group=option` chooses a file of a group, `~key` removes a key. A default `???` means that the
key must be given.
"""


@dataclass(frozen=True)
class Row:
    """A key of a config file: its dotted name, its default as it is written, and what the comments say."""

    key: str
    default: str
    comment: str


def write_config_pages(folder: Path) -> list[Path]:
    """Write a page for each of `GROUPS` and return their paths."""
    pages: dict[str, list[str]] = {name: [f"# {title}: config keys", ""] for name, title in GROUPS.items()}
    pages["commands"].append(INTRODUCTION)
    for path in sorted(CONF.rglob("*.yaml"), key=lambda path: (len(path.relative_to(CONF).parts), path)):
        group = path.relative_to(CONF).parent.as_posix()
        first = group.split("/")[0]
        page = "commands" if group == "." else PAGE_OF.get(first, first)
        pages[page] += _describe_file(path, group)
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in pages.items():
        (folder / f"{name}.md").write_text("\n".join(lines))
    return [folder / f"{name}.md" for name in pages]


def read_rows(text: str, prefix: str = "") -> list[Row]:
    """Return the keys of a config file with their comments; those of Hydra itself are left out."""
    node = yaml.compose(text, yaml.SafeLoader)
    assert node is None or isinstance(node, yaml.MappingNode)
    return list(_walk(node, text.splitlines(), prefix)) if node else []


def _describe_file(path: Path, group: str) -> list[str]:
    text = path.read_text()
    package = re.search(r"^# @package (\S+)", text)
    prefix = "" if group == "." or package else group.replace("/", ".") + "."
    heading = path.stem if group == "." else f"{group}={path.stem}"
    lines = [f"## {heading}", "", _escape(_header(text)), ""]
    rows = read_rows(text, prefix)
    if chosen := _defaults(text):
        named = (name if "=" in name or package else f"{group}={name}" for name in chosen)
        lines += [f"Begins with {', '.join(f'`{name}`' for name in named)}.", ""]
    if rows:
        lines += ["| key | default | |", "| --- | --- | --- |"]
        lines += [f"| `{row.key}` | {_code(row.default)} | {_escape(row.comment)} |" for row in rows]
    return [*lines, ""]


def _header(text: str) -> str:
    """Return what the comments at the top of a file say."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(("# @package", "# python -m")):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def _defaults(text: str) -> list[str]:
    """Return the other files that a file begins with, as they are chosen on the command line."""
    entries = (yaml.safe_load(text) or {}).get("defaults", [])
    named = ({entry: None} if isinstance(entry, str) else entry for entry in entries)
    pairs = [(key.removeprefix("override ").lstrip("/"), option) for entry in named for key, option in entry.items()]
    return [
        key if option is None else f"{key}={option}"
        for key, option in pairs
        if key not in ("_self_", "entry_point", "entry_point_with_groups")
    ]


def _walk(node: yaml.MappingNode, lines: list[str], prefix: str, is_top: bool = True) -> Iterator[Row]:
    for position, (key, value) in enumerate(node.value):
        name = f"{prefix}{key.value}"
        if key.value in ("defaults", "hydra", "_target_", "_partial_") and not (key.value == "hydra" and "." in prefix):
            continue
        is_first = position == 0 and is_top
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = key.end_mark if is_block else value.end_mark
        comment = _comment(lines, key.start_mark.line, end.line, end.column, is_first)
        if is_block:
            target = next((part.value for name, part in value.value if name.value == "_target_"), "")
            if target or comment:
                yield Row(name, target, comment)
            yield from _walk(value, lines, f"{name}.", is_top=False)
        else:
            written = "\n".join(lines)[_offset(lines, value.start_mark) : _offset(lines, value.end_mark)]
            yield Row(name, " ".join(written.split()), comment)


def _offset(lines: list[str], mark: yaml.Mark) -> int:
    return sum(len(line) + 1 for line in lines[: mark.line]) + mark.column


def _comment(lines: list[str], first: int, last: int, column: int, is_first: bool) -> str:
    """Return the comment of a key: those above it, that at the end of its line, and what continues that."""
    found: list[str] = []
    above = first - 1
    while not is_first and above >= 0 and lines[above].lstrip().startswith("#"):
        found.insert(0, lines[above].strip("# "))
        above -= 1
    if found and above >= 0 and _is_continued(lines, above):
        found = []
    trailing = lines[last][column:].strip(" :")
    if trailing.startswith("#"):
        found.append(trailing.strip("# "))
        if _is_continued(lines, last):
            for line in lines[last + 1 :]:
                if not line.lstrip().startswith("#"):
                    break
                found.append(line.strip("# "))
    return " ".join(found)


def _is_continued(lines: list[str], number: int) -> bool:
    """Do the comment lines after a line continue the comment at its end, rather than describe the next key?"""
    line, below = lines[number], lines[number + 1] if number + 1 < len(lines) else ""
    return " #" in line and (line.endswith((";", ",")) or re.match(r" {8,}#", below) is not None)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def _escape(text: str) -> str:
    """Return the text of a comment as Markdown, in which only what is between backticks is markup."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = (re.sub(r"([*|\[\]_])", r"\\\1", html.escape(part, quote=False)) for part in parts)
    return "".join(part if part.startswith("`") else escaped for part, escaped in zip(parts, plain, strict=True))
