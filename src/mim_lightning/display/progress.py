"""How far a preparation is: rows and bytes a second, and the time left.

Counts come in from whoever fetches, looks or writes; on a terminal a bar goes out, elsewhere a line now and then, and
one at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 30.0  # seconds, where there is no terminal


class WritingProgress:
    """Rows and bytes written of so many rows.

    Args:
        num_rows: that are still to be written.
        num_finished: rows that an earlier process has written; they count as done, but not for the rate.
        verb, noun: what was done with what, for the line at the end.
        label: what the bar is called.
    """

    def __init__(
        self,
        num_rows: int,
        num_finished: int = 0,
        verb: str = "wrote",
        noun: str = "rows",
        label: str = "shards",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_rows, self.num_finished, self.verb, self.noun, self.clock = num_rows, num_finished, verb, noun, clock
        self.console = console or Console(stderr=True)
        self.num_written, self.num_bytes = 0, 0
        self._started = self._told = clock()
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}")
        self._bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self._task = self._bar.add_task(label, total=num_rows + num_finished, completed=num_finished, rate="")

    def __enter__(self) -> WritingProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._bar.stop()
        if error is None:
            self._tell(f"{self.verb} {self.describe()}")

    def show(self, num_written: int, num_bytes: int) -> None:
        """Tell where the writing has come to, in rows and bytes since it began here."""
        self.num_written, self.num_bytes = num_written, num_bytes
        self._bar.update(self._task, completed=self.num_finished + num_written, rate=self.describe())
        if not self.console.is_terminal and self.clock() - self._told >= LINE_EVERY_S:
            self._tell(self.describe())

    def describe(self) -> str:
        """Return rows done, rate and time left in words."""
        seconds = max(self.clock() - self._started, 1e-9)
        rate = self.num_written / seconds
        parts = [f"{self.num_finished + self.num_written:,} of {self.num_rows + self.num_finished:,} {self.noun}"]
        if self.num_finished:
            parts[0] += f" ({self.num_finished:,} before)"
        parts.append(f"{rate:,.0f} {self.noun}/s, {self.num_bytes / seconds / 1e6:.1f} MB/s")
        num_left = self.num_rows - self.num_written
        if num_left:
            parts.append(f"{_duration(num_left / rate)} left" if rate else "time left unknown")
        else:
            parts.append(f"{self.num_bytes / 1e6:,.1f} MB in {_duration(seconds)}")
        return ", ".join(parts)

    def _tell(self, line: str) -> None:
        self._told = self.clock()
        self.console.print(line, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress_bar(label: str, num_rows: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, and yield a function that takes the rows done so far; None: of unknown length."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not get_console().is_terminal) as progress:
        task = progress.add_task(label, total=num_rows)
        yield lambda done: progress.update(task, completed=done)
