"""How far the click-through of an arm differs from the control's, and how sure one can be of it.

Sums over users come in, rates and intervals go out; `summary` calls it, and the simulator's proofs with arrays. Users
are what was randomised, and one user's impressions are alike: taken for independent, intervals would be too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from mim_lightning.online.counts import ArmCounts, Number, UserSums


@dataclass(frozen=True)
class Interval:
    """Both ends; nan where nothing can be said."""

    low: Number
    high: Number


@dataclass(frozen=True)
class Estimate:
    """A value that is about normal, with its standard error; nan where there is none."""

    value: Number
    error: Number

    def interval(self, alpha: float) -> Interval:
        half = NormalDist().inv_cdf(1 - alpha / 2) * self.error
        return Interval(self.value - half, self.value + half)

    def p_value(self) -> float:
        """Return the two-sided p-value of 0; of one estimate, not of an array."""
        z = abs(float(self.value)) / float(self.error) if self.error else float("nan")
        return 2 * NormalDist().cdf(-z) if np.isfinite(z) else float("nan")


def click_rate(sums: UserSums) -> Estimate:
    """Return the click-through rate, impressions with a click over impressions, by the delta method.

    The rate is a ratio of two means over users, C / N; its variance comes from how both vary over users, and together.
    Nan from fewer than two users.

    Source: Deng, Knoblich and Lu 2018, "Applying the delta method in metric analytics", on cluster randomisation.
    """
    num = np.asarray(sums.num_users, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.divide(sums.clicked, sums.impressions)
        # sum over users of (c_u - rate n_u)^2; its mean is 0 by what the rate is
        residual = sums.clicked_sq - 2 * rate * sums.cross + rate**2 * sums.impressions_sq
        variance = np.maximum(residual, 0) / (num - 1) * num / np.square(sums.impressions)
        variance = np.where(num > 1, variance, np.nan)
    return Estimate(_plain(rate), _plain(np.sqrt(variance)))


def user_rate(counts: ArmCounts) -> Estimate:
    """Return the share of users who clicked at least once, a plain proportion."""
    share, num = counts.num_clicking_users / counts.num_users, counts.num_users
    return Estimate(share, float(np.sqrt(share * (1 - share) / num)))


def rate_interval(sums: UserSums, alpha: float) -> Interval:
    """Return Wilson's interval of the click-through rate of one arm, for as many impressions as would be independent.

    Where no or every impression was clicked, how alike a user's are cannot be told: then each user counts once.

    Source: statsmodels' proportion_confint; effective sizes as in Korn and Graubard 1998.
    """
    from statsmodels.stats.proportion import proportion_confint

    rate = click_rate(sums)
    if not rate.error > 0:
        size = float(sums.num_users)
    else:
        size = min(rate.value * (1 - rate.value) / rate.error**2, float(sums.impressions))
    low, high = proportion_confint(rate.value * size, size, alpha=alpha, method="wilson")
    return Interval(float(low), float(high))


def design_effect(sums: UserSums) -> Number:
    """Return how many times the variance of independent impressions the click-through rate has; nan without clicks."""
    rate = click_rate(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        independent = rate.value * (1 - np.asarray(rate.value)) / np.asarray(sums.impressions, dtype=float)
        return _plain(np.square(rate.error) / independent)


def difference(control: Estimate, arm: Estimate) -> Estimate:
    """Return the arm's rate minus the control's."""
    return Estimate(arm.value - control.value, _plain(np.hypot(arm.error, control.error)))


def log_ratio(control: Estimate, arm: Estimate) -> Estimate:
    """Return log(arm's rate / control's rate) by the delta method; nan where one of them has no clicks, or no error.

    On this scale a lift of +100 % and one of -50 % are as far from none, and the estimate is nearer to normal.

    Source: Deng, Knoblich and Lu 2018, on percent changes; the logarithm is our choice.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = [np.divide(side.error, side.value) for side in (arm, control)]
        value = np.log(np.asarray(arm.value, dtype=float)) - np.log(np.asarray(control.value, dtype=float))
        error = np.hypot(*parts)
    is_known = np.isfinite(value) & np.isfinite(error) & (error > 0)
    return Estimate(_plain(np.where(is_known, value, np.nan)), _plain(np.where(is_known, error, np.nan)))


def as_lift(of_log: Interval) -> Interval:
    """Return the interval of a relative lift (0.05 for +5 %) from that of a log ratio."""
    return Interval(_plain(np.expm1(of_log.low)), _plain(np.expm1(of_log.high)))


def _plain(value: Number) -> Number:
    """Return numpy's scalars as floats, arrays as they are."""
    return float(value) if np.ndim(value) == 0 else value
