"""Progress of work that takes minutes: a bar on a terminal, else a line now and then, and one at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from mim_lightning.display.numbers import format_duration

LINE_EVERY = 30.0  # seconds, without a terminal
BAR_WIDTH = 15  # columns: label, bar, percentage, rate and time left fit into 80


class ProgressMeter:
    """Items finished of a total, their rate and the time left.

    Args:
        total: items still to be done; None: unknown.
        num_finished: items that an earlier process has done; they count as done, but not for the rate.
        verb: past tense of what is done, for the line at the end; "": there are no lines, only the bar.
        noun: plural of an item.
        label: of the bar.
    """

    def __init__(
        self,
        total: int | None,
        num_finished: int = 0,
        verb: str = "wrote",
        noun: str = "rows",
        label: str = "shards",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.num_finished, self.verb, self.noun, self.clock = total, num_finished, verb, noun, clock
        self.console = console or Console(stderr=True)
        self.num_done, self.num_bytes = 0, 0
        self._started = self._last_line = clock()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR_WIDTH),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        bar_total = None if total is None else total + num_finished
        self._task = self._bar.add_task(label, total=bar_total, completed=num_finished, rate="")

    def __enter__(self) -> ProgressMeter:
        self._bar.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._bar.stop()
        if error is None and self.verb:
            self._print(f"{self.verb} {self.describe()}")

    def update(self, num_done: int, num_bytes: int = 0) -> None:
        """Show how many items and bytes have been done since this meter was made."""
        self.num_done, self.num_bytes = num_done, num_bytes
        rate = f"{self._rate:,.0f} {self.noun}/s"
        if self.total is not None and num_done < self.total:
            rate += f", {self._time_left}"
        self._bar.update(self._task, completed=self.num_finished + num_done, rate=rate)
        if self.verb and not self.console.is_terminal and self.clock() - self._last_line >= LINE_EVERY:
            self._print(self.describe())

    def describe(self) -> str:
        """Return items done, rate, and the time left or taken."""
        total = self.num_done if self.total is None else self.total
        is_complete = self.num_done >= total
        count = f"{self.num_finished + self.num_done:,}"
        if is_complete:
            before = f" ({self.num_finished:,} before)" if self.num_finished else ""
            parts = [f"{count} {self.noun}{before} in {format_duration(self._seconds)}"]
        else:
            parts = [f"{count}/{self.num_finished + total:,} {self.noun}"]
        parts.append(f"{self._rate:,.0f}/s")
        if self.num_bytes:
            parts.append(f"{self.num_bytes / self._seconds / 1e6:.1f} MB/s")
        return ", ".join(parts if is_complete else [*parts, self._time_left])

    @property
    def _seconds(self) -> float:
        return max(self.clock() - self._started, 1e-9)

    @property
    def _rate(self) -> float:
        return self.num_done / self._seconds

    @property
    def _time_left(self) -> str:
        assert self.total is not None
        return (
            f"{format_duration((self.total - self.num_done) / self._rate)} left" if self._rate else "time left unknown"
        )

    def _print(self, line: str) -> None:
        self._last_line = self.clock()
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
