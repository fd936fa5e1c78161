"""`mim runs` reads every state from a run's folder, latest first, and prints the command that goes on."""

import os
from pathlib import Path

import pytest

from mim_lightning.config import save_config
from mim_lightning.errors import ErrorReport, write_note
from mim_lightning.interruption import STOPPED_AFTER
from mim_lightning.io.locks import is_locked, lock, try_lock
from mim_lightning.run import Run
from mim_lightning.run_states import print_states, read_states
from mim_lightning.runs import STATES, runs

MONITOR = "val/image_to_image/hit@1"
LONG = "4tower-a-folder-of-somebody-with-a-long-name-seed1-0123abcd"


def write_run(folder: Path, name: str, minute: int, values: tuple[float, ...] = (), results: dict | None = None) -> Run:
    """Write the files of a run of four epochs that has validated so often, the first time before training."""
    run = Run(name, folder / name)
    save_config({"monitor": MONITOR, "trainer": {"max_epochs": 4}, "run": {"id": name}}, run.config_path)
    run.command_path.write_text(f"mim train trainer.max_time=00:00:01:00 'a.b=c d' run.name={name}\n")
    log = run.folder / "csv" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    rows = [f"{epoch},0,{value}" for epoch, value in enumerate(values, start=-1)]
    log.write_text("\n".join([f"epoch,step,{MONITOR}", *rows, ""]))
    if results is not None:
        run.write_results(results)
    for path in run.folder.rglob("*"):
        os.utime(path, (60 * minute, 60 * minute))
    return run


def test_states_are_read_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "finished", 3, (0.9, 0.1, 0.5, 0.4, 0.3), {MONITOR: 0.5})
    write_run(tmp_path, "limited", 5, (0.0, 0.2), {MONITOR: 0.2, STOPPED_AFTER: 60.0})
    write_run(tmp_path, LONG, 1, (0.9, 0.1, 0.3))
    write_note(write_run(tmp_path, "failed", 4).folder, ErrorReport("ValueError", "a reason"))
    os.utime(tmp_path / "failed" / "failed.json", (240, 240))
    write_run(tmp_path, "damaged", 2).config_path.write_text("monitor: ${oc.env:HOME}\n")
    os.utime(tmp_path / "damaged" / "config.yaml", (120, 120))
    (tmp_path / "never_began").mkdir()
    (tmp_path / "never_began" / ".lock").touch()
    running = write_run(tmp_path, "running", 6, (0.0,))
    with lock(running.lock_path):
        states = read_states(tmp_path)
        runs(tmp_path)
    found = {state.run.run_id: (state.state, state.epochs, state.best) for state in states}
    assert list(found) == ["running", "limited", "failed", "finished", "damaged", LONG]
    assert found == {
        "running": ("running", (0, 4), None),
        "limited": ("out of time", (1, 4), 0.2),
        "failed": ("failed", (0, 4), None),
        "finished": ("finished", (4, 4), 0.5),
        "damaged": ("damaged", None, None),
        LONG: ("stopped", (2, 4), 0.3),
    }
    assert {state for state, *_ in found.values()} < {*STATES}
    printed = capsys.readouterr().out
    table, _, commands = printed.partition("to go on:\n")
    assert max(map(len, table.splitlines()[:10])) <= 80 and "failed: a reason\n" in table and MONITOR in table
    command = "mim train {}'a.b=c d' run.name={}"
    limit = "trainer.max_time=00:00:01:00 "
    assert [line.strip() for line in commands.splitlines()] == [
        command.format("", "limited"),
        command.format(limit, "failed"),
        command.format(limit, "damaged"),
        command.format(limit, LONG),
    ]
    print_states([state for state in states if state.run.run_id in ("running", "finished")])
    assert "to go on" not in capsys.readouterr().out
    (tmp_path / LONG / "command.txt").unlink()
    runs(tmp_path, ["stopped"])
    assert "goes on by the command or call that started it" in capsys.readouterr().out
    runs(tmp_path, ["pruned"])
    assert capsys.readouterr().out == f"{tmp_path}: none of 6 runs is pruned\n"


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no runs"):
        read_states(tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        read_states(tmp_path / "none")
    with pytest.raises(ValueError, match="--state done: give some of running, finished"):
        runs(tmp_path, ["done"])


def test_a_look_at_a_lock_leaves_it_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_locked(path) and not path.exists()
    held = try_lock(path)
    assert held is not None
    written = path.read_bytes()
    assert is_locked(path) and path.read_bytes() == written
    os.close(held)
    assert not is_locked(path) and path.read_bytes() == written
