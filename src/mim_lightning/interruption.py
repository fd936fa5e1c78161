"""Ctrl-C and SIGTERM: one line on the terminal and an exit code that names the signal, at any moment.

`install` is called first in a process of an entry point. Within `interruptible`, a signal raises an `Interruption`;
before and after that, and at a second signal, the process exits at once. Training calls `defer`: the signal is noted,
and training stops by itself where it can write a checkpoint. `cli.run_entry_point` prints the line, and how to resume.
"""

from __future__ import annotations

import _thread
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SILENT = "MIM_FROZEN_CONFIG"  # environment variable of launched processes: the launching one reports
GRACE = 30.0  # seconds for a process to clean up: a collective may wait for a process that is gone
STOPPED_AFTER = "stopped_after_seconds"  # in the results of a run that its time limit ended: seconds of training
_owner = 0  # the process that `install` was called in; its forks inherit the handlers and must not use them
_raising: set[int] = set()  # the signals that raise at present
_patience: float | None = None  # seconds after which a deferred signal ends the process; None: signals are not deferred
_requested: int | None = None  # the signal that was deferred
_raised: Interruption | None = None  # by a signal, and not caught yet
_is_sent_again: bool | None = None  # the signal that came within an import; None: none did
_last_resort: threading.Timer | None = None  # ends the process


class Interruption(SystemExit):
    """Raised by a signal.

    A SystemExit, so that `except Exception` does not swallow it, and the exit code is right where it is not caught.

    Args:
        signum: the signal.
        where: how far the work was, such as "at step 12".
    """

    def __init__(self, signum: int, where: str = "") -> None:
        super().__init__(128 + signum)
        self.signum, self.where = signum, where
        self.resumes = False  # whether the same command resumes, where that depends on its config

    def describe(self) -> str:
        return " ".join(part for part in ("stopped", self.where, f"by {signal.Signals(self.signum).name}") if part)


def install() -> None:
    """Install our handlers for signals that have the default handler."""
    global _owner
    if threading.current_thread() is not threading.main_thread():
        return
    _owner = os.getpid()
    for signum in SIGNALS:
        if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(signum, _leave)


def is_entry_point() -> bool:
    """Was this process started as `python -m mim_lightning[.<name>]` or by a script that the package installs?"""
    words = sys.orig_argv
    if "-m" in words[:-1] and words[words.index("-m") + 1].split(".")[0] == __name__.split(".")[0]:
        return True
    return len(words) > 1 and re.match(r"mim(-|$)", Path(words[1]).stem) is not None


@contextmanager
def interruptible() -> Iterator[None]:
    """Have signals raise an `Interruption` in this block, if `install` has handled them.

    An error that one has become on its way is raised as the interruption. May be nested.
    """
    global _raised
    taken = [signum for signum in SIGNALS if signal.getsignal(signum) is _leave]
    for signum in taken:
        signal.signal(signum, _interrupt)
        _raising.add(signum)
    try:
        yield
    except Exception:
        if _raised is not None:
            raise _raised from None
        raise
    finally:
        if taken:
            _raised = None
        for signum in taken:
            signal.signal(signum, _leave)
            _raising.discard(signum)


def reinstall_signal_handlers() -> None:
    """Restore our handler of SIGTERM, which Lightning replaces by its own.

    Lightning's waits for the end of the batch and, with several processes, starts a collective in the handler: if the
    others are in another collective, all wait for ever.
    """
    if is_handling():
        signal.signal(signal.SIGTERM, _interrupt)


def is_handling() -> bool:
    """Do signals raise at present, or are they noted, so that a run can be stopped?"""
    return os.getpid() == _owner and signal.SIGTERM in _raising


def defer(patience: float) -> None:
    """From now on note the first signal, for `requested_stop`, instead of raising.

    Args:
        patience: seconds after the signal in which the caller has to stop; then the process exits.
    """
    global _patience
    _patience = patience


def end_deferral() -> int | None:
    """Have signals raise again; return the one that was noted."""
    global _patience, _requested
    noted, _patience, _requested = _requested, None, None
    return noted


def requested_stop() -> int | None:
    """Return the signal that was noted, or None."""
    return _requested


def exit_after(seconds: float, signum: int) -> None:
    """End the process after so many seconds, instead of the time that was set before."""
    global _last_resort
    if _last_resort is not None:
        _last_resort.cancel()
    _last_resort = threading.Timer(seconds, _give_up, [signum, seconds])
    _last_resort.daemon = True
    _last_resort.start()


def _give_up(signum: int, seconds: float) -> None:
    if SILENT not in os.environ:
        stopped = f"{Interruption(signum).describe()}: it did not end by itself within {seconds:g} s\n"
        os.write(2, stopped.encode())
    os._exit(128 + signum)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    global _requested, _raised, _is_sent_again
    if os.getpid() != _owner:
        _die(signum)
    if _patience is None and _is_importing(frame):
        if _is_sent_again is None:
            exit_after(GRACE, signum)  # the import may never end
        elif not _is_sent_again:
            _leave(signum, frame)  # a second signal
        _is_sent_again = False
        _thread.start_new_thread(_send_later, (signum,))
        return
    _is_sent_again = None
    for other in SIGNALS:
        signal.signal(other, _leave)
    exit_after(GRACE if _patience is None else _patience, signum)
    if _patience is None:
        _raised = Interruption(signum)
        raise _raised
    _requested = signum
    if SILENT not in os.environ:
        os.write(2, f"{signal.Signals(signum).name}: stops after this step; a second signal stops at once\n".encode())


def _is_importing(frame: FrameType | None) -> bool:
    """Is this frame within an import? Packages catch what is raised there, and take it for a missing package."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


def _send_later(signum: int) -> None:
    global _is_sent_again
    time.sleep(0.05)
    _is_sent_again = True
    signal.pthread_kill(threading.main_thread().ident or 0, signum)


def _leave(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _owner:
        _die(signum)
    if SILENT not in os.environ:
        os.write(2, f"{Interruption(signum).describe()}\n".encode())
    os._exit(128 + signum)


def _die(signum: int) -> NoReturn:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)
