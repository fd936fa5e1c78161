"""Power analysis: what an experiment plans to find, and how many impressions and users that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Settings that are fixed before the first user: what the data suggests afterwards is not a plan."""

    lift: float = 0.0495  # relative, to be found; default: what the MIM paper measured
    power: float = 0.8
    alpha: float = 0.05
    num_users: int | None = None  # of each arm; None: no size was planned

    def __post_init__(self) -> None:
        if self.lift == 0 or not -1 < self.lift <= 1:
            raise ValueError(f"lift={self.lift}: must be between -1 and 1 and not 0; 0.05 is +5 %")
        _validate_levels(self.alpha, self.power)
        if self.num_users is not None and self.num_users < 1:
            raise ValueError(f"planned_users={self.num_users}: must be 1 or more, or null")

    @property
    def mixture_scale(self) -> float:
        """Scale of the always-valid interval: the planned lift as a log ratio."""
        return abs(math.log1p(self.lift))


@dataclass(frozen=True)
class SampleSize:
    """What each of two equal arms needs."""

    num_impressions: int
    num_users: int


def sample_size(
    baseline_rate: float,
    lift: float,
    power: float = 0.8,
    alpha: float = 0.05,
    design_effect: float = 1.0,
    impressions_per_user: float = 1.0,
    num_comparisons: int = 1,
) -> SampleSize:
    """Return the size of an arm at which a relative lift is found, in a two-sided test against an equal control.

    Args:
        baseline_rate: click-through rate of the control, above 0 and below 1.
        lift: relative: 0.0495 for +4.95 %; negative for a loss.
        power: probability that the lift is found.
        alpha: probability that a lift is found where there is none.
        design_effect: of correlated impressions, see `estimates.design_effect`; 1 if each user has one impression.
        impressions_per_user: mean.
        num_comparisons: arms that are compared to the control; alpha is divided by it, the most that Holm requires.

    Raises:
        ValueError: a number is out of range.

    Source: statsmodels' NormalIndPower with Cohen's h (arcsine) as effect; Kish 1965 for the design effect.
    """
    from statsmodels.stats.power import NormalIndPower
    from statsmodels.stats.proportion import proportion_effectsize

    if not 0 < baseline_rate < 1:
        raise ValueError(f"baseline_rate={baseline_rate}: a click-through rate is above 0 and below 1")
    if lift == 0 or not 0 < baseline_rate * (1 + lift) < 1:
        raise ValueError(f"lift={lift}: must not be 0, and the lifted rate must be above 0 and below 1; 0.05 is +5 %")
    _validate_levels(alpha, power)
    if not design_effect > 0:
        raise ValueError(f"design_effect={design_effect}: must be above 0")
    if not impressions_per_user >= 1:
        raise ValueError(f"impressions_per_user={impressions_per_user}: must be 1 or more")
    if num_comparisons < 1:
        raise ValueError(f"num_comparisons={num_comparisons}: must be 1 or more")
    effect = abs(proportion_effectsize(baseline_rate * (1 + lift), baseline_rate))
    independent = NormalIndPower().solve_power(effect, alpha=alpha / num_comparisons, power=power, ratio=1.0)
    num_impressions = float(independent) * design_effect
    return SampleSize(math.ceil(num_impressions), math.ceil(num_impressions / impressions_per_user))


def _validate_levels(alpha: float, power: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: must be above 0 and below 1")
    if not alpha < power < 1:
        raise ValueError(f"power={power}: must be above alpha and below 1")
