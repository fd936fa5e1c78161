"""Scores of an arm's runs by query, as cells of a table: means with intervals, and differences paired by query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from experiments.kept_runs import QueryAnswers
from mim_lightning.analysis.record import DirectionRecord
from mim_lightning.metrics import bootstrap_intervals, paired_difference

NUM_RESAMPLES = 10_000


class Change(Protocol):
    """A difference with the ends of its interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class QueryScores:
    """Scores of some runs in one direction, by query in ascending order of ids; clusters are families of products."""

    query_ids: np.ndarray  # (Q,)
    families: np.ndarray  # (Q,) of the relevant product
    scores: Mapping[str, np.ndarray]  # metric -> (S, Q) float64
    segments: Mapping[str, np.ndarray]  # name -> (Q,) labels

    @classmethod
    def of(cls, runs: Sequence[DirectionRecord | QueryAnswers], families: Mapping[str, str]) -> "QueryScores":
        """Join runs that ranked the same queries; `families` are by product id."""
        orders = [np.argsort(run.query_ids) for run in runs]
        first, order = runs[0], orders[0]
        assert all(sorted(run.query_ids) == sorted(first.query_ids) for run in runs)
        return cls(
            np.array(first.query_ids)[order],
            np.array([families[first.unit_ids[row]] for row in order]),
            {name: np.stack([r.scores[name][o] for r, o in zip(runs, orders, strict=True)]) for name in first.scores},
            {name: np.array(labels)[order] for name, labels in first.segments.items()},
        )

    def where(self, **labels: str) -> "QueryScores":
        return self.at(np.all([self.segments[name] == label for name, label in labels.items()], axis=0))

    def at(self, is_in: np.ndarray) -> "QueryScores":
        scores = {name: part[:, is_in] for name, part in self.scores.items()}
        segments = {name: part[is_in] for name, part in self.segments.items()}
        return QueryScores(self.query_ids[is_in], self.families[is_in], scores, segments)

    def interval(self, metric: str) -> str:
        low, high = bootstrap_intervals({metric: self.scores[metric]}, self.families, NUM_RESAMPLES)[metric]
        return f"{self.scores[metric].mean():.3f} [{low:.3f}, {high:.3f}]"

    def minus(self, other: "QueryScores", metric: str) -> str:
        """Return the difference over the queries that both have."""
        mine = self.at(np.isin(self.query_ids, other.query_ids))
        others = other.at(np.isin(other.query_ids, self.query_ids))
        return change_cell(paired_difference(mine.scores[metric], others.scores[metric], mine.families, NUM_RESAMPLES))


def change_cell(found: Change) -> str:
    """Return a difference with its interval, bold where that excludes zero."""
    bold = "**" if found.low > 0 or found.high < 0 else ""
    return f"{bold}{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{bold}"
