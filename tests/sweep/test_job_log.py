"""One row for each run, whatever happens, in a file that is complete at any time."""

import csv
from dataclasses import replace
from pathlib import Path

from mim_lightning.sweep.job_log import JobLog, JobRecord

RECORD = JobRecord(
    job=1,
    overrides={"seed": "1", "model": "2tower"},
    status="finished",
    run_id="run-1",
    monitor="val/a/hit@1",
    results={"val/a/hit@1": 0.5, "val/a/hit@1/low": 0.25, "initial/a/hit@1": 0.1, "fit_seconds": 2.0, "epoch": 3},
)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_has_a_column_for_each_key_that_varies_and_each_validation_metric(tmp_path: Path) -> None:
    log = JobLog(tmp_path, ["model", "seed"])
    log.write(RECORD)
    log.write(JobRecord(0, {"model": "3tower", "seed": "2"}, "failed", "run-0", reason="it,\nfailed"))
    first, second = read_csv(log.path)
    assert list(second) == [
        *("job", "run_id", "status", "model", "seed", "monitor", "score", "val/a/hit@1"),
        *("fit_seconds", "was_resumed", "reason"),
    ]
    assert (first["job"], first["status"], first["reason"], first["score"]) == ("0", "failed", "it,\nfailed", "")
    assert second["model"] == "2tower" and second["score"] == second["val/a/hit@1"] == "0.5"
    assert [record.run_id for record in log.read()] == ["run-0", "run-1"]
    assert log.find("run-1") == RECORD and log.find("run-2") is None


def test_a_job_started_again_replaces_its_row(tmp_path: Path) -> None:
    log = JobLog(tmp_path, ["seed"])
    log.write(JobRecord(1, RECORD.overrides, "failed", reason="no such table"))  # before there was a run
    for status in ("running", "failed", "finished"):
        JobLog(tmp_path, ["seed"]).write(replace(RECORD, status=status))
    assert [row["status"] for row in read_csv(log.path)] == ["finished"]
    assert not list(tmp_path.rglob("*.partial"))
