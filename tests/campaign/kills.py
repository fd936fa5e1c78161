"""Kill -9 at a random moment: after a fraction of the CPU time, or just before one of the changes of files."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.campaign.processes import EntryPoint, wait_until

ENDED = "the first start ended before it was killed"
LATEST = 0.7  # of the CPU time that an uninterrupted one took: the next may take less, and has to be there still


class Start(Protocol):
    """Starts an entry point with a fault: the arguments of `EntryPoint` that describe it."""

    def __call__(self, *, event: str = "", number: int = 1, cpu: float = 0.0, role: str = "any") -> EntryPoint: ...


def kill_somewhere(
    rng: random.Random, start: Start, events: Sequence[str], cpu: Mapping[str, float], folder: Path
) -> str:
    """Start an entry point and kill it; return when that was, or "" if it ended before, as a later start may.

    Args:
        events: of an uninterrupted one.
        cpu: seconds that its processes took, by role.
        folder: that it writes to; what is written there and has no name yet is sometimes cut, as by a power cut.
    """
    if rng.random() < 0.4:
        return _kill_by_clock(rng, start, cpu)
    event = rng.choice(sorted(set(events)))
    started = start(event=event, number=rng.randint(1, events.count(event)))
    if not started.wait_for_event():
        return ""
    is_cut = event.startswith("rename") and event.endswith(".partial") and rng.random() < 0.5
    if is_cut:
        for path in folder.rglob(".*.partial"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    started.kill()
    return f"kill -9 before {event}{', half written' if is_cut else ''}"


def _kill_by_clock(rng: random.Random, start: Start, cpu: Mapping[str, float]) -> str:
    role, part = rng.choice(sorted(cpu)), rng.uniform(0.02, LATEST)
    started = start(cpu=part * cpu[role], role=role)
    if len(cpu) > 1 and rng.random() < 0.5:  # one process alone: the others end by themselves
        code = started.wait_until_gone()
        return f"kill of {role} alone at {part:.2f} of its CPU time" if code else ""
    wait_until(lambda: started.has_died(role) or started.process.poll() is not None)
    has_ended = started.process.poll() == 0
    started.kill()
    return "" if has_ended else f"kill -9 at {part:.2f} of the CPU time"
