"""The table at the end of a sweep: a row a job, and the mean of those that differ in their seed alone.

Rows of the ledger come in, lines go out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.display.text import plain
from mim_lightning.sweep.ledger import FINISHED, Ledger, Row
from mim_lightning.sweep.seeds import Setting, over_seeds

MAX_LABEL = 1_000  # characters


def print_ledger(ledger: Ledger) -> list[Row]:
    """Print all jobs of a sweep, why some came to no result, and where that is written; return the rows."""
    rows = ledger.read()
    print_jobs(f"{len(rows)} job{'' if len(rows) == 1 else 's'}", rows)
    for line in describe_unfinished(rows):
        print(line)
    print(f"ledger: {ledger.path}", flush=True)
    return rows


def print_jobs(title: str, rows: Sequence[Row], metrics: Sequence[str] = ("hit@1",)) -> None:
    """Print how each job ended, its metrics of every direction, and the means over seeds with 95 % intervals."""
    finished = [row for row in rows if row.status == FINISHED]
    keys = [f"val/{key}" for key in dict.fromkeys(key for row in finished for key in _directions(row.results, metrics))]
    settings = over_seeds([(row.overrides, row.results) for row in finished])
    has_means = len(settings) < len(finished)
    caption = "shares, 0 to 1" + ("; mean ± half of the 95 % Student-t interval over seeds" if has_means else "")
    table = Table(title=escape(plain(title)), caption=caption, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("job", no_wrap=True)
    table.add_column("overrides", min_width=24)
    table.add_column("status", no_wrap=True)
    for key in keys:
        table.add_column(key.removeprefix("val/").replace("/", "\n").replace("_to_", "\nto "), justify="right")
    for row in rows:
        cells = [f"{row.results[key]:.3f}" if key in row.results else "-" for key in keys]
        table.add_row(
            str(row.job), Text(plain(row.label, MAX_LABEL)), row.status, *cells, style="dim" if has_means else None
        )
    if has_means:
        table.add_section()
        for setting in settings:
            table.add_row(
                "",
                Text(plain(setting.label or "all", MAX_LABEL)),
                f"n = {setting.num_jobs}",
                *(_mean(setting, key) for key in keys),
            )
    console = Console()
    # a pipe has no width of its own: the table keeps all its columns there
    (console if console.is_terminal else Console(width=1000)).print(table)


def describe_unfinished(rows: Sequence[Row]) -> list[str]:
    """Return a line for each reason that jobs came to no result for."""
    jobs: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.status != FINISHED:
            jobs.setdefault((row.status, row.reason), []).append(str(row.job))
    return [
        f"{status}: job{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}{f': {reason}' if reason else ''}"
        for (status, reason), numbers in jobs.items()
    ]


def _directions(results: Mapping[str, float], metrics: Sequence[str]) -> list[str]:
    parts = [key.split("/") for key in results if key.startswith("val/")]
    return [f"{part[1]}/{part[2]}" for part in parts if len(part) == 3 and part[2] in metrics]


def _mean(setting: Setting, key: str) -> str:
    if key not in setting.means:
        return "-"
    mean, half_width = setting.means[key]
    return f"{mean:.3f}" if math.isnan(half_width) else f"{mean:.3f} ±{half_width:.3f}"
