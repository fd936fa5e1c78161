"""A row a run, whatever happens, in a file that is whole at any time."""

import csv
from dataclasses import replace
from pathlib import Path

from mim_lightning.sweep.ledger import Ledger, Row

ROW = Row(
    job=1,
    overrides={"seed": "1", "model": "2tower"},
    status="finished",
    run_id="run-1",
    monitor="val/a/hit@1",
    results={"val/a/hit@1": 0.5, "val/a/hit@1/low": 0.25, "untouched/a/hit@1": 0.1, "fit_seconds": 2.0, "epoch": 3},
)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_has_a_column_for_each_key_that_varies_and_each_validation_metric(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, ["model", "seed"])
    ledger.write(ROW)
    ledger.write(Row(0, {"model": "3tower", "seed": "2"}, "failed", "run-0", reason="it,\nfailed"))
    first, second = read_csv(ledger.path)
    assert list(second) == [
        *("job", "run_id", "status", "model", "seed", "monitor", "score", "val/a/hit@1"),
        *("fit_seconds", "was_resumed", "reason"),
    ]
    assert (first["job"], first["status"], first["reason"], first["score"]) == ("0", "failed", "it,\nfailed", "")
    assert second["model"] == "2tower" and second["score"] == second["val/a/hit@1"] == "0.5"
    assert [row.run_id for row in ledger.read()] == ["run-0", "run-1"]
    assert ledger.find("run-1") == ROW and ledger.find("run-2") is None


def test_a_job_started_again_replaces_its_row(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, ["seed"])
    ledger.write(Row(1, ROW.overrides, "failed", reason="no such table"))  # before there was a run
    for status in ("running", "failed", "finished"):
        Ledger(tmp_path, ["seed"]).write(replace(ROW, status=status))
    assert [row["status"] for row in read_csv(ledger.path)] == ["finished"]
    assert not list(tmp_path.rglob("*.partial"))
