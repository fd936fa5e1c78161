"""Entry points under test: none is left behind by a test that fails."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.campaign.processes import EntryPoint


def test_what_a_test_has_left_is_killed(tmp_path: Path) -> None:
    started = EntryPoint("train", ["--help"], tmp_path / "scratch")
    started.main_pid()
    EntryPoint.kill_started()
    assert started.process.returncode == -signal.SIGKILL and not started.left() and not EntryPoint.started
