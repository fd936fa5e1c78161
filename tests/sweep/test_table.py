"""The table a person reads at the end of a sweep."""

import pytest

from mim_lightning.sweep.ledger import Row
from mim_lightning.sweep.table import describe_unfinished, print_jobs


def finished(job: int, model: str, seed: int, value: float) -> Row:
    results = {"val/image_to_image/hit@1": value, "val/image_to_image/hit@1/low": 0.0, "val/image_to_image/mrr": 0.9}
    return Row(job, {"model": model, "seed": str(seed)}, "finished", f"run-{job}", results=results)


FAILED = [Row(job, {"model": "3tower", "seed": str(job)}, "failed", reason="diverged") for job in (2, 3)]


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


def test_nothing_finished_is_a_table_too(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs("2 jobs", FAILED)
    assert "model=3tower seed=2" in capsys.readouterr().out


def test_equal_reasons_are_told_once() -> None:
    rows = [*FAILED, finished(0, "2tower", 1, 0.5), Row(4, {}, "pruned", reason="lags"), Row(5, {}, "running")]
    assert describe_unfinished(rows) == ["failed: jobs 2, 3: diverged", "pruned: job 4: lags", "running: job 5"]
