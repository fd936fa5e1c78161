"""The table at the end of a sweep, and its means over seeds."""

import math
import statistics

import pytest

from mim_lightning.sweep.job_log import JobRecord
from mim_lightning.sweep.summary import average_seeds, describe_unfinished, mean_interval, print_jobs


def finished(job: int, model: str, seed: int, value: float) -> JobRecord:
    results = {"val/image_to_image/hit@1": value, "val/image_to_image/hit@1/low": 0.0, "val/image_to_image/mrr": 0.9}
    return JobRecord(job, {"model": model, "seed": str(seed)}, "finished", f"run-{job}", results=results)


FAILED = [JobRecord(job, {"model": "3tower", "seed": str(job)}, "failed", reason="diverged") for job in (2, 3)]


def test_seeds_are_averaged_with_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs("4 jobs", [finished(0, "2tower", 1, 0.5), finished(1, "2tower", 2, 0.7), *FAILED])
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["0", "model=2tower", "seed=1", "finished", "0.500"] in rows
    assert ["2", "model=3tower", "seed=2", "failed", "-"] in rows
    assert ["model=2tower", "n", "=", "2", "0.600", "±1.271"] in rows  # 12.706 * 0.1
    assert "mrr" not in out and "95 % Student-t" in out


def test_without_repetitions_there_are_no_means(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs("2 jobs", [finished(0, "2tower", 1, 0.5), finished(1, "3tower", 1, 0.7)])
    assert "n =" not in capsys.readouterr().out


def test_a_sweep_without_finished_jobs_has_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs("2 jobs", FAILED)
    assert "model=3tower seed=2" in capsys.readouterr().out


def test_equal_reasons_are_one_line() -> None:
    rows = [
        *FAILED,
        finished(0, "2tower", 1, 0.5),
        JobRecord(4, {}, "pruned", reason="lags"),
        JobRecord(5, {}, "running"),
    ]
    assert describe_unfinished(rows) == ["failed: jobs 2, 3: diverged", "pruned: job 4: lags", "running: job 5"]


@pytest.mark.parametrize(("num", "level", "t"), [(2, 0.95, 12.706), (4, 0.95, 3.182), (11, 0.99, 3.169)])  # in tables
def test_the_interval_is_student_t(num: int, level: float, t: float) -> None:
    values = [0.4, *[0.5] * (num - 1)]
    assert mean_interval(values, level)[1] == pytest.approx(t * statistics.stdev(values) / math.sqrt(num), rel=2e-4)


def test_a_mean_has_an_interval_from_two_jobs_on() -> None:
    mean, half = mean_interval([0.5, 0.7, 0.6])
    assert (mean, half) == (pytest.approx(0.6), pytest.approx(4.3027 * 0.1 / math.sqrt(3), abs=1e-4))
    assert mean_interval([0.5])[0] == 0.5 and math.isnan(mean_interval([0.5])[1])


def test_seeds_and_folds_are_averaged_and_nothing_else() -> None:
    jobs = [
        ({"model": model, "seed": seed, "data.splits.fold": fold}, {"hit": float(seed) + 10 * float(fold)})
        for model in ("2tower", "3tower")
        for seed in "12"
        for fold in "01"
    ]
    settings = average_seeds([*jobs, ({"model": "4tower", "seed": "1"}, {"hit": 5.0, "mrr": 1.0})])
    assert [(s.label, s.num_jobs) for s in settings] == [("model=2tower", 4), ("model=3tower", 4), ("model=4tower", 1)]
    assert settings[0].means["hit"][0] == pytest.approx(6.5)
    assert list(settings[2].means) == ["hit", "mrr"]


def test_only_what_all_jobs_have_is_averaged() -> None:
    (setting,) = average_seeds([({"seed": "1"}, {"hit": 1.0, "mrr": 1.0}), ({"seed": "2"}, {"hit": 0.0})])
    assert setting.label == "" and list(setting.means) == ["hit"]
