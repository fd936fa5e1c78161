"""The groups of conf/ as --help lists them: real choices, in lines that fit."""

import re
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from mim_lightning.config import conf_dir
from mim_lightning.config_groups import BASE, describe_groups

ENTRY = re.compile(r"(\S+): (.+?)(?:  +|$)", re.MULTILINE)


def described(name: str) -> dict[str, list[str]]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
        text = describe_groups(name).replace(",\n  ", ", ")
    return {group: options.split(", ") for group, options in ENTRY.findall(text)}


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_lines_are_as_wide_as_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
        lines = describe_groups("train").splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.startswith("  ") for line in lines) == (columns < 200)
    assert any(line.count(": ") == 2 for line in lines)


def test_a_command_lists_what_it_chooses_from_and_nothing_that_nobody_chooses() -> None:
    options: dict[Path, list[str]] = {}
    for path in sorted(Path(conf_dir()).rglob("*.yaml")):
        if path.stem != BASE and path.parent != Path(conf_dir()):
            options.setdefault(path.parent.relative_to(conf_dir()), []).append(path.stem)
    expected = {str(group): found for group, found in options.items() if len(found) > 1 and group.parts[0] != "hydra"}
    assert described("train") == expected
    assert {group.split("/")[0] for group in described("evaluate")} == {"data", "encoder", "model", "trainer"}
    assert {*described("prepare")} == {"data", "data/sampling", "data/splits", "encoder/text@tokenizer"}


def test_a_group_of_the_user_is_listed_though_it_has_one_option(tmp_path: Path) -> None:
    for group in ("mine", "paths"):
        (tmp_path / group).mkdir()
        (tmp_path / group / "only.yaml").write_text("a: 1")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert describe_groups("train") == "mine: only"


@pytest.mark.parametrize("path", sorted(Path(conf_dir()).glob("*.yaml")), ids=lambda path: path.stem)
def test_help_fits_a_screen(path: Path) -> None:
    shown = yaml.safe_load(path.read_text()).get("hydra", {}).get("help", {})
    assert [line for text in shown.values() for line in text.splitlines() if len(line) > 80] == []
    if "header" in shown and "footer" in shown:
        num_lines = len("".join(shown.values()).splitlines()) + len(described(path.stem))
        assert num_lines <= 36  # and seven of headings
