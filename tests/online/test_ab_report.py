"""The entry point ab_report: tables or JSON from an event log, and one line for each user error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.ab_report import ab_report
from mim_lightning.config import compose
from mim_lightning.online.assignment import Arm
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.events import Click
from mim_lightning.online.simulation import RELEVANCE, ClickModel, simulate_events, simulate_lift
from tests.flow.entry_points import start
from tests.online.event_factory import SALT, impression

MODEL = ClickModel()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A log of an experiment with a planted lift of +25 %."""
    path = str(tmp_path_factory.mktemp("log") / "events.db")
    arms = {name: Arm(name) for name in ("control", "new")}
    relevance = {"control": RELEVANCE, "new": simulate_lift(MODEL, RELEVANCE, 0.25)}
    with EventLog(path) as log:
        simulate_events(log, MODEL, relevance, arms, "planted", 900, SALT, seed=5)
    return path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    ab_report(compose("ab_report", list(words)))
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    return json.loads(printed(capsys, *words, "json=true"))


def write(path: Path, *shown: tuple[str, str, str]) -> str:
    """Write impressions of (user, arm, products clicked) into a log."""
    with EventLog(str(path)) as log:
        for user, arm, clicked in shown:
            made = log.record_impression(impression(user, arm, "abc"))
            for product in clicked:
                log.record_click(Click(made, product))
    return f"event_log={path}"


def test_a_planted_lift_is_reported_from_the_log_to_the_last_line(experiment: str) -> None:
    """As a user does it: a process of its own, from whose words and numbers the planted lift can be read."""
    words = [f"event_log={experiment}", "experiment_name=planted", "json=true", "planned_users=400"]
    finished = start(*words, module="mim_lightning.ab_report")
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["control"] == "control" and [row["arm"] for row in found["arms"]] == ["control", "new"]
    impressions, users = found["comparisons"]
    assert impressions["lift_interval"]["low"] < 0.25 < impressions["lift_interval"]["high"]
    assert impressions["always_valid_interval"]["low"] > 0 and impressions["p_value"] < 0.001
    assert users["measure"] == "per user" and users["lift"] > 0
    assert found["warnings"] == [] and found["sample_ratio"]["p_value"] > 0.01
    assert [row["position"] for row in found["positions"]] == [*range(1, 11)] * 2
    assert "user-" not in finished.stdout and finished.stderr == ""


def test_tables_show_the_numbers_of_json(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, f"event_log={experiment}")
    text = printed(capsys, f"event_log={experiment}", "planned_users=5000")
    row = found["comparisons"][0]
    for name in ("difference_interval", "lift_interval", "always_valid_interval"):
        assert f"[{100 * row[name]['low']:+.2f}, {100 * row[name]['high']:+.2f}]" in text
    assert f" {100 * row['difference']:+.2f} " in text and f" {100 * row['lift']:+.2f} " in text
    for arm in found["arms"]:
        assert f"{arm['num_impressions']:,}" in text and f" {100 * arm['click_rate']:.2f} " in text
    assert "warning: a look before the planned size" in text and "Position bias" in text
    assert f"{found['needed']['num_users']:,} users, {found['needed']['num_impressions']:,} impressions" in text


def test_a_mismatch_is_framed_above_all_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = write(tmp_path / "e.db", *((f"u{n}", "control" if n % 4 else "new", "a") for n in range(60)))
    text = printed(capsys, events)
    assert text.index("┃ SAMPLE RATIO MISMATCH") < text.index("CTR")
    assert "MISMATCH" not in printed(capsys, events, "traffic_fractions={control: 3, new: 1}")


def test_one_arm_and_no_clicks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = printed(capsys, write(tmp_path / "one.db", ("ann", "new", "a"), ("bob", "new", "")))
    assert "there is only one arm, 'new': nothing to compare it to" in one and " 50.00 " in one
    none = printed(capsys, write(tmp_path / "none.db", ("ann", "control", ""), ("bob", "new", "")))
    assert "arm 'control' has no clicks yet: no lift can be estimated" in none and "nan" not in none
    shown_nothing = tmp_path / "nothing.db"
    with EventLog(str(shown_nothing)) as log:
        log.record_impression(impression(products=""))
    assert "CTR by position" not in printed(capsys, f"event_log={shown_nothing}")


def test_without_events_a_sample_size_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    plain = as_json(capsys, "baseline_rate=0.1")
    larger = as_json(
        capsys, "baseline_rate=0.1", "design_effect=2", "impressions_per_user=4", "num_comparisons=3", "power=0.9"
    )
    assert larger["num_impressions"] > 2 * plain["num_impressions"]
    assert larger["num_users"] == pytest.approx(larger["num_impressions"] / 4, abs=1)
    text = printed(capsys, "baseline_rate=0.1")
    assert f"+4.95 % at a base rate of 0.1 with power 0.8 at alpha 0.05: {plain['num_users']:,} users" in text


def test_user_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIM_EVENTS", raising=False)
    EventLog(str(tmp_path / "empty.db")).close()
    events = write(tmp_path / "two.db", ("ann", "a", "a"), ("bob", "b", ""))
    with EventLog(str(tmp_path / "two.db")) as log:
        log.record_impression(impression(experiment="other"))
    for words, reason in (
        ([], "event_log: needs a value; give event_log=<database>, or baseline_rate=<rate> for a sample size"),
        ([f"event_log={tmp_path}/empty.db"], "empty.db: contains no impressions yet"),
        ([f"event_log={tmp_path}/no.db"], "no.db: there is no such event log"),
        ([events], "experiment_name: needs a value; there are other, towers"),
        ([events, "experiment_name=tower"], "experiment_name=tower: has no impressions; there are other, towers"),
        (
            [events, "experiment_name=towers"],
            "control: needs a value; name the arm that others are compared with: a",
        ),
        ([events, "experiment_name=towers", "control=c"], "control=c: no impressions of such an arm; there are a, b"),
        (
            [events, "experiment_name=towers", "control=a", "traffic_fractions={a: 1}"],
            "traffic_fractions.b: needs a value above 0",
        ),
        (["baseline_rate=7"], "baseline_rate=7: a click-through rate is above 0 and below 1"),
        (["baseline_rate=0.1", "lift=0"], "lift=0: must be between -1 and 1 and not 0"),
        (["baseline_rate=0.1", "power=high"], "power=high: must be a number"),
        ([events, "planned_users=many"], "planned_users=many: must be a number"),
        (
            [events, "experiment_name=towers", "control=a", "traffic_fractions={a: 1, b: half}"],
            "traffic_fractions.b=half: must be a number",
        ),
        (["baseline_rate=0.1", "lift=4.95"], "lift=4.95: must be between -1 and 1 and not 0; 0.05 is +5 %"),
    ):
        with pytest.raises(ValueError) as error:
            ab_report(compose("ab_report", words))
        assert reason in str(error.value) and "\n" not in str(error.value)


def test_the_environment_can_name_the_database(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIM_EVENTS", experiment)
    assert as_json(capsys)["experiment"] == "planted"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.ab_report.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ab_report: install the extra: pip install 'mim-lightning\[online\]'"):
        ab_report(compose("ab_report", ["baseline_rate=0.1"]))


def test_the_entry_point_reports_errors_in_one_line_and_helps(tmp_path: Path) -> None:
    wrong = start("experimant=x", module="mim_lightning.ab_report", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr == "error: no config key 'experimant'; did you mean 'experiment_name'?\n"
    helped = start("--help", module="mim_lightning.ab_report", cwd=tmp_path).stdout
    assert "mim ab_report event_log=events.db" in helped and "planned_users: null" in helped
    assert list(tmp_path.iterdir()) == []
