"""The frame of the campaign: outcomes are recorded, failures too, and the tables count them."""

from __future__ import annotations

import csv
import json
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign.malformed import BYTES, JSONS
from tests.campaign.outcomes import points, record_all, record_outcome

SCRIPT = Path(__file__).parents[2] / "experiments" / "reliability" / "tables.py"


def test_outcomes_are_counted_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "outcomes.jsonl"
    monkeypatch.setenv("MIM_CAMPAIGN_RECORD", str(record))
    for number in (1, 2, 2):
        with record_outcome("kill", "train", f"kill -9 at step {number}") as found:
            found.outcome = "equal weights"
    with pytest.raises(AssertionError, match=r"at step 3.*seed"), record_outcome("kill", "train", "kill -9 at step 3"):
        raise AssertionError("other | weights\nthan before")
    with record_outcome("signal", "serve", "SIGTERM") as found:
        found.outcome = "drained"
    written_before = (
        "part,target,input,outcome,holds,count\nkill,train,x,of before,yes,7\nkill,serve,y,of before,yes,7\n"
        "starved,train,disk full,one line,yes,2\nstarved,train,room on the disk again,finishes,yes,1\n"
        "rubbish,index,the card is empty,one line,yes,1\nrubbish,record,the log is empty,one line,yes,1\n"
    )
    (tmp_path / "outcomes.csv").write_text(written_before)

    subprocess.run([sys.executable, SCRIPT, record, "--folder", tmp_path], check=True)
    with (tmp_path / "outcomes.csv").open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ("kill", "serve", "y", "of before", "yes", "7"),
        ("kill", "train", "kill -9 at step 1", "equal weights", "yes", "1"),
        ("kill", "train", "kill -9 at step 2", "equal weights", "yes", "2"),
        ("kill", "train", "kill -9 at step 3", "other | weights", "no", "1"),
        ("signal", "serve", "SIGTERM", "drained", "yes", "1"),
        ("starved", "train", "disk full", "one line", "yes", "2"),
        ("starved", "train", "room on the disk again", "finishes", "yes", "1"),
        ("rubbish", "index", "the card is empty", "one line", "yes", "1"),
        ("rubbish", "record", "the log is empty", "one line", "yes", "1"),
    ]
    table = (tmp_path / "table.md").read_text()
    assert "| kill | train | 4 | 3 | 3 | 1 |" in table and "| starved | train | 2 | 1 | 2 | 0 |" in table
    assert "| **rubbish** | all | 2 | 1 | 2 | 0 |" in table, "what can happen to any file counts once"
    kinds = (tmp_path / "kinds.md").read_text()
    assert "| kill | kill -9 at step 2 | train | 2 | 1 | 2 | 0 |" in kinds and "card" not in kinds
    found_table = (tmp_path / "found.md").read_text()
    assert "| kill | train | equal weights | 3 | yes |" in found_table and "other \\| weights" in found_table

    line = {"part": "kill", "target": "train", "input": "kill -9 at step 3", "outcome": "equal weights", "holds": True}
    record.write_text(json.dumps(line))
    subprocess.run([sys.executable, SCRIPT, record, "--add", "--folder", tmp_path], check=True)
    table = (tmp_path / "table.md").read_text()
    assert "| kill | train | 4 | 3 | 4 | 0 |" in table, "that input was tried again, the others stay"


def test_a_problem_is_recorded_for_each_that_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "outcomes.jsonl"
    monkeypatch.setenv("MIM_CAMPAIGN_RECORD", str(record))
    torn = pickle.UnpicklingError("invalid load key")
    for tried in (["kill -9 at step 1", ""], [""], []):
        with pytest.raises(pickle.UnpicklingError):
            record_all("kill", "train", tried, "equal weights", torn)
    record_all("kill", "train", [""], "equal weights", None)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(line["input"], line["outcome"], line["holds"]) for line in lines] == [
        (input_, "invalid load key", False) for input_ in ("kill -9 at step 1", "the first one", "the first one")
    ]


def test_names_of_temporary_files_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIM_CAMPAIGN_RECORD", str(tmp_path / "outcomes.jsonl"))
    with record_outcome("starved", "train", "16 descriptors") as found:
        found.outcome = "cannot open '/tmp/tmp5dmkfzzfwandb-media'"
    assert "'/tmp/tmp...wandb-media'" in (tmp_path / "outcomes.jsonl").read_text()


def test_tables_know_what_can_happen_to_any_file() -> None:
    assert set(runpy.run_path(str(SCRIPT))["WAYS"]) == {*BYTES, *JSONS}


def test_inputs_of_a_kind_are_counted_together() -> None:
    kind_of = runpy.run_path(str(SCRIPT))["kind_of"]
    assert {
        kind_of(named)
        for named in (
            "SIGTERM at random: open a, b",
            "Ctrl-C before rename .results.json.partial",
            "SIGTERM before mkdir a",
        )
    } == {"SIGTERM or Ctrl-C at a random moment"}
    assert (
        kind_of("Ctrl-C before the results have their name") == "SIGTERM or Ctrl-C before the results have their name"
    )
    assert kind_of("kill -9 at 0.41 of the CPU time") == "kill -9 at a random moment"
    assert kind_of("kill -9 in a validation") == "kill -9 in a validation"
    assert kind_of("reads a read-only runs") == "reads a read-only folder"
    assert kind_of("stall once: a shard") == "store: stall once"


def test_a_seed_draws_the_same_points_and_few_are_in_the_default_suite() -> None:
    first, again = (points("train", 5, 2) for _ in range(2))
    assert [one.values[0].random() for one in first] == [one.values[0].random() for one in again]
    assert len({one.id for one in first}) == len(first) and [bool(one.marks) for one in first[:3]] == [
        False,
        False,
        True,
    ]
