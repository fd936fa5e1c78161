"""The report of an online experiment: arms, their comparison to the control, and what casts doubt on it.

Counts and a plan come in, an ExperimentReport goes out; the report door calls it, and prints it or writes it as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from mim_lightning.online.comparison import Comparison, compare_arms
from mim_lightning.online.counts import ArmCounts, ExperimentCounts, PositionCounts
from mim_lightning.online.doubts import find_doubts
from mim_lightning.online.lift import Interval, click_rate, design_effect, rate_interval, user_rate
from mim_lightning.online.plan import Plan
from mim_lightning.online.sample_size import SampleRatio, SampleSize, check_sample_ratio, sample_size

CONTROL = "control"  # the arm of this name is the control, unless another is named


@dataclass(frozen=True)
class ArmSummary:
    """One arm by itself."""

    arm: str
    num_users: int
    num_impressions: int
    num_clicked: int  # impressions with a click
    num_clicks: int
    num_empty: int  # impressions without results
    click_rate: float  # impressions with a click over impressions
    click_rate_interval: Interval
    user_rate: float  # users with a click over users
    impressions_per_user: float
    design_effect: float  # how many times the variance that independent impressions would give; nan without clicks
    mean_latency_ms: float


@dataclass(frozen=True)
class ExperimentReport:
    """All that the report door tells."""

    experiment: str
    control: str
    plan: Plan
    first: datetime | None  # impression, UTC
    last: datetime | None
    arms: Sequence[ArmSummary]  # the control first
    comparisons: Sequence[Comparison]
    sample_ratio: SampleRatio
    needed: SampleSize | None  # of each arm for the plan's lift, from the control's rate; None without its clicks
    positions: Sequence[PositionCounts]
    warnings: Sequence[str]


def summarise(
    counts: ExperimentCounts, plan: Plan, control: str | None = None, shares: Mapping[str, float] | None = None
) -> ExperimentReport:
    """Make the report of an experiment.

    Args:
        counts: with one arm at least.
        plan: what was settled beforehand.
        control: the arm that others are compared to; None: the one called "control", or the only one.
        shares: of the arms, as they were assigned; None: equal ones.

    Raises:
        ValueError: no such control, none named where there are several arms, or an arm without a share.
    """
    chosen = _control(list(counts.arms), control)
    arms = {chosen: counts.arms[chosen], **counts.arms}
    users = {name: arm.num_users for name, arm in arms.items()}
    ratio = check_sample_ratio(users, dict.fromkeys(arms, 1.0) if shares is None else shares)
    return ExperimentReport(
        experiment=counts.experiment,
        control=chosen,
        plan=plan,
        first=counts.first,
        last=counts.last,
        arms=[_summarise_arm(arm, plan.alpha) for arm in arms.values()],
        comparisons=compare_arms(arms, chosen, plan),
        sample_ratio=ratio,
        needed=_needed(arms[chosen], len(arms) - 1, plan),
        positions=counts.positions,
        warnings=find_doubts(counts, ratio, plan),
    )


def as_plain(report: ExperimentReport) -> dict[str, Any]:
    """Return a report as JSON has it: nan as null, times in ISO 8601."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if isinstance(value, datetime):
            return value.isoformat()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {str(key): plain(value) for key, value in asdict(report).items()}


def _control(names: Sequence[str], control: str | None) -> str:
    assert names, "a report is of an experiment that was shown to somebody"
    if control is None and CONTROL not in names and len(names) > 1:
        raise ValueError(f"control: needs a value; name the arm that others are compared to: {', '.join(names)}")
    chosen = control or (CONTROL if CONTROL in names else names[0])
    if chosen not in names:
        raise ValueError(f"control={chosen}: no such arm was shown; there are {', '.join(names)}")
    return chosen


def _summarise_arm(arm: ArmCounts, alpha: float) -> ArmSummary:
    return ArmSummary(
        arm=arm.arm,
        num_users=arm.num_users,
        num_impressions=arm.num_impressions,
        num_clicked=arm.num_clicked,
        num_clicks=arm.num_clicks,
        num_empty=arm.num_empty,
        click_rate=click_rate(arm.sums).value,
        click_rate_interval=rate_interval(arm.sums, alpha),
        user_rate=user_rate(arm).value,
        impressions_per_user=arm.num_impressions / arm.num_users,
        design_effect=design_effect(arm.sums),
        mean_latency_ms=arm.mean_latency_ms,
    )


def _needed(control: ArmCounts, num_comparisons: int, plan: Plan) -> SampleSize | None:
    base, effect = click_rate(control.sums).value, design_effect(control.sums)
    if not 0 < base < 1 or not base * (1 + plan.lift) < 1 or math.isnan(effect):
        return None
    per_user = control.num_impressions / control.num_users
    # below 1 by chance alone: a user's impressions are alike rather than unlike
    return sample_size(base, plan.lift, plan.power, plan.alpha, max(1.0, effect), per_user, max(1, num_comparisons))
