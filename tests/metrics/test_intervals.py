"""Bootstrap and randomisation against scipy, cases worked out by hand, and coverage on planted data."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mim_lightning.metrics import bootstrap_intervals, intervals, paired_difference

RNG = np.random.default_rng


def interval_of(scores: Any, units: Any, **settings: Any) -> tuple[float, float]:
    return bootstrap_intervals({"m": scores}, units, **settings)["m"]


def test_agrees_with_scipy_where_each_query_is_a_cluster() -> None:
    scores = RNG(0).random(40) ** 3
    theirs = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=20_000, rng=RNG(1))
    ours = interval_of(scores, np.arange(40), num_resamples=20_000, seed=2)
    assert ours == pytest.approx((theirs.confidence_interval.low, theirs.confidence_interval.high), abs=0.003)


def test_agrees_with_scipy_on_clusters_of_different_sizes_with_gaps() -> None:
    rng = RNG(3)
    units = rng.integers(12, size=60)
    scores = rng.random(60) + units / 6
    scores[rng.random(60) < 0.2] = np.nan
    sums = np.array([np.nansum(scores[units == unit]) for unit in range(12)])
    counts = np.array([np.isfinite(scores[units == unit]).sum() for unit in range(12)])
    theirs = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        confidence_level=0.8,
        rng=rng,
    )
    ours = interval_of(scores, units, num_resamples=20_000, level=0.8)
    assert ours == pytest.approx((theirs.confidence_interval.low, theirs.confidence_interval.high), abs=0.02)


def test_every_outcome_of_two_clusters() -> None:
    """A resample of units {1, 1, 1} and {0} has mean 1, 3/4 or 0, a quarter, half and quarter of the time."""
    scores, units = [1.0, 1.0, 1.0, 0.0], ["b", "b", "b", "a"]
    assert interval_of(scores, units) == (0, 1)
    assert interval_of(scores, units, level=0.4) == (0.75, 0.75)


@pytest.mark.parametrize("scores", [[0.25, 0.75], [np.nan, 1.0, 0.5], [np.nan, np.nan]])
def test_fewer_than_two_clusters_give_no_interval(scores: list[float]) -> None:
    units = [7] * 2 if len(scores) == 2 else [1, 2, 2]
    assert all(math.isnan(end) for end in interval_of(scores, units))


def test_a_cluster_without_a_score_changes_only_the_draws() -> None:
    low, high = interval_of([0.5, 0.5, np.nan], [1, 2, 3])
    assert (low, high) == (0.5, 0.5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = RNG(4)
    scores, units = {"a": rng.random(50), "b": rng.random((3, 50))}, rng.integers(20, size=50)

    def numbers() -> list[float]:
        ends = [end for interval in bootstrap_intervals(scores, units).values() for end in interval]
        drawn, exact = (paired_difference(scores["a"], scores["b"], part) for part in (units, units % 7))
        return [*ends, *astuple(drawn), *astuple(exact)]

    whole = numbers()
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 97)
    assert numbers() == pytest.approx(whole)


def test_seeds_and_names_of_clusters_do_not_matter_to_equal_draws() -> None:
    scores = RNG(5).random(30)
    first = interval_of(scores, np.arange(30) % 9)
    assert first == interval_of(scores, np.array([f"unit {n % 9}" for n in range(30)]))
    assert first != interval_of(scores, np.arange(30) % 9, seed=1)
    assert first == pytest.approx(interval_of(np.stack([scores] * 4), np.arange(30) % 9))


def test_runs_that_differ_widen_the_interval() -> None:
    scores = RNG(6).random(400)
    alike, apart = np.stack([scores] * 5), np.stack([scores + shift for shift in (-0.4, -0.2, 0, 0.2, 0.4)])
    (low, high), (far_low, far_high) = (interval_of(part, np.arange(400)) for part in (alike, apart))
    assert far_high - far_low > 3 * (high - low)
    # drawing 5 of the 5 shifts gives their mean a deviation of sqrt(0.08 / 5)
    assert (far_high - far_low) / 2 == pytest.approx(1.96 * math.sqrt(0.08 / 5), rel=0.15)


def test_p_value_agrees_with_scipy_when_every_flip_is_tried() -> None:
    left, right = RNG(7).random(10), RNG(8).random(10) - 0.2
    theirs = stats.permutation_test(
        (left, right),
        lambda a, b, axis: np.mean(a - b, axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    ours = paired_difference(left, right, np.arange(10))
    assert ours.difference == pytest.approx(theirs.statistic)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-12)


def test_p_value_agrees_with_scipy_on_drawn_flips_of_clusters() -> None:
    rng = RNG(9)
    units = rng.integers(30, size=90)
    left, right = rng.integers(2, size=90), rng.integers(2, size=90) * (rng.random(90) < 0.8)
    sums = np.bincount(units, left - right)
    theirs = stats.permutation_test(
        (sums, np.zeros_like(sums)),
        lambda a, b, axis: np.sum(a - b, axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=rng,
    )
    ours = paired_difference(left, right, units, num_resamples=20_000)
    assert 0.01 < theirs.pvalue < 0.5 and ours.p_value == pytest.approx(theirs.pvalue, abs=0.01)


def test_p_value_of_clusters_counted_by_hand() -> None:
    """Unit differences 1, 1 and 1: of 8 ways to flip, only all and none are as far from 0 as 3."""
    result = paired_difference([1, 1, 0.5, 0.5], [0, 0, 0, 0], [1, 2, 3, 3])
    assert result.p_value == 2 / 8 and result.difference == 0.75
    assert (result.num_queries, result.num_clusters) == (4, 3)


def test_equal_scores_have_p_value_one() -> None:
    scores = RNG(10).random(30)
    result = paired_difference(scores, scores, np.arange(30))
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_rounding_does_not_decide_what_is_as_far_from_zero() -> None:
    """Differences of thirds and tenths: 2^12 ways, of which the exact count in integers is known."""
    thirtieths = np.array([3, 3, 6, -3, 10, 10, -10, 20, 1, -1, 2, 9])
    signs = 1 - 2 * (np.arange(2**12)[:, None] >> np.arange(12) & 1)
    exact = (np.abs(signs @ thirtieths) >= abs(thirtieths.sum())).mean()
    left = thirtieths / 30
    assert paired_difference(left, np.zeros(12), np.arange(12)).p_value == exact


def test_pairs_with_a_gap_are_left_out() -> None:
    left = np.array([[1.0, np.nan, 0.5, 1.0], [1.0, 1.0, 0.5, 1.0]])
    right = np.array([0.0, 0.0, 0.25, np.nan])
    result = paired_difference(left, right, ["a", "b", "c", "d"])
    assert result == paired_difference(left[:, [0, 2]], right[[0, 2]], ["a", "c"])
    assert (result.num_queries, result.num_clusters, result.difference) == (2, 2, 0.625)
    nothing = paired_difference([np.nan], [1.0], ["a"])
    assert math.isnan(nothing.difference) and math.isnan(nothing.p_value) and nothing.num_queries == 0


def test_sides_draw_the_same_clusters_and_their_own_seeds() -> None:
    hard = RNG(11).random(200)
    result = paired_difference(hard + 0.1, hard, np.arange(200))
    assert result.low == pytest.approx(0.1) and result.high == pytest.approx(0.1)
    shifts = np.array([[-0.1], [0.1]])
    result = paired_difference(hard + shifts, hard + shifts, np.arange(200))
    # each side's mean shift is -0.1, 0 or 0.1; drawn together they would always cancel
    assert result.low == pytest.approx(-0.2) and result.high == pytest.approx(0.2)
    assert result.difference == pytest.approx(0) and result.p_value == 1


def test_refuses_scores_and_clusters_of_different_queries() -> None:
    with pytest.raises(ValueError, match="scores 'm' and unit keys"):
        interval_of([1.0, 2.0], [1])
    with pytest.raises(ValueError, match="right and unit keys"):
        paired_difference([1.0], [1.0, 2.0], [1])


def planted(seed: int, shift: float = 0.0, num_clusters: int = 30, per_unit: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Scores of mean `shift` whose queries share most of their luck within a unit."""
    rng = RNG(seed)
    units = np.repeat(np.arange(num_clusters), per_unit)
    return shift + rng.normal(size=num_clusters)[units] + 0.5 * rng.normal(size=len(units)), units


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    covered = {"units": 0, "queries": 0}
    for seed in range(300):
        scores, units = planted(seed)
        for name, keys in (("units", units), ("queries", np.arange(len(units)))):
            low, high = interval_of(scores, keys, num_resamples=400)
            covered[name] += low <= 0 <= high
    assert 0.90 <= covered["units"] / 300 <= 0.97
    assert covered["queries"] / 300 < 0.75, "queries of a unit are not independent"


def test_p_values_are_small_as_often_as_chance_has_it() -> None:
    null, shifted = [], []
    for seed in range(300):
        scores, units = planted(seed)
        null.append(paired_difference(scores, np.zeros_like(scores), units, num_resamples=400).p_value)
        shifted.append(paired_difference(scores + 0.8, np.zeros_like(scores), units, num_resamples=400).p_value)
    assert 0.02 <= np.mean(np.array(null) <= 0.05) <= 0.08
    assert np.mean(np.array(shifted) <= 0.05) > 0.9


def test_holm_agrees_with_its_definition() -> None:
    p_values = [0.01, 0.04, math.nan, 0.03, 0.005, 0.9]
    known = sorted(p for p in p_values if not math.isnan(p))
    expected = {p: min(1, max((len(known) - i) * q for i, q in enumerate(known) if q <= p)) for p in known}
    corrected = intervals.holm(p_values)
    assert math.isnan(corrected[2])
    assert [c for c in corrected if not math.isnan(c)] == pytest.approx(
        [expected[p] for p in p_values if p in expected]
    )
    assert intervals.holm([]) == []
