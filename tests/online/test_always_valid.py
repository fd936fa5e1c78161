"""The always-valid interval: its formula by another way, its agreement with its p-value, and its price."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from mim_lightning.online.always_valid import always_valid_interval, always_valid_p_value
from mim_lightning.online.lift import Estimate


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


def test_a_look_costs_half_the_width_again_where_the_scale_was_planned() -> None:
    error = 0.05 / (stats.norm.ppf(0.975) + stats.norm.ppf(0.8))  # finds 0.05 with a power of 0.8
    fixed = Estimate(0.0, error).interval(0.05)

    def width(scale: float) -> float:
        return float(always_valid_interval(Estimate(0.0, error), scale, 0.05).high)

    assert 1.4 < width(0.05) / fixed.high < 1.6
    assert 0.03 < min(np.geomspace(0.01, 0.3, 40), key=width) < 0.07  # near its least at the lift looked for


def test_nothing_known_stays_nothing_known() -> None:
    nothing = Estimate(math.nan, math.nan)
    assert math.isnan(always_valid_interval(nothing, 0.05, 0.05).low)
    assert math.isnan(always_valid_p_value(nothing, 0.05))
    for scale in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="scale="):
            always_valid_interval(Estimate(0.1, 0.1), scale, 0.05)
        with pytest.raises(ValueError, match="scale="):
            always_valid_p_value(Estimate(0.1, 0.1), scale)
