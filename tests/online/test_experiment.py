"""A running experiment records what a service tells it, under the user's hash and arm."""

from pathlib import Path

import pytest

from mim_lightning.online.arms import Arm, assign
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.experiment import Experiment
from tests.online.making import SALT

ARMS = {name: Arm(name) for name in ("control", "new")}


def test_an_experiment_assigns_records_and_counts_clicks(tmp_path: Path) -> None:
    with EventLog(str(tmp_path / "events.db")) as log:
        made = Experiment("towers", ARMS, SALT, log)
        for number in range(20):
            user = f"user-{number}"
            arm = made.arm_of(user)
            assert arm == assign(user, ARMS, "towers", SALT).name
            shown = made.record(user, arm, "text", [("a", 0.9), ("b", 0.8)], 3.0, "f1")
            assert made.click(shown, "b") and not made.click(shown, "b")
            with pytest.raises(ValueError, match="was not shown"):
                made.click(shown, "c")
        counts = log.counts("towers")
    for count in ("num_users", "num_clicked"):
        assert sum(getattr(arm, count) for arm in counts.arms.values()) == 20
    assert {(row.position, row.num_clicks > 0) for row in counts.positions} == {(1, False), (2, True)}
