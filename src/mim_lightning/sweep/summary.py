"""The summary of a sweep: a table of its jobs, the means of those that differ only in their seed, and failures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.display.text import plain
from mim_lightning.metric_names import whole_name
from mim_lightning.repetitions import REPEATED_KEYS
from mim_lightning.sweep.job_log import FINISHED, JobLog, JobRecord

MAX_LABEL = 1_000  # characters


@dataclass(frozen=True)
class SettingMeans:
    """Means over the jobs whose overrides differ only in the seed or fold."""

    label: str
    num_jobs: int
    means: dict[str, tuple[float, float]]  # metric -> mean, and half of its interval; nan of a single job


def average_seeds(jobs: Sequence[tuple[Mapping[str, str], Mapping[str, float]]]) -> list[SettingMeans]:
    """Group jobs that differ only in the seed or fold, and average each metric that all of a group have.

    Args:
        jobs: overrides and results of each.
    """
    groups: dict[str, list[Mapping[str, float]]] = {}
    for overrides, results in jobs:
        label = " ".join(f"{key}={value}" for key, value in overrides.items() if key not in REPEATED_KEYS)
        groups.setdefault(label, []).append(results)
    return [
        SettingMeans(
            label,
            len(group),
            {key: mean_interval([r[key] for r in group]) for key in group[0] if all(key in r for r in group)},
        )
        for label, group in groups.items()
    ]


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the mean, and half of its Student-t interval: nan of a single value."""
    from scipy.stats import t

    mean, num = statistics.fmean(values), len(values)
    if num < 2:
        return mean, math.nan
    return mean, float(t.ppf((1 + level) / 2, num - 1)) * statistics.stdev(values) / math.sqrt(num)


def print_summary(log: JobLog) -> list[JobRecord]:
    """Print all jobs of a sweep, why some have no result, and the path of the log; return the jobs."""
    jobs = log.read()
    print_jobs(f"{len(jobs)} job{'' if len(jobs) == 1 else 's'}", jobs)
    for line in describe_unfinished(jobs):
        print(line)
    print(f"job log: {log.path}", flush=True)
    return jobs


def print_jobs(title: str, jobs: Sequence[JobRecord], metrics: Sequence[str] = ("hit@1",)) -> None:
    """Print how each job ended, its metrics of every direction, and the means over seeds with 95 % intervals."""
    finished = [job for job in jobs if job.status == FINISHED]
    keys = list(dict.fromkeys(key for job in finished for key in _metric_keys(job.results, metrics)))
    settings = average_seeds([(job.overrides, job.results) for job in finished])
    has_means = len(settings) < len(finished)
    caption = "fractions, 0 to 1" + ("; mean ± half of the 95 % Student-t interval over seeds" if has_means else "")
    table = Table(title=escape(plain(title)), caption=caption, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("job", no_wrap=True)
    table.add_column("overrides", min_width=24)
    table.add_column("status", no_wrap=True)
    for key in keys:
        table.add_column(key.removeprefix("val/").replace("/", "\n").replace("_to_", "\nto "), justify="right")
    for job in jobs:
        cells = [f"{job.results[key]:.3f}" if key in job.results else "-" for key in keys]
        table.add_row(
            str(job.job), Text(plain(job.label, MAX_LABEL)), job.status, *cells, style="dim" if has_means else None
        )
    if has_means:
        table.add_section()
        for setting in settings:
            label = Text(plain(setting.label or "all", MAX_LABEL))
            table.add_row("", label, f"n = {setting.num_jobs}", *(_mean(setting, key) for key in keys))
    console = Console()
    # without a terminal there is no width to fit: the table keeps all its columns
    (console if console.is_terminal else Console(width=1000)).print(table)


def describe_unfinished(jobs: Sequence[JobRecord]) -> list[str]:
    """Return one line for each status and reason of jobs without a result."""
    numbers_of: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        if job.status != FINISHED:
            numbers_of.setdefault((job.status, job.reason), []).append(str(job.job))
    return [
        f"{status}: job{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}{f': {reason}' if reason else ''}"
        for (status, reason), numbers in numbers_of.items()
    ]


def _metric_keys(results: Mapping[str, float], metrics: Sequence[str]) -> list[str]:
    parts = [(key, key.split("/")) for key in results if key.startswith("val/")]
    return [key for key, part in parts if len(part) == 3 and whole_name(part[2]) in metrics]


def _mean(setting: SettingMeans, key: str) -> str:
    if key not in setting.means:
        return "-"
    mean, half_width = setting.means[key]
    return f"{mean:.3f}" if math.isnan(half_width) else f"{mean:.3f} ±{half_width:.3f}"
