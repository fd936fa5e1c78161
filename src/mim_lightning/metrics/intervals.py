"""Uncertainty of a mean over queries, and of the difference of two models: cluster bootstrap and randomization test.

Queries of one cluster (a product) are not independent, so clusters are resampled: intervals of resampled queries would
be too narrow. All on numpy arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
_DRAWS_AT_ONCE = 2**22  # entries of a matrix of resamples by clusters: 32 MiB each, two or three at a time


@dataclass(frozen=True)
class PairedDifference:
    """How much higher `left` scores than `right` on the same queries."""

    difference: float  # of the means, left minus right; nan without any pair
    low: float  # ends of its interval; nan of fewer than two clusters
    high: float
    p_value: float  # two-sided, of no difference; nan without any pair
    num_queries: int  # with a score on both sides
    num_clusters: int


def bootstrap_intervals(
    scores: Mapping[str, ArrayLike],
    cluster_keys: ArrayLike,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return the percentile bootstrap interval of each metric's mean, resampling clusters with replacement.

    The statistic is the mean over all queries of the drawn clusters that have a score. The seeds of several runs are
    resampled too, independently of the clusters; few seeds underestimate their variance, by a factor (S - 1) / S.

    Args:
        scores: by metric (Q,), or (S, Q) of runs with other seeds; nan for a query without a value.
        cluster_keys: (Q,) integers or strings, equal for the queries of a cluster.
        num_resamples: the same draws are used for all metrics.
        seed: of the draws.
        level: fraction of the resamples within the interval.

    Returns:
        Low and high by metric; nan if fewer than two clusters have a score.

    Raises:
        ValueError: scores and clusters of different lengths.

    Source: Efron and Tibshirani 1993, chapter 13; clusters as in Field and Welsh 2007; seeds are our choice.
    """
    units = np.asarray(cluster_keys)
    sums = [_Sums.of(_rows(part, units, f"scores '{name}'"), units) for name, part in scores.items()]
    drawn = _draw_means(sums, [1] * len(sums), num_resamples, seed)
    return {name: _interval(part, s.num_clusters, level) for name, s, part in zip(scores, sums, drawn, strict=True)}


def paired_difference(
    left: ArrayLike,
    right: ArrayLike,
    cluster_keys: ArrayLike,
    num_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Compare two models on the same queries: difference of means, interval and p-value.

    The interval is a percentile bootstrap of the difference, as in `bootstrap_intervals`: both sides use the same
    clusters, and each draws its own seeds. The p-value is that of flipping the sign of each cluster's difference,
    averaged over seeds: all combinations if `num_resamples` allows, else random ones, as (1 + at least as extreme) /
    (1 + all). It generalizes to other queries with these seeds; the interval also to other seeds.

    Args:
        left: (Q,), or (S, Q) of runs with other seeds.
        right: likewise; may have another number of seeds. Queries with a nan on either side in any seed are left out.
        cluster_keys: (Q,) integers or strings, equal for the queries of a cluster.
        num_resamples: of the interval, and of the p-value.
        seed: of the draws.
        level: fraction of the resamples within the interval.

    Raises:
        ValueError: sides and clusters of different lengths.

    Source: Smucker et al. 2007 (randomisation test), Phipson and Smyth 2010 (the 1 +); clusters are our choice.
    """
    units = np.asarray(cluster_keys)
    sides = [_rows(left, units, "left"), _rows(right, units, "right")]
    is_pair = ~np.isnan(np.concatenate(sides)).any(axis=0)
    if not is_pair.any():
        return PairedDifference(np.nan, np.nan, np.nan, np.nan, 0, 0)
    units, sides = units[is_pair], [side[:, is_pair] for side in sides]
    sums = [_Sums.of(side, units) for side in sides]
    drawn_left, drawn_right = _draw_means(sums, [1, 2], num_resamples, seed)
    low, high = _interval(drawn_left - drawn_right, sums[0].num_clusters, level)
    differences_Q = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    return PairedDifference(
        difference=float(differences_Q.mean()),
        low=low,
        high=high,
        p_value=_sign_flip_p_value(_Sums.of(differences_Q[None], units).totals[0], num_resamples, seed),
        num_queries=len(units),
        num_clusters=sums[0].num_clusters,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number; nan stays nan and is not counted.

    Source: Holm 1979, a step-down Bonferroni procedure.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # nan sorts to the end
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()


@dataclass(frozen=True)
class _Sums:
    """Sufficient statistics of a metric: its sum and number of queries by cluster."""

    totals: Array  # (S, U)
    counts: Array  # (S, U)

    @classmethod
    def of(cls, scores_SQ: Array, units: NDArray[Any]) -> _Sums:
        names_U, idx_Q = np.unique(units, return_inverse=True)

        def by_cluster(values_SQ: Array) -> Array:
            return np.stack([np.bincount(idx_Q, row, minlength=len(names_U)) for row in values_SQ])

        is_known = ~np.isnan(scores_SQ)
        return cls(by_cluster(np.where(is_known, scores_SQ, 0.0)), by_cluster(is_known.astype(np.float64)))

    @property
    def num_clusters(self) -> int:
        return int(self.counts.any(axis=0).sum())


def _rows(scores: ArrayLike, units: NDArray[Any], what: str) -> Array:
    scores_SQ = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if scores_SQ.ndim != 2 or not len(scores_SQ) or scores_SQ.shape[1:] != units.shape:
        raise ValueError(f"{what} and unit keys must be of the same queries, not {np.shape(scores)} and {units.shape}")
    return scores_SQ


def _draw_means(sums: Sequence[_Sums], seed_streams: Sequence[int], num_resamples: int, seed: int) -> list[Array]:
    """Return the mean (B,) of each metric in each resample: the same clusters for all, seeds by stream."""
    if not sums:
        return []
    parts_UC = np.concatenate([part for s in sums for part in (s.totals, s.counts)]).T
    rng, num_clusters = np.random.default_rng([seed, 0]), len(parts_UC)
    drawn_BC = np.concatenate(
        [_draw_counts(rng, size, num_clusters) @ parts_UC for size in _sizes(num_resamples, num_clusters)]
    )
    means, start = [], 0
    for s, stream in zip(sums, seed_streams, strict=True):
        num_seeds = len(s.totals)
        weights_BS = _draw_counts(np.random.default_rng([seed, stream]), num_resamples, num_seeds)
        totals_BS, counts_BS = np.split(drawn_BC[:, start : start + 2 * num_seeds], 2, axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0: no drawn cluster has a score
            means.append((totals_BS * weights_BS).sum(axis=1) / (counts_BS * weights_BS).sum(axis=1))
        start += 2 * num_seeds
    return means


def _draw_counts(rng: np.random.Generator, num_draws: int, num_clusters: int) -> Array:
    """Return how often each cluster is drawn in resamples of equal size with replacement, (num_draws, num_units)."""
    drawn = rng.integers(num_clusters, size=(num_draws, num_clusters))
    drawn += np.arange(num_draws)[:, None] * num_clusters
    counts = np.bincount(drawn.ravel(), minlength=num_draws * num_clusters)
    return counts.reshape(num_draws, num_clusters).astype(np.float64)


def _sizes(num_draws: int, width: int) -> Iterator[int]:
    step = max(1, _DRAWS_AT_ONCE // max(1, width))
    yield from (min(step, num_draws - start) for start in range(0, num_draws, step))


def _interval(drawn_B: Array, num_clusters: int, level: float) -> tuple[float, float]:
    if num_clusters < 2:
        return float("nan"), float("nan")
    low, high = np.nanquantile(drawn_B, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _sign_flip_p_value(differences_U: Array, num_resamples: int, seed: int) -> float:
    differences_U = differences_U[differences_U != 0]  # flipping zeros changes nothing
    num_clusters = len(differences_U)
    # sums that differ only by rounding count as equal: scores are small fractions, so there are many
    observed = abs(differences_U.sum()) - 1e-10 * np.abs(differences_U).sum()
    is_exact = num_clusters < 63 and 2**num_clusters <= num_resamples
    rng, start, num_as_far = np.random.default_rng([seed, 3]), 0, 0
    num_flips = 2**num_clusters if is_exact else num_resamples
    for size in _sizes(num_flips, num_clusters):
        if is_exact:
            flips = np.arange(start, start + size)[:, None] >> np.arange(num_clusters) & 1
        else:
            flips = rng.integers(2, size=(size, num_clusters))
        num_as_far += int((np.abs((1.0 - 2.0 * flips) @ differences_U) >= observed).sum())
        start += size
    return num_as_far / num_flips if is_exact else (1 + num_as_far) / (1 + num_flips)
