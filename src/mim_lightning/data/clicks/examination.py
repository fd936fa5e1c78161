"""How often a position is examined, relative to the first one, estimated from products that were shown at several.

A click takes examination and relevance: P(click) = p_k r_qd at position k, of product d for query q (the position-based
model). Where a query's product was shown at two positions, its relevance cancels from the ratio of its click rates.
Rankers that change, or shuffle some answers, make such pairs; where nothing varies, examination cannot be told from
relevance.

K positions, R resamples, G groups of queries.

Source: intervention harvesting over all pairs of positions (Agarwal et al. 2019, arXiv 1812.05161), with two changes
that are ours. A query's product counts by its Mantel-Haenszel weight n_k n_l / (n_k + n_l) in a pair of positions
instead of equally, as most are shown a few times. The relevance of each pair cancels from the conditional likelihood of
which of the two was clicked: that of Bradley and Terry (1952), concave in log p. Its maximum exists where clicks
connect all positions in both directions (Ford 1957): the identifiability by swaps of Hager et al. 2025 (arXiv
2506.20501).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from mim_lightning.data.manifest.click_report import Estimate

Array = NDArray[np.float64]
MAX_STEPS, MAX_STEP, TOLERANCE = 200, 1.0, 1e-9  # of Newton's method, in log p
MAX_LOG = 12.0  # of an examination relative to another; only resamples without clicks at a position come near it
RIDGE = 1e-9
LEVEL = 0.95
MAX_SHOWN = 8  # positions that an error names
MIN_GROUPS = 20  # of queries with clicks to compare: the interval of fewer, of one query a point, says nothing


@dataclass(frozen=True)
class PairedClicks:
    """Clicks of products that a query showed at two positions, summed over them.

    Attributes:
        clicks: (G, K, K) Mantel-Haenszel sums by group: entry (k, l) has the clicks at k of products also shown at l.
        num_products: (K, K) query's products shown at both positions.
        after_click: (G, 2) by group, clicks below another click of the same answer, and those expected of the same
            product at the same position without a click above it; zero where answers are not known.
    """

    clicks: Array
    num_products: Array
    after_click: Array

    @property
    def num_positions(self) -> int:
        return self.clicks.shape[1]


def estimate_examination(paired: PairedClicks, num_resamples: int = 500, seed: int = 0) -> tuple[Estimate, ...]:
    """Return the examination of each position relative to the first one, which is 1.

    Intervals are those of a percentile bootstrap over groups of queries.

    Raises:
        ValueError: positions do not vary enough to tell, or for too few queries; says which.
    """
    _raise_if_unidentified(paired)
    num_groups = int((paired.clicks.sum((1, 2)) > 0).sum())
    if paired.num_positions > 1 and num_groups < MIN_GROUPS:
        raise ValueError(
            f"{num_groups} queries clicked a product that they had shown at another position too, at least "
            f"{MIN_GROUPS} must have to say how sure the estimate is"
        )
    total_KL = paired.clicks.sum(0)
    values_K = np.exp(_log_examinations(total_KL[None])[0])
    draws_RG = draw_groups(len(paired.clicks), num_resamples, seed)
    resampled_RKL = np.einsum("rg,gkl->rkl", draws_RG, paired.clicks)
    low_K, high_K = np.quantile(np.exp(_log_examinations(resampled_RKL)), _ends(), axis=0)
    return tuple(Estimate(*map(float, ends)) for ends in zip(values_K, low_K, high_K, strict=True))


def estimate_after_click(paired: PairedClicks, num_resamples: int = 500, seed: int = 0) -> Estimate | None:
    """Return the ratio of click rates below a click to those without a click above, None if there are none.

    The products are the same at the same positions, so the position-based model has a ratio of 1, and a shopper who
    stops at the first good product one of 0.
    """
    after, expected = paired.after_click.sum(0)
    if expected <= 0:
        return None
    draws_RG = draw_groups(len(paired.after_click), num_resamples, seed)
    resampled_R2 = draws_RG @ paired.after_click
    ratios_R = resampled_R2[:, 0] / np.maximum(resampled_R2[:, 1], np.finfo(float).tiny)
    low, high = np.quantile(ratios_R[resampled_R2[:, 1] > 0], _ends())
    return Estimate(float(after / expected), float(low), float(high))


def draw_groups(num_groups: int, num_resamples: int, seed: int) -> Array:
    """Return how often each resample draws each group, (R, G)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=num_resamples).astype(float)


def _ends() -> tuple[float, float]:
    return (1 - LEVEL) / 2, (1 + LEVEL) / 2


def _log_examinations(clicks_RKL: Array) -> Array:
    """Return log p by Newton's method, (R, K), 0 of the first position."""
    total_RKL = clicks_RKL + clicks_RKL.transpose(0, 2, 1)
    num_resamples, num_positions, _ = clicks_RKL.shape
    log_RK = np.zeros((num_resamples, num_positions))
    if num_positions == 1:
        return log_RK
    diagonal = np.arange(num_positions)
    for _ in range(MAX_STEPS):
        chance_RKL = 1 / (1 + np.exp(log_RK[:, None, :] - log_RK[:, :, None]))
        gradient_RK = (clicks_RKL - total_RKL * chance_RKL).sum(2)
        curvature_RKL = -total_RKL * chance_RKL * (1 - chance_RKL)
        curvature_RKL[:, diagonal, diagonal] -= curvature_RKL.sum(2) - curvature_RKL[:, diagonal, diagonal]
        curvature_RKL[:, diagonal, diagonal] += RIDGE * (1 + total_RKL.sum((1, 2)))[:, None]
        step_RK = np.linalg.solve(curvature_RKL[:, 1:, 1:], gradient_RK[:, 1:, None])[:, :, 0]
        before_RK = log_RK[:, 1:].copy()
        log_RK[:, 1:] = np.clip(before_RK + np.clip(step_RK, -MAX_STEP, MAX_STEP), -MAX_LOG, MAX_LOG)
        if np.abs(log_RK[:, 1:] - before_RK).max() < TOLERANCE:
            break
    return log_RK


def _raise_if_unidentified(paired: PairedClicks) -> None:
    """Raise a ValueError if clicks do not connect all positions with the first one, in both directions."""
    if paired.num_positions > 1 and not paired.num_products.any():
        raise ValueError("no product was shown at two positions for the same query, so positions do not vary")
    shown = connected_components(paired.num_products, directed=False)[1]
    if missing := _others(shown):
        raise ValueError(
            f"for no query was a product shown at {missing} and also at a position that such products connect with the "
            "first one"
        )
    clicked = connected_components(paired.clicks.sum(0) > 0, connection="strong")[1]
    if missing := _others(clicked):
        raise ValueError(f"too few clicks at {missing} on products that the same query showed at another position too")


def _others(components: NDArray[np.int32]) -> str:
    """Return the positions outside the component of the first one, as text; "" without any."""
    positions = list(_ranges([int(idx) + 1 for idx in np.flatnonzero(components != components[0])]))
    if not positions:
        return ""
    shown = ", ".join(positions[:MAX_SHOWN]) + (" ..." if len(positions) > MAX_SHOWN else "")
    is_one = len(positions) == 1 and "-" not in positions[0]
    return f"position{'' if is_one else 's'} {shown}"


def _ranges(numbers: list[int]) -> Iterator[str]:
    """Yield ascending numbers as text, runs of them as "3-7"."""
    start = 0
    for idx in range(1, len(numbers) + 1):
        if idx == len(numbers) or numbers[idx] != numbers[idx - 1] + 1:
            yield str(numbers[start]) if idx - start == 1 else f"{numbers[start]}-{numbers[idx - 1]}"
            start = idx
