"""An entry point with all its processes: started with a fault in it, killed, signalled, and looked after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from tests.campaign.fault_hook import SETTINGS
from tests.flow.entry_points import ROOT
from tests.preloaded import HOOK, PYTHON

# seconds in which a signal ends a process: 10 are promised on a machine that has nothing else to do
PATIENCE = float(os.environ.get("MIM_CAMPAIGN_SECONDS", "60"))


class EntryPoint:
    """A started entry point.

    Args:
        module: such as "train".
        words: of its command line.
        scratch: folder for what it prints and what is known of it.
        watched: folders whose changes are events.
        event: name of the one at which it is held: stopped, or put to sleep for `seconds`; "": none.
        number: of that event, where it is not the first of its name.
        cpu: seconds of CPU time after which a process ends as killed; 0: none.
        role: of the process that the fault is in: "main", "rank0", "any" ...
        num_files: that each process may open; 0: as here.
        environment: variables besides those of this process.
    """

    started: ClassVar[list[EntryPoint]] = []  # by the test that runs

    def __init__(
        self,
        module: str,
        words: Sequence[str],
        scratch: Path,
        watched: Sequence[Path] = (),
        event: str = "",
        number: int = 1,
        seconds: float = 0.0,
        cpu: float = 0.0,
        role: str = "any",
        num_files: int = 0,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        for path in scratch.iterdir():
            path.unlink()
        settings = {"folder": str(scratch), "watched": [f"{path}/" for path in watched], "event_name": event}
        settings |= {"number": number, "seconds": seconds, "cpu": cpu, "role": role, "num_files": num_files}
        own = {"PYTHONPATH": str(ROOT), HOOK: "tests.campaign.fault_hook", SETTINGS: json.dumps(settings)}
        with (scratch / "stdout").open("w") as stdout, (scratch / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [os.environ[PYTHON], "-m", f"mim_lightning.{module}", *words],
                env={**os.environ, **own, **environment},
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.started.append(self)

    # --- what is known of it ------------------------------------------------------------------------

    @property
    def stdout(self) -> str:
        return (self.scratch / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.scratch / "stderr").read_text()

    def events(self) -> list[str]:
        return self._lines("events")

    def cpu(self, role: str) -> float:
        """Return the CPU seconds of an ended process."""
        return float(self._lines(f"cpu-{role}")[-1])

    def reached(self) -> str:
        """Return the name of the event at which it is held, or "" before."""
        return next(iter(self._lines("reached")), "")

    def has_died(self, role: str) -> bool:
        """Return whether a process of a role was there, and is no more."""
        pids = [int(line.split()[0]) for line in self._lines("processes") if line.split()[1] == role]
        return bool(pids) and not any(map(is_alive, pids))

    def main_pid(self) -> int:
        wait_until(lambda: bool(self._lines("processes")))
        return int(self._lines("processes")[0].split()[0])

    def pid(self, role: str) -> int:
        """Return the id of the process that has a role."""
        return next(int(line.split()[0]) for line in self._lines("processes") if line.split()[1] == role)

    def left(self) -> list[int]:
        """Return the ids of its processes that are there, also of those that it left behind."""
        sessions = {line.split()[0] for line in self._lines("processes")}
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, _, session = path.read_text().rsplit(")", 1)[1].split()[:4]
                if session in sessions and state != "Z":
                    found.append(int(path.parent.name))
        return found

    def _lines(self, name: str) -> list[str]:
        path = self.scratch / name
        return path.read_text().splitlines() if path.exists() else []

    # --- what is done to it -------------------------------------------------------------------------

    def wait(self, seconds: float = 900.0) -> int:
        return self.process.wait(timeout=seconds)

    def wait_for_event(self) -> bool:
        """Wait until it is held at the event, or has ended; return whether it is held."""
        wait_until(lambda: bool(self.reached()) or self.process.poll() is not None)
        return bool(self.reached())

    def kill(self) -> None:
        """Kill all of its processes, as a power cut would."""
        while found := self.left():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not self.left())

    @classmethod
    def kill_started(cls) -> None:
        """Kill what a test that failed has left."""
        while cls.started:
            one = cls.started.pop()
            if one.process.poll() is None or one.left():
                one.kill()

    def send(self, signum: int) -> None:
        """Send SIGINT to its process group, as Ctrl-C does, and other signals to its first process."""
        send = os.killpg if signum == signal.SIGINT else os.kill
        send(self.main_pid(), signum)

    def wait_until_gone(self, seconds: float = PATIENCE) -> int:
        """Wait for its end and that of all its processes, and return the exit code.

        Raises:
            AssertionError: it takes longer; all are killed.
        """
        try:
            code = self.wait(seconds)
            wait_until(lambda: not self.left(), seconds)
        except (AssertionError, subprocess.TimeoutExpired):
            found = self.left()
            commands = [Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in found]
            self.kill()
            raise AssertionError(f"{len(found)} processes left after {seconds:g} s, states {commands}") from None
        return code


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
