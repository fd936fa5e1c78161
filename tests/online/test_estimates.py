"""Rates, differences, lifts and always-valid intervals against naive forms, and data without information."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from mim_lightning.online.aggregates import ArmCounts, UserSums
from mim_lightning.online.estimates import (
    Estimate,
    Interval,
    always_valid_interval,
    always_valid_p_value,
    as_lift,
    click_rate,
    design_effect,
    difference,
    log_ratio,
    rate_interval,
    user_rate,
)


def users(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = rng.geometric(0.4, num)
    return n, rng.binomial(n, rng.choice([0.1, 0.5], num))


def sums(n: list[int], c: list[int]) -> UserSums:
    return UserSums.of_users(np.array(n), np.array(c))


def test_sums_count_users_who_were_shown_something() -> None:
    assert UserSums.of_users(np.array([[2, 0, 3], [1, 1, 1]]), np.array([[1, 0, 3], [0, 1, 0]])).__dict__.keys()
    made = UserSums.of_users(np.array([[2, 0, 3], [1, 1, 1]]), np.array([[1, 0, 3], [0, 1, 0]]))
    assert [part.tolist() for part in vars(made).values()] == [[2, 3], [5, 3], [4, 1], [13, 3], [10, 1], [11, 1]]


def test_the_click_rate_is_the_delta_methods() -> None:
    n, c = users(500, 1)
    covariance = np.cov(n, c, ddof=1)
    rate = c.sum() / n.sum()
    gradient = np.array([-c.mean() / n.mean() ** 2, 1 / n.mean()])
    found = click_rate(UserSums.of_users(n, c))
    assert found.value == pytest.approx(rate)
    assert found.error == pytest.approx(math.sqrt(gradient @ covariance @ gradient / len(n)))


def test_the_error_is_what_drawing_other_users_shows() -> None:
    n, c = users(2000, 2)
    drawn = np.random.default_rng(0).integers(len(n), size=(2000, len(n)))
    rates = c[drawn].sum(axis=1) / n[drawn].sum(axis=1)
    assert click_rate(UserSums.of_users(n, c)).error == pytest.approx(rates.std(), rel=0.06)
    independent = math.sqrt(rates.mean() * (1 - rates.mean()) / n.sum())
    assert independent < 0.9 * rates.std()  # which taking impressions for independent would give


def test_one_impression_a_user_is_a_proportion() -> None:
    c = np.random.default_rng(3).random(400) < 0.3
    found = click_rate(UserSums.of_users(np.ones(400), c))
    p = c.mean()
    assert found.error == pytest.approx(math.sqrt(p * (1 - p) / 399))
    assert design_effect(UserSums.of_users(np.ones(400), c)) == pytest.approx(400 / 399)
    counts = ArmCounts("a", UserSums.of_users(np.ones(400), c), int(c.sum()), int(c.sum()), 0, 1, 1.0)
    assert user_rate(counts) == Estimate(pytest.approx(p), pytest.approx(math.sqrt(p * (1 - p) / 400)))


def test_impressions_of_a_user_that_are_all_alike_count_once() -> None:
    n = np.full(300, 4)
    c = 4 * (np.random.default_rng(4).random(300) < 0.4)
    assert design_effect(UserSums.of_users(n, c)) == pytest.approx(4 * 300 / 299)


def test_arrays_are_many_experiments() -> None:
    pairs = [users(100, seed) for seed in range(3)]
    many = UserSums.of_users(np.stack([n for n, _ in pairs]), np.stack([c for _, c in pairs]))
    one_by_one = [click_rate(UserSums.of_users(n, c)) for n, c in pairs]
    np.testing.assert_allclose(click_rate(many).value, [e.value for e in one_by_one])
    np.testing.assert_allclose(click_rate(many).error, [e.error for e in one_by_one])
    ratio = log_ratio(click_rate(many), Estimate(0.3, 0.01))
    np.testing.assert_allclose(ratio.value, [math.log(0.3 / e.value) for e in one_by_one])


def test_differences_and_ratios_by_hand() -> None:
    control, arm = Estimate(0.2, 0.03), Estimate(0.25, 0.04)
    assert difference(control, arm) == Estimate(pytest.approx(0.05), pytest.approx(0.05))
    ratio = log_ratio(control, arm)
    assert ratio == Estimate(pytest.approx(math.log(1.25)), pytest.approx(math.hypot(0.15, 0.16)))
    z = stats.norm.ppf(0.95)
    assert ratio.interval(0.1) == Interval(
        pytest.approx(ratio.value - z * ratio.error), pytest.approx(ratio.value + z * ratio.error)
    )
    assert ratio.p_value() == pytest.approx(2 * stats.norm.sf(ratio.value / ratio.error))
    assert as_lift(Interval(0.0, math.log(1.25))) == Interval(0.0, pytest.approx(0.25))


def test_the_interval_of_a_rate_is_wilsons_of_its_effective_size() -> None:
    c = np.random.default_rng(5).random(50) < 0.1
    p, z = c.mean(), stats.norm.ppf(0.975)
    size = 49  # of a variance with n - 1
    middle = (p + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * math.sqrt(p * (1 - p) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    found = rate_interval(UserSums.of_users(np.ones(50), c), 0.05)
    assert found == Interval(pytest.approx(middle - half), pytest.approx(middle + half))
    alike = rate_interval(UserSums.of_users(np.full(50, 4), 4 * c), 0.05)
    assert alike == Interval(pytest.approx(found.low), pytest.approx(found.high))


def test_no_clicks_and_single_users_say_little_and_raise_nothing() -> None:
    none, full, some = sums([3] * 40, [0] * 40), sums([1] * 40, [1] * 40), sums([1, 2, 3], [1, 0, 2])
    assert click_rate(none) == Estimate(0.0, 0.0)
    assert rate_interval(none, 0.05).low == pytest.approx(0) and rate_interval(none, 0.05).high == pytest.approx(
        stats.norm.ppf(0.975) ** 2 / (40 + stats.norm.ppf(0.975) ** 2)
    )  # 40 users, not 120 impressions
    assert math.isnan(design_effect(none))
    for control, arm in ((none, some), (some, none), (none, none), (full, full)):
        ratio = log_ratio(click_rate(control), click_rate(arm))
        assert math.isnan(ratio.value) and math.isnan(ratio.error) and math.isnan(ratio.p_value())
    one = click_rate(sums([4], [2]))
    assert one.value == 0.5 and math.isnan(one.error)
    assert math.isnan(log_ratio(one, click_rate(some)).value)
    assert 0 < rate_interval(sums([4], [2]), 0.05).low < 0.5
    assert math.isnan(click_rate(sums([0], [0])).value)


@pytest.mark.parametrize(("value", "error", "scale"), [(0.05, 0.02, 0.048), (-0.3, 0.1, 0.2), (0.0, 0.05, 0.05)])
def test_the_p_value_is_one_over_the_mean_likelihood_ratio(value: float, error: float, scale: float) -> None:
    def ratio(effect: float) -> float:
        return float(stats.norm.pdf(value, effect, error) * stats.norm.pdf(effect, 0, scale))

    mixed = integrate.quad(ratio, -2, 2, points=[value], limit=500)[0] / stats.norm.pdf(value, 0, error)
    assert always_valid_p_value(Estimate(value, error), scale) == pytest.approx(min(1, 1 / mixed), rel=1e-6)


def test_the_interval_holds_every_value_that_is_not_refused() -> None:
    estimate, scale, alpha = Estimate(0.1, 0.03), 0.05, 0.1
    found = always_valid_interval(estimate, scale, alpha)
    for end, inward in ((found.low, 1), (found.high, -1)):
        for step, is_in in ((1e-6 * inward, True), (-1e-6 * inward, False)):
            moved = Estimate(estimate.value - (end + step), estimate.error)
            assert (always_valid_p_value(moved, scale) > alpha) == is_in


def test_an_early_look_widens_the_interval_by_half_where_the_scale_was_planned() -> None:
    error = 0.05 / (stats.norm.ppf(0.975) + stats.norm.ppf(0.8))  # finds 0.05 with a power of 0.8
    fixed = Estimate(0.0, error).interval(0.05)

    def width(scale: float) -> float:
        return float(always_valid_interval(Estimate(0.0, error), scale, 0.05).high)

    assert 1.4 < width(0.05) / fixed.high < 1.6
    assert 0.03 < min(np.geomspace(0.01, 0.3, 40), key=width) < 0.07  # near its least at the lift looked for


def test_unknown_stays_unknown() -> None:
    nothing = Estimate(math.nan, math.nan)
    assert math.isnan(always_valid_interval(nothing, 0.05, 0.05).low)
    assert math.isnan(always_valid_p_value(nothing, 0.05))
    for scale in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="scale="):
            always_valid_interval(Estimate(0.1, 0.1), scale, 0.05)
        with pytest.raises(ValueError, match="scale="):
            always_valid_p_value(Estimate(0.1, 0.1), scale)
