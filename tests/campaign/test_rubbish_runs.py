"""Malformed files of runs and event logs are refused in one line by the commands that read them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.ab_report import ab_report
from mim_lightning.analysis.embeddings import read_embeddings
from mim_lightning.analysis.figures.training_log import read_log
from mim_lightning.analysis.query_history import read_tracked
from mim_lightning.compare import compare
from mim_lightning.config import compose, load_stored_config
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.events import Click
from mim_lightning.run import Run
from tests.campaign.malformed import Malformed, Verdict, every, judge, record
from tests.campaign.rubbish_runs import CONFIG, EMBEDDINGS, EVENT_LOGS, HISTORY, LOG, RECORDS, RESULTS, RUN_FILES
from tests.migration.test_migration import FILES
from tests.online.event_factory import impression


@pytest.mark.parametrize("case", every(RECORDS, 20))
def test_malformed_records(case: Malformed, tmp_path: Path) -> None:
    record("record", case.wrong, read_evaluation(tmp_path / "run", case))


@pytest.mark.parametrize("case", every(EMBEDDINGS, 12))
def test_malformed_embeddings(case: Malformed, tmp_path: Path) -> None:
    record("record", case.wrong, read_vectors(tmp_path / "run", case))


@pytest.mark.parametrize("case", every(RUN_FILES, 12))
def test_malformed_files_of_a_run(case: Malformed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record("files of a run", case.wrong, read_files(tmp_path / "run", case))
    assert not (tmp_path / "ran").exists()  # code in a file


@pytest.mark.parametrize("case", every(EVENT_LOGS, 12))
def test_malformed_event_logs(case: Malformed, tmp_path: Path) -> None:
    record("event log", case.wrong, read_events(tmp_path / "log", case))


def read_evaluation(folder: Path, case: Malformed) -> Verdict:
    shutil.copytree(FILES / "finished", folder)
    case.damage(folder)
    output = folder / "compared"
    return judge(lambda: compare([FILES / "finished", folder], resamples=20, output=output), folder, case.names)


def read_vectors(folder: Path, case: Malformed) -> Verdict:
    shutil.copytree(FILES / "finished", folder)
    case.damage(folder)
    return judge(lambda: read_embeddings(folder / "evaluation").fingerprint, folder, case.names)


def read_files(folder: Path, case: Malformed) -> Verdict:
    shutil.copytree(FILES / "interrupted", folder, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copy(FILES / "finished/results.json", folder)
    case.damage(folder)
    readers: dict[str, Any] = {
        RESULTS: Run("run", folder).read_results,
        CONFIG: lambda: load_stored_config(folder / CONFIG),
        HISTORY: lambda: read_tracked(folder),
        LOG: lambda: read_log(folder),
    }
    return judge(readers[case.names], folder, case.names)


def read_events(folder: Path, case: Malformed) -> Verdict:
    folder.mkdir()
    with EventLog(str(folder / "events.db")) as log:
        for number in range(20):
            one = impression(f"user{number}", ("control", "new")[number % 2])
            log.record_impression(one)
            if number % 3 == 0:
                log.record_click(Click(one.impression_id, "a"))
    case.damage(folder)
    config = compose("ab_report", [f"event_log={folder}/events.db", "experiment_name=towers"])
    return judge(lambda: ab_report(config), folder, case.names, case.means, may_write=("events.db-",))
