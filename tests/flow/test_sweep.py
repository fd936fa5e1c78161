"""Sweeps that survive: failing jobs, power cuts, parallel jobs, jobs of several processes."""

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mim_lightning import train
from tests.flow.entry_points import start
from tests.shop import small

pytest.importorskip("optuna", reason="needs the extra: pip install 'mim-lightning[sweep]'")

Sweep = Callable[..., int]
SEARCH = ["hydra/sweeper=optuna", "optim.lr=tag(log, interval(1e-4, 1e-2))", "hydra.sweeper.n_trials=2"]


def two_towers(folder: Path, *more: str) -> list[str]:
    return small(folder, "model=2tower", *more)


@pytest.fixture
def sweep(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run a multirun in this process, and return the exit code."""

    def call(*overrides: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train", "-m", *two_towers(shop, *overrides)])
        try:
            train.main()
        except SystemExit as stopped:
            return int(str(stopped.code))
        return 0

    return call


def read_log(shop: Path) -> list[dict[str, str]]:
    (path,) = (shop / "runs" / "sweeps").glob("*/ledger.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(shop: Path, name: str) -> list[str]:
    return [row[name] for row in read_log(shop)]


def test_failing_jobs_are_recorded_and_tried_again(shop: Path, sweep: Sweep, capfd: pytest.CaptureFixture[str]) -> None:
    # learns, diverges, and a value of the wrong type
    command = ["optim.lr=1e-3,1e30,fast", "trainer.max_epochs=1"]
    assert sweep(*command) == 1
    out, errors = capfd.readouterr()
    assert "Traceback" not in errors
    stdout = [line for line in errors.splitlines() if line.startswith("error:")]
    reason = "job 1: training diverged: 7 of 7 'query_image' vectors are not finite at step 3"
    assert len(stdout) == 2 and reason in stdout[0], errors  # steps with NaN are skipped until the validation
    assert stdout[1].endswith("error: job 2: optim.lr=fast: give a number")
    assert "3 jobs" in out and "failed: job 1: training diverged" in out
    assert column(shop, "status") == ["finished", "failed", "failed"]
    assert column(shop, "optim.lr") == ["0.001", "1e+30", "fast"]
    runs = [shop / "runs" / run_id for run_id in column(shop, "run_id")]
    assert [(run / "failed.json").is_file() for run in runs] == [False, True, True]
    assert json.loads((runs[2] / "failed.json").read_text())["kind"] == "ValueError"

    finished = (runs[0] / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    (runs[1] / "failed.json").write_text("of an earlier start")
    assert sweep(*command) == 1
    assert (runs[0] / "checkpoints" / "best.ckpt").stat().st_mtime_ns == finished
    assert "diverged" in (runs[1] / "failed.json").read_text()
    assert column(shop, "status") == ["finished", "failed", "failed"]


@pytest.mark.slow
def test_a_killed_search_resumes_with_concurrent_trials(shop: Path) -> None:
    # in the second of two epochs; in the place of a callback that the run's id does not know
    kill = "++callbacks.throughput={_target_: tests.flow.kill_callback.KillAt, step: 4}"
    killed = start("-m", *two_towers(shop, *SEARCH, kill))
    assert killed.returncode == -9, killed.stderr
    (first,) = read_log(shop)
    assert first["status"] == "running"
    finished = start("-m", *two_towers(shop, *SEARCH, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"))
    assert finished.returncode == 0, finished.stderr[-3000:]
    rows = read_log(shop)
    assert [(row["status"], row["was_resumed"]) for row in rows] == [("finished", "True"), ("finished", "False")]
    assert rows[0]["run_id"] == first["run_id"] != rows[1]["run_id"], "the same parameters, and others"
    assert all(0 <= float(row["score"]) <= 1 and float(row["fit_seconds"]) > 0 for row in rows)
    assert "best: job" in finished.stdout and "2 jobs" in finished.stdout


def test_a_search_prunes(shop: Path, sweep: Sweep, capfd: pytest.CaptureFixture[str]) -> None:
    # at the first question whatever has not beaten the untrained model by far
    name = "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner"
    pruner = [name, "+hydra.sweeper.pruner.lower=1.5", "hydra.sweeper.warmup_epochs=0"]
    assert sweep(*SEARCH, *pruner) == 0
    assert "pruned: job 0: pruned after epoch 0" in capfd.readouterr().err
    assert column(shop, "status") == ["pruned", "pruned"]
    for run_id in column(shop, "run_id"):
        assert (shop / "runs" / run_id / "pruned.json").is_file()
        assert not (shop / "runs" / run_id / "results.json").is_file()
    assert sweep(*SEARCH, *pruner) == 0, "two trials have ended: there is nothing to do"
    assert "job 0: optim.lr" not in capfd.readouterr().out


@pytest.mark.slow
def test_submitted_jobs_of_two_processes(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as in a SLURM job of one task, which starts the run's processes itself
    task = {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "NTASKS": "1", "JOB_ID": "7", "JOB_NAME": "train"}
    for name, value in task.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    submit = ["hydra/launcher=submitit_local", "trainer.devices=2", "trainer.max_epochs=1"]
    finished = start("-m", *two_towers(shop, *submit, "optim.lr=1e-3,1e30"))
    assert finished.returncode == 1, finished.stderr[-3000:]
    rows = read_log(shop)
    assert [row["status"] for row in rows] == ["finished", "failed"]
    assert rows[1]["reason"].startswith("training diverged: the loss is nan at step 2"), "said in a child process"
    assert math.isfinite(float(rows[0]["score"])) and "2 jobs" in finished.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=optuna", "hydra.sweeper.n_trials=0"], "error: hydra.sweeper.n_trials=0: give 1 or more"),
        (["sweep=optuna", "hydra.sweeper.n_trails=3"], "error: no config key 'hydra.sweeper.n_trails'"),
        (["sweep=optuna"], "error: no config key 'model.pairs.query_image_product_text'"),
        (["sweep=optuna", "hydra.sweep.dir=/proc/nowhere", "model=4tower"], "error: hydra.sweep.dir=/proc/nowhere: "),
        (["hydra/sweeper=optuna", "seed=1"], "error: nothing to search; give ranges"),
        (["hydra/launcher=jobli", "seed=1,2"], "error: no option 'jobli' in config group 'hydra/launcher'"),
        (["hydra/launcher=submitit_slurm", "seed=1,2"], "error: hydra/launcher: Could not detect"),
        (["modle=2tower,3tower"], "error: no config key 'modle'; did you mean 'model'"),
    ],
)
def test_a_mistake_is_one_line(
    sweep: Sweep, overrides: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*overrides) == 2
    errors = capfd.readouterr().err
    stdout = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(stdout) == 1 and message in stdout[0] and "Traceback" not in errors, errors
