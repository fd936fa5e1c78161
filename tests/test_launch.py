"""How many processes a run starts, and in which precision."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mim_lightning import cli, launch
from mim_lightning.cli import FROZEN_CONFIG
from mim_lightning.errors import ErrorReport, read_error, write_error

TRAINER = {"accelerator": "auto", "devices": 1, "num_nodes": 1, "precision": "auto"}


@pytest.fixture(autouse=True)
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launch.OTHER_LAUNCHERS, "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("gpus", "change", "expected"),
    [
        (0, {}, 0),
        (0, {"devices": 2}, 2),
        (0, {"devices": "auto"}, 0),
        (8, {"devices": "auto"}, 8),
        (8, {"devices": -1}, 8),
        (8, {"devices": [0, 3]}, 2),
        (1, {"devices": "auto"}, 0),
        (8, {"devices": "auto", "accelerator": "cpu"}, 0),
        (8, {"devices": 8, "num_nodes": 2}, 0),  # several machines: the user's launcher starts them
    ],
)
def test_number_of_processes(gpus: int, change: dict, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_num_gpus", lambda: gpus)
    assert launch.num_processes_to_launch(TRAINER | change) == expected


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "0"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}])
def test_a_launched_process_launches_nothing(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_num_gpus", lambda: 8)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not launch.is_alone()
    assert launch.num_processes_to_launch(TRAINER | {"devices": 8}) == 0


@pytest.mark.parametrize(
    ("gpus", "change", "expected"),
    [
        (0, {}, "32-true"),
        (1, {}, "bf16-mixed"),
        (1, {"accelerator": "cpu"}, "32-true"),
        (0, {"precision": "16-mixed"}, "16-mixed"),
        (0, {"precision": None}, "32-true"),
    ],
)
def test_precision(gpus: int, change: dict, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_num_gpus", lambda: gpus)
    assert launch.choose_precision(TRAINER | change) == expected


def test_one_slurm_task_starts_the_processes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_num_gpus", lambda: 8)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert launch.num_processes_to_launch(TRAINER | {"devices": 8}) == 8


@pytest.mark.parametrize("devices", [8, "0,1"])
def test_devices_that_are_not_there_are_refused(devices: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_num_gpus", lambda: 2)
    with pytest.raises(ValueError, match=f"trainer.devices={devices}"):
        launch.num_processes_to_launch(TRAINER | {"devices": devices})


@pytest.mark.parametrize("devices", [0, -1, [0], [], None, 3.5, True, "two"])
def test_devices_that_no_cpu_has_are_refused(devices: object) -> None:
    with pytest.raises(ValueError, match=r"trainer\.devices=.*: give a number of processes"):
        launch.num_processes_to_launch(TRAINER | {"devices": devices, "accelerator": "cpu"})


GROUP = """
import torch.distributed as dist
from mim_lightning.cli import run_entry_point

def join(config):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dist.barrier()

run_entry_point("train", join)
assert not dist.is_initialized(), "gloo's threads live on"
"""


@pytest.mark.parametrize("is_launched", [True, False])
def test_no_thread_of_a_process_group_outlives_an_entry_point(is_launched: bool, tmp_path: Path) -> None:
    """They may want the interpreter while it ends, and the process aborts instead."""
    (tmp_path / "config.yaml").write_text("{}")
    environment = {**os.environ, **({FROZEN_CONFIG: str(tmp_path / "config.yaml")} if is_launched else {})}
    finished = subprocess.run(
        [sys.executable, "-c", GROUP], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("kind", "code"),
    [("RuntimeError", -9), ("Interruption", -9), ("Interruption", -15), ("RuntimeError", 1), ("ValueError", -9)],
)
def test_a_killed_process_is_named_where_another_says_only_that_it_lost_it_or_was_stopped(
    kind: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The call stack of the other is printed where it is no consequence of that."""

    def fail() -> None:
        raise ChildFailedError("train", {0: ProcessFailure(0, 11, 1, ""), 1: ProcessFailure(1, 12, code, "")})

    monkeypatch.setattr(run, "main", fail)
    monkeypatch.setattr(sys, "argv", ["launch", "--shutdown-timeout=120"])
    monkeypatch.setattr(launch.logging, "disable", lambda: None)
    monkeypatch.setenv(FROZEN_CONFIG, str(tmp_path / "config.yaml"))
    path = tmp_path / launch.ERROR_FILE
    write_error(path, ErrorReport(kind, "gloo: connection closed by peer"))
    if kind == "RuntimeError":
        path.with_name(cli.STACK_FILE).write_text("Traceback")
    with pytest.raises(SystemExit):
        launch._run_torchrun()
    found = read_error(path)
    assert found is not None
    assert ("process 1 died with exit code -9 SIGKILL" in found.reason) == (kind != "ValueError" and code == -9)
    assert capsys.readouterr().err == ("Traceback" if code == 1 else "")


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("connection closed by peer"), KeyError("a mistake of ours")])
def test_only_the_process_that_failed_first_shows_a_call_stack(
    is_first: bool, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have lost it; a signal may reach them later than that."""

    def work(config: object) -> None:
        raise error

    def exit_at_once(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(cli, "_exit_at_once", exit_at_once)
    (tmp_path / "config.yaml").write_text("{}")
    if not is_first:
        write_error(tmp_path / cli.ERROR_FILE, ErrorReport("Interruption", "at step 3"))
    expected = KeyError if is_first and isinstance(error, KeyError) else SystemExit
    with pytest.raises(expected):
        cli._run_frozen(tmp_path / "config.yaml", "train", work)
    assert (tmp_path / cli.STACK_FILE).exists() == (is_first and isinstance(error, RuntimeError))
