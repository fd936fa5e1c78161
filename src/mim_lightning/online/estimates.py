"""Estimates of click-through rates and of the lift of an arm over the control, with intervals and p-values.

Users are what was randomized, and the impressions of one user are correlated: the delta method over users accounts
for that, intervals of independent impressions would be too narrow. A fixed interval holds at a sample size planned
beforehand, an always-valid one at every look.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from mim_lightning.online.aggregates import ArmCounts, Number, UserSums


@dataclass(frozen=True)
class Interval:
    """Both ends; nan if the data do not determine one."""

    low: Number
    high: Number


@dataclass(frozen=True)
class Estimate:
    """An approximately normal value with its standard error; nan if the data do not determine one."""

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

    The rate is a ratio of two means over users, C / N; its variance follows from their variances and covariance.
    The error is nan with fewer than two users.

    Source: Deng, Knoblich and Lu 2018, "Applying the delta method in metric analytics", on cluster randomization.
    """
    num = np.asarray(sums.num_users, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.divide(sums.clicked, sums.impressions)
        # sum over users of (c_u - rate n_u)^2, whose mean is 0 by the definition of the rate
        residual = sums.clicked_sq - 2 * rate * sums.cross + rate**2 * sums.impressions_sq
        variance = np.maximum(residual, 0) / (num - 1) * num / np.square(sums.impressions)
        variance = np.where(num > 1, variance, np.nan)
    return Estimate(_plain(rate), _plain(np.sqrt(variance)))


def user_rate(counts: ArmCounts) -> Estimate:
    """Return the fraction of users who clicked at least once, a binomial proportion."""
    rate, num = counts.num_clicking_users / counts.num_users, counts.num_users
    return Estimate(rate, float(np.sqrt(rate * (1 - rate) / num)))


def rate_interval(sums: UserSums, alpha: float) -> Interval:
    """Return Wilson's interval of the click-through rate of one arm, at the effective number of impressions.

    Where no or every impression was clicked, the correlation within users is unknown: then each user counts once.

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
    """Return the variance of the click-through rate over that of independent impressions; nan without clicks."""
    rate = click_rate(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        independent = rate.value * (1 - np.asarray(rate.value)) / np.asarray(sums.impressions, dtype=float)
        return _plain(np.square(rate.error) / independent)


def difference(control: Estimate, arm: Estimate) -> Estimate:
    """Return the arm's rate minus the control's."""
    return Estimate(arm.value - control.value, _plain(np.hypot(arm.error, control.error)))


def log_ratio(control: Estimate, arm: Estimate) -> Estimate:
    """Return log(arm's rate / control's rate) by the delta method; nan if one of them has no clicks or no error.

    On this scale a lift of +100 % and one of -50 % are equally far from none, and the estimate is closer to normal.

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


def always_valid_interval(estimate: Estimate, scale: float, alpha: float) -> Interval:
    """Return the confidence sequence of a normal mixture at this look.

    With variance V of the estimate and scale t, the square of half its width is
    V (V + t^2) / t^2 * log((V + t^2) / (V alpha^2)).
    The probability that the truth is outside at any of any number of looks is at most alpha, as long as there are
    enough clicks at the first look for the estimate to be approximately normal (asymptotic, as the fixed interval).

    Args:
        estimate: of a log ratio, or of arrays of them.
        scale: in the units of the estimate; any positive number chosen before the data is valid, and the width is
            near its minimum at the sample size where an effect of this size is found with a power of 0.8.
        alpha: one minus the level.

    Source: Johari et al. 2022, "Always valid inference", equation of the mSPRT interval; Waudby-Smith et al. 2024,
    "Time-uniform central limit theory and asymptotic confidence sequences"; Howard et al. 2021 on the mixture.
    """
    _validate_scale(scale)
    variance = np.square(np.asarray(estimate.error, dtype=float))
    total = variance + scale**2
    with np.errstate(invalid="ignore", divide="ignore"):
        half = _plain(np.sqrt(variance * total / scale**2 * np.log(total / (variance * alpha**2))))
    return Interval(estimate.value - half, estimate.value + half)


def always_valid_p_value(estimate: Estimate, scale: float) -> Number:
    """Return a p-value of no difference that is valid at every look: one over the mixture's likelihood ratio.

    It is below alpha exactly where the interval excludes 0. The smallest of all looks so far is valid too.

    Source: as `always_valid_interval`.
    """
    _validate_scale(scale)
    variance = np.square(np.asarray(estimate.error, dtype=float))
    total = variance + scale**2
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        log_likelihood = scale**2 * np.square(estimate.value) / (2 * variance * total) + np.log(variance / total) / 2
    return _plain(np.minimum(1.0, np.exp(-log_likelihood)))


def _validate_scale(scale: float) -> None:
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale={scale}: must be above 0")


def _plain(value: Number) -> Number:
    """Return numpy scalars as floats, arrays as they are."""
    return float(value) if np.ndim(value) == 0 else value
