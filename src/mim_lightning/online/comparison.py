"""Each arm against the control, per impression and per user: differences, lifts, intervals, p-values.

Counts and a plan come in, `Comparison`s go out; `summary` calls it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mim_lightning.online.always_valid import always_valid_interval, always_valid_p_value
from mim_lightning.online.counts import ArmCounts
from mim_lightning.online.lift import Estimate, Interval, as_lift, click_rate, difference, log_ratio, user_rate
from mim_lightning.online.plan import Plan

PER_IMPRESSION, PER_USER = "per impression", "per user"
UNKNOWN = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class Comparison:
    """One arm against the control in one measure; nan where clicks or users are missing."""

    measure: str  # PER_IMPRESSION: impressions with a click; PER_USER: users with a click
    arm: str
    control_rate: float
    arm_rate: float
    difference: float  # of the rates, arm minus control
    difference_interval: Interval
    lift: float  # relative: 0.05 for +5 %
    lift_interval: Interval  # right at the planned size, once
    p_value: float  # two-sided, of the log ratio, as is the lift's interval
    holm_p_value: float  # corrected for the number of arms
    always_valid_interval: Interval  # of the lift, right at every look
    always_valid_p_value: float


def compare_arms(arms: Mapping[str, ArmCounts], control: str, plan: Plan) -> list[Comparison]:
    """Compare every arm to the control in both measures, per impression first; p-values corrected by measure."""
    others = [arm for name, arm in arms.items() if name != control]
    rows = [
        _correct([compare(arms[control], arm, plan) for arm in others])
        for compare in (compare_click_rates, compare_user_rates)
    ]
    return [row for measured in rows for row in measured]


def compare_click_rates(control: ArmCounts, arm: ArmCounts, plan: Plan) -> Comparison:
    """Compare impressions with a click over impressions, by the delta method over users."""
    sides = click_rate(control.sums), click_rate(arm.sums)
    ratio = log_ratio(*sides)
    is_known = not math.isnan(ratio.value)
    return _comparison(
        PER_IMPRESSION,
        arm.arm,
        sides,
        plan,
        difference(*sides).interval(plan.alpha) if is_known else UNKNOWN,
        as_lift(ratio.interval(plan.alpha)),
        ratio.p_value(),
    )


def compare_user_rates(control: ArmCounts, arm: ArmCounts, plan: Plan) -> Comparison:
    """Compare users with a click over users: independent proportions.

    Source: statsmodels; Newcombe's interval of the difference, Katz's (log) of the ratio.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep, test_proportions_2indep

    sides = user_rate(control), user_rate(arm)
    between, lift, p_value = UNKNOWN, UNKNOWN, math.nan
    if not math.isnan(log_ratio(*sides).value):
        counts = arm.num_clicking_users, arm.num_users, control.num_clicking_users, control.num_users
        between = _interval(confint_proportions_2indep(*counts, method="newcomb", compare="diff", alpha=plan.alpha))
        ratio = _interval(confint_proportions_2indep(*counts, method="log", compare="ratio", alpha=plan.alpha))
        lift = Interval(ratio.low - 1, ratio.high - 1)
        p_value = float(test_proportions_2indep(*counts, method="log", compare="ratio").pvalue)
    return _comparison(PER_USER, arm.arm, sides, plan, between, lift, p_value)


def _comparison(
    measure: str,
    arm: str,
    sides: tuple[Estimate, Estimate],
    plan: Plan,
    between: Interval,
    lift: Interval,
    p_value: float,
) -> Comparison:
    ratio = log_ratio(*sides)
    return Comparison(
        measure=measure,
        arm=arm,
        control_rate=sides[0].value,
        arm_rate=sides[1].value,
        difference=sides[1].value - sides[0].value,
        difference_interval=between,
        lift=math.expm1(ratio.value),
        lift_interval=lift,
        p_value=p_value,
        holm_p_value=p_value,
        always_valid_interval=as_lift(always_valid_interval(ratio, plan.mixture_scale, plan.alpha)),
        always_valid_p_value=always_valid_p_value(ratio, plan.mixture_scale),
    )


def _correct(rows: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p-values of several arms for their number; nan counts not."""
    from statsmodels.stats.multitest import multipletests

    known = [row for row in rows if not math.isnan(row.p_value)]
    if len(known) < 2:
        return list(rows)
    corrected = iter(multipletests([row.p_value for row in known], method="holm")[1])
    return [row if math.isnan(row.p_value) else replace(row, holm_p_value=float(next(corrected))) for row in rows]


def _interval(ends: tuple[float, float]) -> Interval:
    return Interval(float(ends[0]), float(ends[1]))
