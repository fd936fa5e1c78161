"""Malformed inputs of each kind through the commands themselves: exit code 2, and one line on stderr at the end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.campaign.malformed import listing
from tests.campaign.outcomes import cases, record_outcome
from tests.campaign.rubbish_commands import COMMANDS
from tests.flow.entry_points import start
from tests.migration.test_migration import FILES


@pytest.mark.parametrize("name", cases([(name, name) for name in COMMANDS]))
def test_malformed_inputs_of_commands(name: str, tmp_path: Path) -> None:
    module, arguments, damage, names = COMMANDS[name]
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    shutil.copytree(FILES / "finished", tmp_path / "other")
    (tmp_path / "conf").mkdir()
    damage(tmp_path)
    ignored = ("out/manifest-check", "out/.manifest", "out/runs/.", "finished", "index/.lock")
    with record_outcome("rubbish", "command", name) as found:
        before = listing(tmp_path, ignored)
        ended = start(*arguments, module=f"mim_lightning.{module}", cwd=tmp_path)
        said = ended.stderr.strip().splitlines()
        assert ended.returncode == 2, (ended.returncode, ended.stderr[-600:])
        assert "Traceback" not in ended.stderr + ended.stdout, ended.stderr[-600:]
        assert said[-1].startswith("error: ") and names in said[-1], said[-1]
        assert sum(line.startswith("error: ") for line in said) == 1, ended.stderr
        written = {path for path in listing(tmp_path, ignored) if path not in before} - {"out"}
        assert not written, f"{said[-1]}, and left {sorted(written)}"
        assert not (tmp_path / "ran").exists()
        found.outcome = "exit code 2 and one line"
