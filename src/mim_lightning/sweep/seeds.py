"""What jobs have in common that differ in their seed alone: the mean, and how sure it is.

Overrides and results by job come in, a mean with its interval by setting goes out, for the table at a sweep's end.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SEED_KEYS = ("seed", "data.seed", "data.protocol.fold")  # repetitions of one setting


@dataclass(frozen=True)
class Setting:
    """Jobs with equal overrides but for their seed or fold."""

    label: str
    num_jobs: int
    means: dict[str, tuple[float, float]]  # metric -> mean, and half of its interval; nan of a single job


def over_seeds(jobs: Sequence[tuple[Mapping[str, str], Mapping[str, float]]], level: float = 0.95) -> list[Setting]:
    """Group jobs that differ in their seed or fold alone, and average each metric that all of a group have.

    Args:
        jobs: overrides and results of each.
        level: of the interval, Student's t over the group's jobs: they count as a sample of all seeds.
    """
    groups: dict[str, list[Mapping[str, float]]] = {}
    for overrides, results in jobs:
        label = " ".join(f"{key}={value}" for key, value in overrides.items() if key not in SEED_KEYS)
        groups.setdefault(label, []).append(results)
    return [
        Setting(label, len(members), {key: mean_interval([m[key] for m in members], level) for key in _shared(members)})
        for label, members in groups.items()
    ]


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the mean, and half of its Student-t interval: nan of a single value."""
    mean, num = statistics.fmean(values), len(values)
    if num < 2:
        return mean, math.nan
    return mean, t_quantile(num - 1, level) * statistics.stdev(values) / math.sqrt(num)


def t_quantile(num_degrees: int, level: float = 0.95) -> float:
    """Return the t that Student's distribution stays within, on both sides, with probability `level`.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, a finite sum for whole degrees of freedom; bisection.
    """
    low, high = 0.0, 1.0
    while _within(high, num_degrees) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, num_degrees) < level else (low, middle)
    return high


def _within(t: float, num_degrees: int) -> float:
    """Return the probability that Student's t lies between -t and t."""
    angle = math.atan(t / math.sqrt(num_degrees))
    is_odd = num_degrees % 2
    term = math.cos(angle) if is_odd else 1.0
    total = 0.0
    for k in range(1 + is_odd, num_degrees, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def _shared(members: Sequence[Mapping[str, float]]) -> list[str]:
    return [key for key in members[0] if all(key in member for member in members)]
