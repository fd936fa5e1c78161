"""A progress bar on the terminal for what takes minutes: filling an index, indexing, measuring.

What is done and how many rows it has come in, a function that is told the rows done so far goes out; both backends
show it while they build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import get_console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn


@contextmanager
def progress_bar(what: str, num_rows: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar, and give a function that is told the rows done so far; None: there is no telling how long."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not get_console().is_terminal) as progress:
        task = progress.add_task(what, total=num_rows)
        yield lambda done: progress.update(task, completed=done)
