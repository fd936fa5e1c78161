"""The code blocks of the pages: which there are, and what is wrong with them.

A block names its language. Of `sh`, every command of this project must be accepted as it is printed, down to the keys
of its config; of `python`, the code must compile and what it takes from this project must exist. Commands in running
text, `mim runs`, are checked alike. A test runs the blocks that it can; a block that needs what tests do not have, such
as GPUs or an account, says so in its first line: `# needs <what>`.

In a command `<name>` and `...` stand for a value of the reader's, and a word `...` for their tables.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from mim_lightning import ENTRY_POINTS
from mim_lightning.__main__ import NAMES
from mim_lightning.cli import compose_arguments
from mim_lightning.command import CommandParser
from mim_lightning.config import conf_dir

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("sh", "python", "csv", "nginx", "text", "yaml")
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:\.venv/bin/)?(?:mim|python -m mim_lightning\.\w+) [^`]+)`")
NEEDS = re.compile(r"# needs (.+)")
PLACEHOLDER = re.compile(r"<[^<>\n|&;]+>")
PACKAGE = "mim_lightning"
Job = tuple[str, tuple[str, ...]]  # the name of a config, and overrides
# what `...` among the arguments stands for
TABLES = {"data.source.products": "products.csv", "data.source.queries": "queries.csv"}
# programs of others, and words of the shell
FOREIGN = {
    *("cd", "curl", "docker", "do", "done", "echo", "eval", "export", "ls", "mkdir", "nginx", "openssl", "ray", "sed"),
    *("sleep", "source", "systemctl", "until"),
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, or a command in its text."""

    page: Path
    line: int  # of the page, where it begins
    language: str
    text: str

    @property
    def needs(self) -> str | None:
        """What it needs that tests do not have; None: nothing."""
        found = NEEDS.match(self.text)
        return found[1] if found else None

    def faults(self, accepted: Collection[Job] = ()) -> list[str]:
        """Return what is wrong with it, one line each; `accepted` jobs are known to compose."""
        if self.language not in LANGUAGES:
            found = [f"a block without a language; give one of {', '.join(LANGUAGES)}"]
        elif self.language == "sh":
            found = list(_faults_of_shell(self.text, accepted))
        else:
            found = list(_faults_of_python(self.text, accepted)) if self.language == "python" else []
        place = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return [f"{place}:{self.line}: {fault}" for fault in found]


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent, language, code = match.groups()
        plain = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, language, plain))
    return found


def read_inline_commands(page: Path) -> list[Block]:
    """Return the commands of this project in the running text of a page."""
    text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    found = []
    for match in INLINE.finditer(text):
        words = match[1].split()
        if not words[-1].startswith("<"):  # `mim <command>`
            is_name = len(words) == (3 if "python" in words else 2)  # mentioned, without what it needs
            found.append(
                Block(page, text.count("\n", 0, match.start()) + 1, "sh", " ".join([*words, *["--help"] * is_name]))
            )
    return found


def find_faults(pages: Sequence[Path]) -> list[str]:
    """Return what is wrong with the code of pages, one line each."""
    blocks = [block for page in pages for block in [*read_blocks(page), *read_inline_commands(page)]]
    accepted = _compose_together(blocks)
    return [fault for block in blocks for fault in block.faults(accepted)]


# --- shell ----------------------------------------------------------------------------------------------


def commands_of(text: str) -> list[list[str]]:
    """Return the words of each command of a shell block, without comments and variables before it."""
    commands: list[list[str]] = []
    for line in PLACEHOLDER.sub("placeholder", text.replace("\\\n", " ")).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        commands.append([])
        for word in lexer:
            if set(word) <= set(";&|"):
                commands.append([])
            elif commands[-1] or not re.match(r"[A-Z_]+=", word):
                commands[-1].append(word)
    return [words for words in commands if words]


def _faults_of_shell(text: str, accepted: Collection[Job]) -> Iterator[str]:
    if fault := _syntax_fault(text):
        yield fault
        return
    for words in commands_of(text):
        ours = _ours(words)
        fault = _fault_of_foreign(words) if ours is None else _fault_of_ours(*ours, accepted)
        if fault is not None:
            yield f"{shlex.join(words)}: {fault}"


@cache
def _syntax_fault(text: str) -> str | None:
    """Return what a shell says of a block that it cannot read; it runs nothing."""
    shell = shutil.which("bash") or "bash"
    code = PLACEHOLDER.sub("placeholder", text)
    parsed = subprocess.run([shell, "-n"], input=code, capture_output=True, text=True)
    return parsed.stderr.strip().splitlines()[0] if parsed.returncode else None


def _ours(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return name and arguments of a command of this project; None: it is another."""
    if words[0].removeprefix(".venv/bin/") == "mim":
        return words[1].replace("-", "_") if words[1][0] != "-" else words[1], [*words[2:]]
    if words[:2] == ["python", "-m"] and words[2].startswith(f"{PACKAGE}."):
        return words[2].removeprefix(f"{PACKAGE}."), [*words[3:]]
    return None


def _fault_of_foreign(words: Sequence[str]) -> str | None:
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return None if arguments[0] in targets else f"the Makefile has no target {arguments[0]}"
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = [name for found in re.findall(r"\[([\w,-]+)\]", " ".join(arguments)) for name in found.split(",")]
        return next((f"there is no extra {name}" for name in wanted if name not in extras), None)
    return None if program in FOREIGN else "no command of this project, nor one of docs/code_blocks.py's FOREIGN"


# --- commands of this project ---------------------------------------------------------------------------


def _fault_of_ours(name: str, arguments: Sequence[str], accepted: Collection[Job]) -> str | None:
    if name.startswith("-"):
        return None  # help, and Hydra's completion
    if name not in NAMES:
        return f"there is no command {name}"
    if "--help" in arguments:
        return None
    parser, verbatim = _entry_point(name)
    try:
        if parser is not None:
            _parse(parser, arguments)
        for job in _jobs(name, arguments) if parser is None else ():
            if job not in accepted:
                compose_arguments(*job, verbatim)
    except (ValueError, SystemExit) as error:
        return str(error)
    return None


@cache
def _entry_point(name: str) -> tuple[CommandParser | None, tuple[str, ...]]:
    """Return the parser of a command, or None and the keys whose values its config takes verbatim."""
    module = importlib.import_module(f"{PACKAGE}.search.__main__" if name == "search" else f"{PACKAGE}.{name}")
    starter = "run_entry_point" if hasattr(module, "run_entry_point") else "run_command"
    with mock.patch.object(module, starter) as started:
        module.main()
    given = started.call_args.args
    return (given[0], ()) if starter == "run_command" else (None, tuple(given[2]) if len(given) > 2 else ())


def _parse(parser: CommandParser, arguments: Sequence[str]) -> None:
    def refuse(message: str) -> None:
        raise ValueError(message)

    with mock.patch.object(parser, "error", refuse):
        parser.parse_args(list(arguments))


def _jobs(name: str, arguments: Sequence[str]) -> Iterator[Job]:
    """Yield the config and overrides of a command; of a sweep, jobs in which each value stands at least once."""
    is_sweep = bool({"-m", "--multirun"} & {*arguments})
    after_cfg = {idx + 1 for idx, word in enumerate(arguments) if word == "--cfg"}
    words = [word for idx, word in enumerate(arguments) if not word.startswith("-") and idx not in after_cfg]
    if "..." in words:
        keys = {word.partition("=")[0] for word in words}
        words = [word for word in words if word != "..."] + [
            f"{key}={t}" for key, t in TABLES.items() if key not in keys
        ]
    values = [word.partition("=")[2].split(",") if is_sweep and "[" not in word else [] for word in words]
    for idx in range(max([1, *map(len, values)])):
        yield (
            name,
            tuple(
                f"{word.partition('=')[0]}={choices[min(idx, len(choices) - 1)]}" if len(choices) > 1 else word
                for word, choices in zip(words, values, strict=True)
            ),
        )


def _compose_together(blocks: Sequence[Block]) -> set[Job]:
    """Return jobs of the blocks that compose: those with the same options are composed at once, at the cost of one.

    Where that fails, each is composed alone, which tells which it is.
    """
    found: dict[tuple[str, frozenset[str]], list[Job]] = defaultdict(list)
    for block in blocks:
        if block.language != "sh" or _syntax_fault(block.text):
            continue
        for words in commands_of(block.text):
            name, arguments = _ours(words) or ("", [])
            if name in NAMES and "--help" not in arguments and _entry_point(name)[0] is None:
                for job in _jobs(name, arguments):
                    found[name, frozenset(map(_decision, job[1]))].append(job)
    accepted: set[Job] = set()
    for (name, _), jobs in found.items():
        with suppress(ValueError):
            together = dict.fromkeys(word for _, words in jobs for word in words)
            compose_arguments(name, [*together], _entry_point(name)[1])
            accepted.update(jobs)
    return accepted


def _decision(word: str) -> str:
    """Return what an override decides about the keys that there are and that are missing; "": nothing."""
    key = word.lstrip("+").partition("=")[0]
    is_choice = word[0] in "+~" or (Path(conf_dir()) / key.partition("@")[0]).is_dir()
    return word if is_choice else key if key.split(".")[-1] in _mandatory() else ""


@cache
def _mandatory() -> set[str]:
    """Return the names of keys that some config leaves to the command line."""
    files = Path(conf_dir()).rglob("*.yaml")
    return {name for path in files for name in re.findall(r"(\w+): \?\?\?", path.read_text(encoding="utf-8"))}


# --- Python ---------------------------------------------------------------------------------------------


def _faults_of_python(text: str, accepted: Collection[Job]) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"line {error.lineno}: {error.msg}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (fault for alias in node.names if (fault := _fault_of_name(alias.name)))
        elif isinstance(node, ast.ImportFrom):
            yield from (fault for alias in node.names if (fault := _fault_of_name(f"{node.module}.{alias.name}")))
        elif isinstance(node, ast.Attribute) and _is_package(node.value):
            fault = _fault_of_name(f"{PACKAGE}.{node.attr}")
            yield from [fault] if fault else []
        if isinstance(node, ast.Call) and (name := _called(node.func)):
            fault = _fault_of_ours(name, [_text_of(argument) for argument in node.args], accepted)
            if fault is not None:
                yield f"{PACKAGE}.{name}: {fault}"


def _fault_of_name(name: str) -> str | None:
    """Return what is wrong with the name of something of this project; those of others are not looked up."""
    if name.partition(".")[0] != PACKAGE:
        return None
    parent, _, last = name.rpartition(".")
    try:
        if not parent or hasattr(importlib.import_module(parent), last):
            return None
        importlib.import_module(name)
    except ImportError:
        return f"there is no {name}"
    return None


def _called(function: ast.expr) -> str | None:
    """Return the entry point that is called, if one is."""
    is_ours = isinstance(function, ast.Attribute) and _is_package(function.value) and function.attr in ENTRY_POINTS
    return function.attr if is_ours else None


def _is_package(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == PACKAGE


def _text_of(argument: ast.expr) -> str:
    parts: list[Any] = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "placeholder" for part in parts)
