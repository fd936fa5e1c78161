"""`mim`: every command under one name."""

import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from mim_lightning import __main__ as mim
from mim_lightning.config import conf_dir
from tests.test_entry_points import ARGUMENTS


def test_every_entry_point_is_a_command_with_a_line_that_fits() -> None:
    assert {*mim.NAMES} == {name.removesuffix(".__main__") for name in ARGUMENTS}
    lines = mim.describe_commands().splitlines()
    assert max(map(len, lines)) <= 80
    for name in mim.NAMES:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert len(line.split()) > 1, line


@pytest.mark.parametrize(
    ("words", "module", "passed"),
    [
        (["train", "model=4tower", "--help"], "mim_lightning.train", ["mim train", "model=4tower", "--help"]),
        (["build-index", "output=x"], "mim_lightning.build_index", ["mim build_index", "output=x"]),
        (["search"], "mim_lightning.search.__main__", ["mim search"]),
        (["help", "build-index"], "mim_lightning.build_index", ["mim build_index", "--help"]),
    ],
)
def test_a_command_gets_the_arguments_after_its_name(
    words: list[str], module: str, passed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[list[str]] = []
    assert find_spec(module) is not None
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(main=lambda: got.append(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["/bin/mim", *words])
    mim.main()
    assert got == [passed]


def test_completion_knows_commands_and_asks_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[str], str]] = []
    command = SimpleNamespace(main=lambda: asked.append((sys.argv, os.environ["COMP_LINE"])))
    for name in ("train", "build_index", "compare"):
        monkeypatch.setitem(sys.modules, f"mim_lightning.{name}", command)

    def complete(line: str, query: str = "query=bash") -> str:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setattr(sys, "argv", ["/bin/mim", "-sc", query])
        mim.main()
        return capsys.readouterr().out

    assert complete("mim tu") == "tune_fusion tune_index\n" and complete("mim ").split() == mim.NAMES
    assert complete("mim compare runs") == complete("mim nothing x") == "" and not asked
    complete("mim build-index  index.k")
    complete("/opt/train/bin/mim train ")
    complete("", "install=bash")
    words = ["mim", "-sc", "query=bash"]
    assert asked == [(words, "mim index.k"), (words, "mim "), (["mim", "-sc", "install=bash"], "")]
    without = {name for name in mim.NAMES if not (Path(conf_dir()) / f"{name}.yaml").exists()}
    assert without == {*mim.WITHOUT_CONFIG}


@pytest.mark.parametrize(
    ("script", "command"),
    [("mim-build-index", "build_index"), ("mim-draw", "plot"), ("mim-dashboard", "wandb_workspace")],
)
def test_a_former_script_says_its_command(
    script: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    got: list[list[str]] = []
    monkeypatch.setitem(sys.modules, f"mim_lightning.{command}", SimpleNamespace(main=lambda: got.append(sys.argv)))
    monkeypatch.setattr(sys, "argv", [f"/bin/{script}", "--x"])
    mim.former_script()
    assert got == [[f"mim {command}", "--x"]]
    assert capsys.readouterr().err == f"{script}: now `mim {command}`; the former name is accepted until version 0.3\n"


def test_former_scripts_are_installed() -> None:
    scripts = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts.pop("mim") == "mim_lightning.__main__:main"
    assert len(scripts) == 17 and {*scripts.values()} == {"mim_lightning.__main__:former_script"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, ""),
        ([], 2, ""),
        (["trian"], 2, "error: 'trian' is no command; did you mean train? see mim --help\n"),
    ],
)
def test_help_and_mistakes(words: list[str], code: int, said: str) -> None:
    ended = subprocess.run([sys.executable, "-m", "mim_lightning", *words], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, said)
    assert ended.stdout == ("" if said else mim.describe_commands() + "\n")


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/mim", "--version"])
    mim.main()
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"mim_lightning {project['version']}\n"


def test_a_terminal_that_lacks_a_character_gets_an_escape() -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = (
        "from mim_lightning.command import CommandParser, run_command\n"
        "run_command(CommandParser('compare', ''), lambda: print('a\\u2026b'))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ascii_only)
    assert (ended.returncode, ended.stdout) == (0, "a\\u2026b\n"), ended.stderr
