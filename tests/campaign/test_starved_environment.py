"""The whole way in a Python of its own: in the C locale, without a home, optimized: the same files as elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.campaign.bench import COMMANDS, Bench, contents, differences
from tests.campaign.outcomes import record_outcome

WAY = ("prepare", "train", "evaluate", "build_index", "export", "search")
# one process: each command's imports would take longer than its work
PROGRAM = """
import json, runpy, sys
for command, words in json.loads(sys.argv[1]):
    sys.argv = [command, *words]
    try:
        runpy.run_module(f"mim_lightning.{command}", run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        if stopped.code:
            raise
"""
C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("lacks", "variables", "missing"),
    [
        ("C locale", C_LOCALE, ()),
        ("no HOME, no USER", {}, ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME")),
        ("PYTHONOPTIMIZE=2", {"PYTHONOPTIMIZE": "2"}, ()),
    ],
)
def test_the_whole_way_is_the_same(
    bench: Bench, lacks: str, variables: dict[str, str], missing: tuple[str, ...]
) -> None:
    steps = {command: bench.expected(command) for command in WAY}
    expected = {kind: value for step in steps.values() for kind, value in step.items()}
    run = next((bench.states / "state-train" / "runs").glob("*/config.yaml")).parent.name
    bench.reset("prepare")
    started = [(COMMANDS[command].module, bench.words(command, bench.folder / "runs" / run)) for command in WAY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(bench.folder / "tmp"), **variables}
    for name in missing:
        environment.pop(name, None)
    with record_outcome("starved", ", ".join(WAY), lacks) as found:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(started)],
            env=environment, cwd=bench.folder / "tmp", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-1000:]
        assert "Traceback" not in ended.stderr
        assert contents(bench.folder) == expected, differences(contents(bench.folder), expected)
        found.outcome = "works, bit-equal"
