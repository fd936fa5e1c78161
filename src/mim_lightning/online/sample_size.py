"""How many impressions and users an experiment needs, and whether the users came to the arms as they should.

A base rate and a lift come in, sizes go out: asked for before an experiment, and by the report beside what there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MISMATCH_LEVEL = 0.001  # of the p-value, as in Kohavi, Tang and Xu 2020, chapter 21: the check is made often


@dataclass(frozen=True)
class SampleSize:
    """What each of two equal arms needs."""

    num_impressions: int
    num_users: int


@dataclass(frozen=True)
class SampleRatio:
    """Whether users came to the arms in proportion to the shares."""

    expected: Mapping[str, float]  # users by arm
    p_value: float  # nan with fewer than two arms

    @property
    def is_mismatch(self) -> bool:
        return self.p_value < MISMATCH_LEVEL


def sample_size(
    base: float,
    lift: float,
    power: float = 0.8,
    alpha: float = 0.05,
    design_effect: float = 1.0,
    impressions_per_user: float = 1.0,
    num_comparisons: int = 1,
) -> SampleSize:
    """Return how much an arm needs for a relative lift to be found, in a two-sided test against an equal control.

    Args:
        base: click-through rate of the control, above 0 and below 1.
        lift: relative: 0.0495 for +4.95 %; negative for a loss.
        power: chance that it is found.
        alpha: chance that one is found where there is none.
        design_effect: of impressions that are not independent; 1 if each user has one (`lift.design_effect`).
        impressions_per_user: mean.
        num_comparisons: arms that are compared to the control; alpha is divided by it, the most that Holm asks.

    Raises:
        ValueError: a number out of its range.

    Source: statsmodels' NormalIndPower with Cohen's h (arcsine) as effect; Kish 1965 for the design effect.
    """
    from statsmodels.stats.power import NormalIndPower
    from statsmodels.stats.proportion import proportion_effectsize

    _check(base, lift, power, alpha, design_effect, impressions_per_user, num_comparisons)
    effect = abs(proportion_effectsize(base * (1 + lift), base))
    independent = NormalIndPower().solve_power(effect, alpha=alpha / num_comparisons, power=power, ratio=1.0)
    num_impressions = float(independent) * design_effect
    return SampleSize(math.ceil(num_impressions), math.ceil(num_impressions / impressions_per_user))


def check_sample_ratio(num_users: Mapping[str, int], shares: Mapping[str, float]) -> SampleRatio:
    """Test whether the users of the arms are in the proportion of their shares (Pearson's chi-square).

    A mismatch says that users were lost or moved after they were assigned, or assigned by other shares: the arms then
    differ in their users, and what the report says of their clicks is worth nothing until the reason is found.

    Args:
        num_users: by arm, an arm without any included.
        shares: by arm, of any sum; 0 for an arm that takes none and is left out.

    Raises:
        ValueError: an arm without a share.

    Source: statsmodels' powerdiscrepancy; Fabijan et al. 2019, "Diagnosing sample ratio mismatch".
    """
    from statsmodels.stats.gof import powerdiscrepancy

    missing = sorted(set(num_users) - {arm for arm, share in shares.items() if share > 0})
    if missing:
        raise ValueError(f"shares.{missing[0]}: needs a value above 0, the arm has users; give the shares of all arms")
    arms = [arm for arm, share in shares.items() if share > 0]
    observed = [num_users.get(arm, 0) for arm in arms]
    whole = sum(shares[arm] for arm in arms)
    expected = [sum(observed) * shares[arm] / whole for arm in arms]
    p_value = float("nan")
    if len(arms) > 1 and sum(observed) > 0:
        p_value = float(powerdiscrepancy(observed, expected, lambd="pearson")[1])
    return SampleRatio(dict(zip(arms, expected, strict=True)), p_value)


def _check(base: float, lift: float, power: float, alpha: float, effect: float, per_user: float, num: int) -> None:
    if not 0 < base < 1:
        raise ValueError(f"base={base}: a click-through rate lies above 0 and below 1")
    if lift == 0 or not 0 < base * (1 + lift) < 1:
        raise ValueError(f"lift={lift}: must not be 0, and the lifted rate must lie above 0 and below 1; 0.05 is +5 %")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: must lie above 0 and below 1")
    if not alpha < power < 1:
        raise ValueError(f"power={power}: must lie above alpha and below 1")
    if not effect > 0:
        raise ValueError(f"design_effect={effect}: must be above 0")
    if not per_user >= 1:
        raise ValueError(f"impressions_per_user={per_user}: must be 1 or more")
    if num < 1:
        raise ValueError(f"num_comparisons={num}: must be 1 or more")
