"""Malformed inputs and the judge of what reading them does.

A reader either refuses an input in one line of a user error and leaves the folder as it was, or takes it with the
meaning that it has. Everything else is a fault: a call stack, a hang, another meaning, a file that is half written.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_lightning.display.text import MAX_ERROR_CHARS, error_text
from mim_lightning.errors import is_user_error, to_error_report
from tests.campaign.outcomes import cases, record_outcome

PATIENCE = 60  # seconds of one input, of which most take milliseconds, on a machine that may be busy
REFUSED, ACCEPTED = "refused in one line", "read as it is meant"
ANYTHING = object()  # the meaning of an input that may be refused, or read as far as it goes


@dataclass(frozen=True)
class Malformed:
    """A valid folder with one thing wrong.

    Args:
        wrong: what is wrong, in words.
        damage: what is done to the folder.
        names: what the line of a refusal must have besides the folder: a file, a row or a key.
        means: the meaning of an input that is to be read all the same; None: it is to be refused.
    """

    wrong: str
    damage: Callable[[Path], Any]
    names: str = ""
    means: Any = None


class HangError(BaseException):
    """An input takes too long; no reader catches it."""


@dataclass(frozen=True)
class Verdict:
    """What reading an input did."""

    outcome: str  # REFUSED, ACCEPTED, or the fault
    text: str  # the one line, or the meaning
    seconds: float

    @property
    def is_fault(self) -> bool:
        return self.outcome not in (REFUSED, ACCEPTED)


def judge(
    read: Callable[[], Any],
    folder: Path,
    names: str = "",
    means: Any = None,
    may_write: Collection[str] = (),
) -> Verdict:
    """Read an input and return the verdict.

    Args:
        read: what an entry point calls; returns the meaning.
        folder: of the input, and of whatever reading it may write.
        names: that the line of a refusal must have: the file, the row or the key.
        means: the meaning if the input is accepted; None: it has to be refused.
        may_write: beginnings of paths, below the folder, of a refused input's report.
    """
    before, started = listing(folder, may_write), time.monotonic()
    said = io.StringIO()
    try:
        with time_limit(PATIENCE), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            found = read()
    except HangError:
        return Verdict("hang", f"more than {PATIENCE} s", PATIENCE)
    except Exception as error:  # as `cli` and `command` do
        seconds, kind = time.monotonic() - started, type(error).__name__
        if not is_user_error(error):
            return Verdict("call stack", f"{kind}: {error}", seconds)
        line = error_text(to_error_report(error, "train").reason)
        if not line.strip() or "\n" in line or "Traceback" in line + said.getvalue() or len(line) > MAX_ERROR_CHARS:
            return Verdict("not one line", line, seconds)
        if listing(folder, may_write) != before:
            changed = sorted({*before.items()} ^ {*listing(folder, may_write).items()})
            return Verdict("half written", f"{changed[0][0]} after: {line}", seconds)
        if means is not None and means is not ANYTHING:
            return Verdict("refused what has a meaning", line, seconds)
        if names not in line:
            return Verdict(f"does not name {names}", line, seconds)
        return Verdict(REFUSED, line, seconds)
    seconds = time.monotonic() - started
    if means is None:
        return Verdict("accepted rubbish", repr(found), seconds)
    if means is not ANYTHING and found != means:
        return Verdict("another meaning", f"{found!r} instead of {means!r}", seconds)
    return Verdict(ACCEPTED, "as it is meant", seconds)


def listing(folder: Path, ignored: Collection[str] = ()) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(tuple(ignored)):
            facts = path.lstat()
            found[name] = (0, 0) if path.is_dir() and not path.is_symlink() else (facts.st_size, facts.st_mtime_ns)
    return found


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise HangError in the main thread after some seconds, and again each second: a reader may swallow the first."""

    def stop(signum: int, frame: Any) -> None:
        raise HangError

    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


# --- what is done to files -------------------------------------------------------------------------------


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    """Change the content of a file, which has to become another."""

    def damage(folder: Path) -> None:
        path = folder / name
        content = path.read_bytes()
        changed = change(content)
        assert changed != content
        path.write_bytes(changed)

    return damage


def cut(name: str, keep: float) -> Callable[[Path], Any]:
    """Keep a fraction of a file, or of a negative number all but so many bytes."""
    return edit(name, lambda content: content[: int(keep if keep < 0 else keep * len(content))])


def flip(name: str, place: float) -> Callable[[Path], Any]:
    """Change a byte at a fraction of a file."""

    def change(content: bytes) -> bytes:
        at = int(place * len(content))
        return content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :]

    return edit(name, change)


def json_at(name: str, *keys: Any, value: Any) -> Callable[[Path], Any]:
    """Change a value in a JSON file; REMOVED removes its key."""

    def change(content: bytes) -> bytes:
        root = place = json.loads(content)
        for key in keys[:-1]:
            place = place[key]
        if value is REMOVED:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        return json.dumps(root).encode()

    return edit(name, change)


def replaced(name: str, make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Put something else in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


REMOVED = object()
NESTED = b"[" * 100_000
BYTES: dict[str, Callable[[str], Callable[[Path], Any]]] = {  # what can happen to any file
    "missing": lambda name: replaced(name, lambda path: None),
    "empty": lambda name: write(name, b""),
    "half": lambda name: cut(name, 0.5),
    "without its last byte": lambda name: cut(name, -1),
    "of NULs": lambda name: edit(name, lambda content: bytes(len(content))),
    "a page of HTML": lambda name: write(name, b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>"),
    "a folder": lambda name: replaced(name, Path.mkdir),
    "a pipe": lambda name: replaced(name, os.mkfifo),
    "a link to itself": lambda name: replaced(name, lambda path: path.symlink_to(path.name)),
}
JSONS: dict[str, bytes] = {  # what can stand in the place of any JSON object
    "an array": b"[]",
    "a number": b"7",
    "null": b"null",
    "an empty object": b"{}",
    "NaN": b"NaN",
    "nested 100,000 deep": NESTED,
    "not UTF-8": b'{"a": "\xff"}',
    "two objects": b"{}{}",
    "a number of 5,000 digits": b'{"version": ' + b"9" * 5000 + b"}",
    "with a byte order mark before nothing": b"\xef\xbb\xbf",
}


def of_file(label: str, name: str, left_out: Collection[str] = ()) -> list[Malformed]:
    """Return everything that can happen to a file, but what is left out."""
    return [Malformed(f"{label} is {kind}", make(name), name) for kind, make in BYTES.items() if kind not in left_out]


def of_json(label: str, name: str, left_out: Collection[str] = ()) -> list[Malformed]:
    """Return what can stand in the place of a JSON file."""
    found = [(kind, content) for kind, content in JSONS.items() if kind not in left_out]
    return [Malformed(f"{label} is {kind}", write(name, content), name) for kind, content in found]


def every(found: Sequence[Any], step: int) -> list[Any]:
    """Return the parameters of a test of malformed inputs: one of `step` is in the default suite too."""
    named = [(case.wrong, case) for case in found]
    assert len(dict(named)) == len(named), "each is wrong in a way of its own"
    return cases(named, [name for name, _ in named[step // 2 :: step]])


def record(target: str, wrong: str, *verdicts: Verdict) -> None:
    """Record the outcome of an input.

    Raises:
        AssertionError: it is a fault; says what was seen.
    """
    with record_outcome("rubbish", target, wrong) as found:
        for verdict in verdicts:
            assert not verdict.is_fault, f"{verdict.outcome}: {verdict.text}"
        found.outcome = verdicts[0].outcome
