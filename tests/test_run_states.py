"""`mim runs` reads every state from a run's folder, latest first, and prints the command that goes on."""

import os
from pathlib import Path

import pytest

from mim_lightning import run_states
from mim_lightning.config import save_config
from mim_lightning.errors import ErrorReport, write_note
from mim_lightning.interruption import STOPPED_AFTER
from mim_lightning.io.locks import is_locked, lock, try_lock
from mim_lightning.run import Run
from mim_lightning.run_states import STATES, print_states, read_states
from mim_lightning.runs import runs

MONITOR = "val/image_to_image/hit@1"
LONG = "4tower-a-folder-of-somebody-with-a-long-name-seed1-0123abcd"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_states, "program", lambda folder: ["mim"])


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
    assert [line.strip() for line in commands.splitlines()] == [
        f"mim train 'a.b=c d' run.name=limited trainer.max_time=null paths.runs={tmp_path}",
        f"mim train trainer.max_time=00:00:01:00 'a.b=c d' run.name=failed paths.runs={tmp_path}",
        f"mim train trainer.max_time=00:00:01:00 'a.b=c d' run.name={LONG} paths.runs={tmp_path}",
    ]
    print_states([state for state in states if state.run.run_id in ("running", "finished")])
    assert "to go on" not in capsys.readouterr().out
    (tmp_path / LONG / "command.txt").unlink()
    runs(tmp_path, ["stopped"])
    assert "goes on by the command or call that started it" in capsys.readouterr().out
    runs(tmp_path, ["pruned"])
    assert capsys.readouterr().out == f"{tmp_path}: none of 6 runs is pruned\n"


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    damaged = {
        "failed.json": '{"kind":',
        "config.yaml": "trainer: null\nrun: {id: x}\n",
        "command.txt": "mim train 'a",
        "results.json": "",
    }
    for name, text in damaged.items():
        (write_run(tmp_path, name.partition(".")[0], 1).folder / name).write_text(text)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "config.yaml").mkdir()
    write_run(tmp_path, "stopped", 1)
    found = {state.run.run_id: state for state in read_states(tmp_path)}
    assert found.pop("stopped").state == "stopped"
    assert {state.state for state in found.values()} == {"damaged"} and len(found) == 5
    assert all(state.reason and state.next_command is None for state in found.values())
    with lock(tmp_path / "results" / ".lock"):
        (running,) = (state for state in read_states(tmp_path) if state.run.run_id == "results")
    assert running.state == "running" and "results.json" in running.reason


def test_a_lock_that_may_not_be_read_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, "of_somebody", 1)
    run.lock_path.touch()
    opened, allowed = os.open, [os.O_RDONLY]

    def guarded(path: Path, flags: int, *mode: int) -> int:
        if path == run.lock_path and flags & os.O_ACCMODE not in allowed:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *mode)

    descriptor = try_lock(run.lock_path)
    assert descriptor is not None
    monkeypatch.setattr(os, "open", guarded)
    states = [read_states(tmp_path)[0].state]
    os.close(descriptor)
    states.append(read_states(tmp_path)[0].state)
    allowed.clear()
    states.append(read_states(tmp_path)[0].state)
    assert states == ["running", "stopped", "unknown"]


def test_a_later_failure_counts_more_than_early_results(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", 3, (0.0, 0.2), {MONITOR: 0.2, STOPPED_AFTER: 60.0})
    for minute, state in ((2, "out of time"), (4, "failed")):
        write_note(run.folder, ErrorReport("ValueError", "a reason"))
        os.utime(run.folder / "failed.json", (60 * minute, 60 * minute))
        assert read_states(tmp_path)[0].state == state
    write_note(run.folder, ErrorReport("TrialPruned", "lags"))
    (run.folder / "failed.json").unlink()
    os.utime(run.folder / "pruned.json", (300, 300))
    (pruned,) = read_states(tmp_path)
    assert (pruned.state, pruned.next_command, pruned.changed.timestamp()) == ("pruned", None, 300)


def test_the_best_of_all_validations_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, "a", 1)
    save_config({"monitor": MONITOR, "trainer": {"max_epochs": -1}, "run": {"id": "a"}}, run.config_path)
    rows = ("-1,0,0.9,", "0,4,0.6,", "0,9,0.5,", "1,14,0.4,no number")
    (run.folder / "csv" / "version_0" / "metrics.csv").write_text("\n".join([f"epoch,step,{MONITOR},x", *rows, ""]))
    runs(tmp_path)
    printed = capsys.readouterr().out
    assert "2/-" in printed and "0.600" in printed


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("mim train a=b", "mim train a=b"),
        ("mim train paths.runs=runs", "mim train paths.runs=runs"),
        ("mim train paths.runs=${oc.env:X}", "mim train paths.runs=runs"),
        ("cd {here} && mim train", "mim train"),
        ("cd '/else where' && mim train", "cd '/else where' && mim train paths.runs={runs}"),
        ("MIM_PREPARED_DIR='a b' MIM_DATA_DIR=c mim train", "MIM_PREPARED_DIR='a b' mim train"),
        ("mim train --config-dir conf 'a=$(b)'", "mim train --config-dir conf 'a=$(b)'"),
        ("mim train 'trial={{storage: postgres://u:secret@h}}'", None),
        ("mim train a=\x1b[2J", None),
        ("mim serve", None),
        ("X=1 mim train", None),
        ("rm -r a", None),
        ("", None),
    ],
)
def test_a_command_goes_on_from_where_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, printed: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIM_RUNS_DIR", raising=False)
    monkeypatch.delenv("MIM_PREPARED_DIR", raising=False)
    monkeypatch.setenv("MIM_DATA_DIR", "c")
    run = write_run(tmp_path / "runs", "a", 1)
    run.command_path.write_text(written.replace("{here}", str(tmp_path)).replace("{{", "{").replace("}}", "}"))
    wanted = printed and printed.replace("{runs}", str(tmp_path / "runs"))
    assert read_states(Path("runs"))[0].next_command == wanted
    (tmp_path / "runs").rename(tmp_path / "my runs")
    moved = read_states(Path("my runs"))[0].next_command
    assert moved is None if printed is None else moved is not None and "my runs" in moved


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
