"""A search over a made-up landscape: its trials over several starts, and how each of them ends."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from mim_lightning.sweep.job_log import JobLog, JobRecord
from mim_lightning.sweep.launcher import FaultTolerantLauncher
from mim_lightning.sweep.optuna_study import open_study
from mim_lightning.sweep.optuna_sweeper import OptunaSweeper
from mim_lightning.sweep.sweep_id import pick_overrides

pytest.importorskip("optuna", reason="needs the extra: pip install 'mim-lightning[sweep]'")

End = tuple[str, float]  # how a job ends, and at which value
SAMPLER = {"_target_": "optuna.samplers.RandomSampler", "seed": 1}


class Landscape(Launcher):
    """Gives each job the end that `judge` finds for its parameters, and logs it as jobs do."""

    def __init__(self, folder: Path, judge: Callable[[dict[str, str]], End]) -> None:
        self.log, self.judge = JobLog(folder, ["x"]), judge
        self.batches: list[list[dict[str, str]]] = []

    def setup(self, **_: Any) -> None:
        pass

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returned = []
        self.batches.append([pick_overrides(overrides, ["x", "seed", "trial"]) for overrides in job_overrides])
        for given in self.batches[-1]:
            status, value = self.judge(given)
            number, x = read_trial(given)["number"], given["x"]
            self.log.write(JobRecord(number, {"x": x}, status, f"run-{x}", reason=f"is {status}"))
            returned.append(JobReturn(status=JobStatus.COMPLETED, _return_value=value))
        return returned

    @property
    def xs(self) -> list[str]:
        return [given["x"] for batch in self.batches for given in batch]


def read_trial(given: dict[str, str]) -> Any:
    return OverridesParser.create().parse_override(f"trial={given['trial']}").value()


def search(folder: Path, judge: Callable[[dict[str, str]], End], **options: Any) -> Landscape:
    """Start a search as Hydra does, with a launcher that trains nothing."""
    options = {
        "n_trials": 4,
        "n_jobs": 1,
        "study_name": None,
        "storage": None,
        "sampler": SAMPLER,
        "pruner": None,
        "warmup_epochs": 0,
        **options,
    }
    launcher = Landscape(folder, judge)
    made = OptunaSweeper(**{"params": None, **options})
    made.composed = OmegaConf.create(
        {"hydra": {"sweeper": {"params": {"x": "interval(0.0, 1.0)"}}, "overrides": {"task": ["seed=5"]}}}
    )
    made.context = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=lambda *_: None))  # type: ignore
    made.fault_tolerant_launcher, made.log = FaultTolerantLauncher(launcher, folder, ["x"]), JobLog(folder)
    made.study_name, made.storage = made.study_name or "s", made.storage or str(folder / "study.journal")
    made.sweep([])
    return launcher


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in open_study(str(folder / "study.journal"), "s").get_trials()]


def finishes(given: dict[str, str]) -> End:
    return "finished", float(given["x"])


def killed(given: dict[str, str]) -> End:
    raise KeyboardInterrupt


def test_trials_count_over_all_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = search(tmp_path, finishes)
    assert len(set(first.xs)) == 4 and all(given["seed"] == "5" for (given,) in first.batches)
    assert f"x={max(first.xs, key=float)}" in capsys.readouterr().out
    assert search(tmp_path, finishes).xs == []
    more = search(tmp_path, finishes, n_trials=6)
    assert len(more.xs) == 2 and not set(more.xs) & set(first.xs), "a seeded sampler does not start over"


def test_an_interrupted_trial_is_resumed_with_the_same_parameters(tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    def dies_in_the_second(given: dict[str, str]) -> End:
        seen.append(given)
        return finishes(given) if len(seen) == 1 else killed(given)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, dies_in_the_second)
    assert states(tmp_path) == ["COMPLETE", "RUNNING"]
    with (tmp_path / "study.journal").open("a") as file:
        file.write('{"op_code": 5, "half a li')  # the power went off while it was written
    again = search(tmp_path, finishes)
    assert again.batches[0] == [seen[1]] and len(again.xs) == 3
    assert states(tmp_path) == ["COMPLETE"] * 4


def test_failures_do_not_count_and_are_retried_at_the_next_start(tmp_path: Path) -> None:
    def half_fail(given: dict[str, str]) -> End:
        return finishes(given) if float(given["x"]) < 0.5 else ("failed", float("nan"))

    first = search(tmp_path, half_fail, n_trials=6)
    failed = [x for x in first.xs if float(x) >= 0.5]
    assert 0 < len(failed) < 6 and len(first.xs) == 6, "the sweep continues to its end"
    for judge in (half_fail, finishes):
        assert search(tmp_path, judge, n_trials=6).xs == failed
    assert search(tmp_path, finishes, n_trials=6).xs == []
    assert len(JobLog(tmp_path).read()) == 6
    (new,) = search(tmp_path, finishes, n_trials=7).xs
    assert new not in first.xs, "what failed twice waits once"


def test_a_search_ends_where_its_sampler_has_tried_everything(tmp_path: Path) -> None:
    grid = {"_target_": "optuna.samplers.GridSampler", "search_space": {"x": [0.25, 0.5]}}
    assert sorted(search(tmp_path, finishes, sampler=grid).xs) == ["0.25", "0.5"]
    assert states(tmp_path) == ["COMPLETE"] * 2


def test_a_pruned_trial_has_ended(tmp_path: Path) -> None:
    launcher = search(tmp_path, lambda given: ("pruned", float("nan")), n_trials=2)
    assert len(launcher.xs) == 2 and states(tmp_path) == ["PRUNED", "PRUNED"]
    assert search(tmp_path, finishes, n_trials=2).xs == []


def test_an_error_of_every_trial_ends_the_search(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the first 3 trials failed for the same reason: is failed"):
        search(tmp_path, lambda given: ("failed", float("nan")), n_trials=50)


def test_trials_run_in_batches(tmp_path: Path) -> None:
    launcher = search(tmp_path, finishes, n_trials=5, n_jobs=2)
    assert [len(batch) for batch in launcher.batches] == [2, 2, 1]
    assert states(tmp_path) == ["COMPLETE"] * 5


def test_a_trial_knows_where_to_report(tmp_path: Path) -> None:
    pruner = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2}
    launcher = search(tmp_path, finishes, n_trials=1, pruner=pruner, study_name="it's mine")
    assert read_trial(launcher.batches[0][0]) == {
        "number": 0,
        "study": "it's mine",
        "storage": str(tmp_path / "study.journal"),
        "pruner": pruner,
        "warmup_epochs": 0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, r"hydra\.sweeper\.n_trials=0: give 1 or more"),
        ({"n_jobs": 0}, r"hydra\.sweeper\.n_jobs=0: give 1 or more"),
        (
            {"sampler": {"_target_": "optuna.samplers.TPESamplr"}},
            r"hydra\.sweeper\.sampler\._target_=optuna.samplers.TPESamplr: .* did you mean 'optuna.*TPESampler'",
        ),
        ({"pruner": {"_target_": "none"}}, r"hydra\.sweeper\.pruner\._target_=none: .* there are .*MedianPruner"),
        ({"sampler": {"_target_": "optuna.samplers.TPESampler", "sede": 1}}, "sede"),
        ({"sampler": "tpe"}, r"hydra\.sweeper\.sampler=tpe: give its class, as hydra\.sweeper\.sampler\._target_="),
        ({"storage": "/proc/nowhere/study.journal"}, r"hydra\.sweeper\.storage=/proc/nowhere/study\.journal"),
        ({"storage": "nosql://host"}, r"hydra\.sweeper\.storage=nosql://host"),
    ],
)
def test_invalid_options_are_reported_first(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        search(tmp_path, killed, **options)
    assert "\n" not in str(raised.value)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'mim-lightning\[sweep\]'"):
        search(tmp_path, killed)
