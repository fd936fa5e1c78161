"""The examination of positions equals the planted one, and is refused where a log does not say it."""

from __future__ import annotations

import numpy as np
import pytest

from mim_lightning.data.clicks.examination import (
    PairedClicks,
    estimate_after_click,
    estimate_examination,
)


def paired(num_shown: np.ndarray, clicks: np.ndarray, after: np.ndarray | None = None) -> PairedClicks:
    """Sum the pairs of positions of products (G, D, K) in loops."""
    num_groups, _, num_positions = num_shown.shape
    sums, counts = np.zeros((num_groups, num_positions, num_positions)), np.zeros((num_positions, num_positions))
    for group in range(num_groups):
        for shown, clicked in zip(num_shown[group], clicks[group], strict=True):
            for k in range(num_positions):
                for other in range(num_positions):
                    if k != other and shown[k] and shown[other]:
                        sums[group, k, other] += clicked[k] * shown[other] / (shown[k] + shown[other])
                        counts[k, other] += 1
    return PairedClicks(sums, counts, np.zeros((num_groups, 2)) if after is None else after)


def test_expected_clicks_give_the_planted_examination_whatever_was_shown_where() -> None:
    rng = np.random.default_rng(0)
    planted = np.array([1.0, 0.7, 0.8, 0.25])
    relevance = rng.uniform(0.05, 0.9, (20, 5, 1))
    # good products at the top: click rates by position say nothing of examination
    num_shown = rng.integers(0, 4, (20, 5, 4)) + (relevance > 0.5) * np.array([30, 3, 1, 0])
    clicks = num_shown * planted * relevance
    found = estimate_examination(paired(num_shown, clicks), num_resamples=50)
    np.testing.assert_allclose([estimate.value for estimate in found], planted, rtol=1e-6)
    # of expected clicks every query says the same
    assert all(estimate.high / estimate.low < 1 + 1e-6 for estimate in found)


def test_intervals_are_those_of_resampled_queries() -> None:
    rng = np.random.default_rng(2)
    planted, num_queries = np.array([1.0, 0.5, 0.3]), 150
    num_shown = rng.integers(1, 12, (num_queries, 4, 3))
    clicks = rng.binomial(num_shown, planted * rng.choice([0.1, 0.6], (num_queries, 4, 1)))
    of_all = estimate_examination(paired(num_shown, clicks))
    of_few = estimate_examination(paired(num_shown[:25], clicks[:25]))
    for estimate, few, truth in zip(of_all[1:], of_few[1:], planted[1:], strict=True):
        assert estimate.low < truth < estimate.high
        assert estimate.low < estimate.value < estimate.high
        assert few.high - few.low > 1.5 * (estimate.high - estimate.low)
    assert (of_all[0].low, of_all[0].value, of_all[0].high) == (1, 1, 1)


def test_positions_that_do_not_vary_are_refused() -> None:
    fixed = np.zeros((1, 6, 6))
    fixed[0, range(6), range(6)] = 10
    with pytest.raises(ValueError, match="shown at two positions"):
        estimate_examination(paired(fixed, fixed / 2))
    fixed[0, 0, 1] = fixed[0, 3, 4] = fixed[0, 4, 5] = 5  # 1 and 2 are connected, and 4 to 6
    with pytest.raises(ValueError, match="at positions 3-6 and also"):
        estimate_examination(paired(fixed, fixed / 2))
    fixed[0, 1, 2] = fixed[0, 2, 3] = 5
    estimate_examination(paired(fixed.repeat(20, 0), fixed.repeat(20, 0) / 2), num_resamples=2)
    with pytest.raises(ValueError, match=r"19 queries clicked a product .*, at least 20 must"):
        estimate_examination(paired(fixed.repeat(19, 0), fixed.repeat(19, 0) / 2))
    clicks = fixed / 2
    clicks[0, :, 5] = 0
    with pytest.raises(ValueError, match="too few clicks at position 6 "):
        estimate_examination(paired(fixed, clicks))


def test_clicks_below_a_click_are_compared_with_those_expected() -> None:
    shown = np.ones((3, 1, 2))
    after = np.array([[2.0, 4.0], [1.0, 2.0], [3.0, 6.0]])
    found = estimate_after_click(paired(shown, shown, after), num_resamples=20)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert estimate_after_click(paired(shown, shown)) is None
