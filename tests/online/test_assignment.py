"""Assignment is sticky, fair, independent between experiments, and moves no more users than it must."""

import hashlib
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.online.assignment import Arm, Experiment, assign, hash_user, read_salt
from mim_lightning.online.event_log import EventLog

SALT = "0123456789abcdef"
USERS = [f"user-{number}" for number in range(4000)]


def arms(**fractions: float) -> dict[str, Arm]:
    return {name: Arm(name, fraction) for name, fraction in fractions.items()}


def assigned(made: dict[str, Arm], experiment: str = "towers", salt: str = SALT) -> dict[str, str]:
    return {user: assign(user, made, experiment, salt).name for user in USERS}


def moves(before: dict[str, str], after: dict[str, str]) -> Counter:
    return Counter((before[user], after[user]) for user in USERS if before[user] != after[user])


def test_arms_are_chosen_by_their_traffic_fractions_of_any_sum() -> None:
    for factor in (1, 0.01, 250):
        found = Counter(assigned(arms(a=6 * factor, b=3 * factor, c=1 * factor)).values())
        for name, fraction in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
            deviation = math.sqrt(fraction * (1 - fraction) * len(USERS))
            assert abs(found[name] - fraction * len(USERS)) < 4 * deviation
    assert Counter(assigned(arms(a=1, b=0)).values()) == {"a": len(USERS)}


def test_the_order_of_arms_changes_nothing() -> None:
    assert assigned(dict(reversed(arms(a=1, b=2, c=3).items()))) == assigned(arms(a=1, b=2, c=3))


def test_another_process_assigns_the_same_arms() -> None:
    script = (
        "from mim_lightning.online.assignment import *\n"
        "made = {name: Arm(name, fraction) for name, fraction in (('b', 2), ('a', 1))}\n"
        f"print(*(assign(f'user-{{n}}', made, 'towers', {SALT!r}).name for n in range(50)), hash_user('ann', {SALT!r}))"
    )
    lines = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    here = assigned(arms(a=1, b=2))
    assert lines == [*(here[user] for user in USERS[:50]), hash_user("ann", SALT)]


def test_experiments_and_salts_are_independent() -> None:
    made = arms(a=1, b=1)
    first = assigned(made)
    for other in (assigned(made, experiment="other"), assigned(made, salt="fedcba9876543210")):
        both = sum(first[user] == other[user] for user in USERS)
        assert abs(both - len(USERS) / 2) < 4 * math.sqrt(len(USERS) / 4)


def test_a_change_moves_users_to_or_from_the_changed_arm_alone() -> None:
    before = assigned(arms(a=1, b=1))
    added = moves(before, assigned(arms(a=1, b=1, c=1)))
    assert set(added) == {("a", "c"), ("b", "c")}
    assert abs(added.total() - len(USERS) / 3) < 4 * math.sqrt(len(USERS) * 2 / 9)
    assert set(moves(before, assigned(arms(a=1, b=3)))) == {("a", "b")}
    three = assigned(arms(a=1, b=1, c=1))
    assert set(moves(three, assigned(arms(a=1, b=1, c=0)))) == {("c", "a"), ("c", "b")}
    assert set(moves(three, assigned(arms(a=2, b=1, c=1)))) == {("b", "a"), ("c", "a")}


def test_a_hash_is_keyed_blake2b() -> None:
    key = hashlib.blake2b(SALT.encode()).digest()
    message = len(b"ann").to_bytes(8, "big") + b"ann"
    assert hash_user("ann", SALT) == hashlib.blake2b(message, key=key, digest_size=16, person=b"user").hexdigest()
    assert len({hash_user(user, SALT) for user in USERS}) == len(USERS)
    assert hash_user("ann", SALT) != hash_user("ann", SALT + "x") != hash_user("Ann", SALT + "x")


def test_parts_of_a_message_do_not_run_into_each_other() -> None:
    made = arms(a=1, b=1, c=1, d=1)
    pairs = [((f"u{n}ab", "c"), (f"u{n}a", "bc")) for n in range(200)]
    same = sum(assign(*one[:1], made, one[1], SALT) == assign(*two[:1], made, two[1], SALT) for one, two in pairs)
    assert same < 100  # a quarter by chance, all of them if the parts were only joined


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"name": ""}, "arm: needs a name"),
        ({"traffic_fraction": -1}, "arm 'a': traffic_fraction=-1: must be 0 or more"),
        ({"traffic_fraction": math.nan}, "arm 'a': traffic_fraction=nan"),
        ({"traffic_fraction": math.inf}, "arm 'a': traffic_fraction=inf"),
        ({"traffic_fraction": "half"}, "arm 'a': traffic_fraction=half: must be a number"),
        ({"traffic_fraction": True}, "arm 'a': traffic_fraction=True: must be a number"),
    ],
)
def test_invalid_arms(arm: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arm(**({"name": "a"} | arm))


def test_mistakes_of_the_caller_are_errors() -> None:
    for call, lines in (
        (lambda: assign("", arms(a=1), "towers", SALT), "user key: is empty"),
        (lambda: assign("u", arms(a=1), "", SALT), "experiment: needs a name"),
        (lambda: assign("u", {"b": Arm("a")}, "towers", SALT), "is listed under the name 'b'"),
        (lambda: assign("u", {}, "towers", SALT), "arms: there are none"),
        (lambda: assign("u", arms(a=0), "towers", SALT), "arms: none has a traffic_fraction above 0"),
        (lambda: assign("u", arms(a=1), "towers", "short"), "salt: has 5 characters"),
        (lambda: hash_user("u", ""), "salt: has 0 characters"),
        (lambda: hash_user("", SALT), "user key: is empty"),
    ):
        with pytest.raises(ValueError, match=lines):
            call()


def test_the_salt_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIM_USER_SALT", raising=False)
    monkeypatch.delenv("MIM_USER_SALT_FILE", raising=False)
    with pytest.raises(ValueError, match="MIM_USER_SALT: is not set"):
        read_salt()
    monkeypatch.setenv("MIM_USER_SALT_FILE", str(tmp_path / "salt"))
    with pytest.raises(ValueError, match=r"MIM_USER_SALT_FILE=.*salt: cannot be read"):
        read_salt()
    (tmp_path / "salt").write_text("from a file, 16+\n")
    assert read_salt() == "from a file, 16+"
    monkeypatch.setenv("MIM_USER_SALT", SALT)
    assert read_salt() == SALT
    monkeypatch.setenv("MIM_USER_SALT", "short")
    with pytest.raises(ValueError, match="salt: has 5 characters"):
        read_salt()


def test_an_experiment_assigns_records_and_counts_clicks(tmp_path: Path) -> None:
    both = {name: Arm(name) for name in ("control", "new")}
    with EventLog(str(tmp_path / "events.db")) as log:
        made = Experiment("towers", both, SALT, log)
        for number in range(20):
            user = f"user-{number}"
            arm = made.arm_of(user)
            assert arm == assign(user, both, "towers", SALT).name
            shown = made.record(user, arm, "text", [("a", 0.9), ("b", 0.8)], 3.0, "f1")
            assert made.click(shown, "b") and not made.click(shown, "b")
            with pytest.raises(ValueError, match="was not shown"):
                made.click(shown, "c")
        counts = log.counts("towers")
    for count in ("num_users", "num_clicked"):
        assert sum(getattr(arm, count) for arm in counts.arms.values()) == 20
    assert {(row.position, row.num_clicks > 0) for row in counts.positions} == {(1, False), (2, True)}
