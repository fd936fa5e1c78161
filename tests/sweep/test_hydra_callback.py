"""The callback of a sweep: a log that cannot be written ends it, in one line and not in 0."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mim_lightning import next_command
from mim_lightning.sweep import hydra_callback
from mim_lightning.sweep.hydra_callback import SweepLog
from mim_lightning.sweep.job_log import FINISHED, JobRecord


def test_a_log_that_cannot_be_written_ends_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra turns another exception of a callback into a warning, and the sweep would end as if all were well."""

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "jobs/1.json")

    callback = SweepLog()
    callback.log = SimpleNamespace(keys=[])  # type: ignore[assignment]
    monkeypatch.setattr(hydra_callback, "_identify_job", fail)
    monkeypatch.setattr(hydra_callback, "print_summary", fail)
    callback._unlock = lambda: None  # type: ignore[assignment]
    for call in (
        lambda: callback.on_job_start(None),
        lambda: callback.on_job_end(None, None),
        lambda: callback.on_multirun_end(None),
    ):
        with pytest.raises(SystemExit) as ended:
            call()
        assert ended.value.code == 2
        assert capsys.readouterr().err == "error: jobs/1.json: No space left on device\n"


@pytest.mark.parametrize(
    ("varied", "command"),
    [([{"seed": "1"}, {"seed": "2"}], "runs"), ([{"seed": "1", "lr": "1"}, {"seed": "1", "lr": "2"}], "compare")],
)
def test_runs_that_differ_in_their_seed_alone_are_not_sent_to_compare(
    varied: list[dict[str, str]],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """It refuses them: they are one group."""
    jobs = [JobRecord(number, keys, FINISHED, f"run{number}") for number, keys in enumerate(varied)]
    for job in jobs:
        (tmp_path / job.run_id).mkdir()
    callback = SweepLog()
    callback.log = SimpleNamespace(keys=[])  # type: ignore[assignment]
    callback._unlock = lambda: None  # type: ignore[assignment]
    monkeypatch.setattr(hydra_callback, "print_summary", lambda _: jobs)
    monkeypatch.setattr(next_command, "is_entry_point", lambda: True)
    monkeypatch.setattr(next_command, "program", lambda folder: ["mim"])
    callback.on_multirun_end(SimpleNamespace(paths=SimpleNamespace(runs=str(tmp_path))))
    folders = [tmp_path] if command == "runs" else [tmp_path / job.run_id for job in jobs]
    assert capsys.readouterr().out == f"next: mim {command} {' '.join(map(str, folders))}\n"
