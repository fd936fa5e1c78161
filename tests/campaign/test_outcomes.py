"""The frame of the campaign: outcomes are recorded, failures too, and the tables count them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign.outcomes import points, record_outcome

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
        "part,target,input,outcome,holds,count\nkill,train,x,of before,yes,7\nrubbish,images,cut,one line,yes,1\n"
    )
    (tmp_path / "outcomes.csv").write_text(written_before)

    subprocess.run([sys.executable, SCRIPT, record, "--folder", tmp_path], check=True)
    with (tmp_path / "outcomes.csv").open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ("kill", "train", "kill -9 at step 1", "equal weights", "yes", "1"),
        ("kill", "train", "kill -9 at step 2", "equal weights", "yes", "2"),
        ("kill", "train", "kill -9 at step 3", "other | weights", "no", "1"),
        ("signal", "serve", "SIGTERM", "drained", "yes", "1"),
        ("rubbish", "images", "cut", "one line", "yes", "1"),
    ]
    assert "| kill | train | 4 | 3 | 1 |" in (tmp_path / "table.md").read_text()
    found_table = (tmp_path / "found.md").read_text()
    assert "| kill | train | equal weights | 3 | yes |" in found_table and "other \\| weights" in found_table


def test_a_seed_draws_the_same_points_and_few_are_in_the_default_suite() -> None:
    first, again = (points("train", 5, 2) for _ in range(2))
    assert [one.values[0].random() for one in first] == [one.values[0].random() for one in again]
    assert len({one.id for one in first}) == len(first) and [bool(one.marks) for one in first[:3]] == [
        False,
        False,
        True,
    ]
