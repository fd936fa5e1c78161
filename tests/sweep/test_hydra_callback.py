"""The callback of a sweep: a log that cannot be written ends it, in one line and not in 0."""

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from mim_lightning.sweep import hydra_callback
from mim_lightning.sweep.hydra_callback import SweepLog


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
