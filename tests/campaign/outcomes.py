"""What a campaign did and what became of it: its points, and one line of JSON for each where a record is kept.

Environment variables, all optional:

    MIM_CAMPAIGN_RECORD   file to which outcomes are appended, for experiments/reliability/tables.py
    MIM_CAMPAIGN_POINTS   at most so many points of each kind, instead of all
    MIM_CAMPAIGN_SEED     of the random points; the same one draws the same points
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

PARTS = ("kill", "signal", "starved", "rubbish")
TEMPORARY = re.compile(r"(?<=/tmp)[a-z0-9_]{8}|(?<=/pytest-of-)[^/]+/pytest-\d+")  # other names each time
SEED = int(os.environ.get("MIM_CAMPAIGN_SEED", "0"))


@dataclass
class Outcome:
    """One input and its outcome.

    Args:
        part: of the campaign, one of PARTS.
        target: what it was done to, such as "train, 2 processes".
        input: what was done, such as "kill -9 at 0.43 of the run".
        outcome: what became of it, in a phrase that equal outcomes share; set by the test when all has been verified.
        holds: whether that is what is promised.
    """

    part: str
    target: str
    input: str
    outcome: str = ""
    holds: bool = False


@contextmanager
def record_outcome(part: str, target: str, input_: str) -> Iterator[Outcome]:
    """Yield an outcome for the block to name; record it, or the error of the block as one that does not hold."""
    assert part in PARTS
    found = Outcome(part, target, input_)
    try:
        yield found
        assert found.outcome, "the test says what was found"
        found.holds = True
    except BaseException as error:
        if isinstance(error, pytest.skip.Exception | KeyboardInterrupt):  # of who runs the campaign
            raise
        found.outcome = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        _append(found)
        raise AssertionError(f"{target}, {input_} (seed {SEED}): {error}") from error
    _append(found)


def record_all(part: str, target: str, inputs: Iterable[str], outcome: str, problem: Exception | None) -> None:
    """Record one outcome of several inputs, which were tried one after the other, and raise the problem if any.

    Empty inputs are those that came too late to be tried. A problem before any was tried is recorded too.
    """
    tried = [input_ for input_ in inputs if input_]
    for input_ in tried or (["the first one"] if problem else []):
        with suppress(AssertionError), record_outcome(part, target, input_) as found:
            if problem is not None:
                raise problem
            found.outcome = outcome
    if problem is not None:
        raise problem


def _append(outcome: Outcome) -> None:
    path = os.environ.get("MIM_CAMPAIGN_RECORD")
    if path:
        named = replace(outcome, outcome=TEMPORARY.sub("...", outcome.outcome))
        line = json.dumps(asdict(named)) + "\n"
        with Path(path).open("a") as file:  # in one write: several processes append
            file.write(line)


def points(name: str, whole: int, short: int) -> list[Any]:
    """Return the parameters of a test of random points: `short` of them are in the default suite too.

    Each is a random generator of its own, which draws the same for the same seed and name.
    """
    drawn = [random.Random(f"{SEED} {name} {number}") for number in range(_most(whole))]
    return [_param(one, f"{SEED}-{number}", number < short) for number, one in enumerate(drawn)]


def cases(named: Sequence[tuple[str, Any]], short: Sequence[str] = ()) -> list[Any]:
    """Return the parameters of a test of named cases: those of `short` are in the default suite too."""
    unknown = set(short) - {name for name, _ in named}
    assert not unknown, f"no such case: {unknown}"
    return [_param(value, name, name in short) for name, value in named[: _most(len(named))]]


def _most(whole: int) -> int:
    return min(whole, int(os.environ.get("MIM_CAMPAIGN_POINTS", whole)))


def _param(value: Any, name: str, is_short: bool) -> Any:
    return pytest.param(value, id=name, marks=() if is_short else pytest.mark.campaign)
