"""The report of an online experiment: its arms, their comparison with the control, and validity warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from mim_lightning.online.aggregates import ArmCounts, ExperimentCounts, PositionCounts
from mim_lightning.online.arm_comparison import ArmComparison, compare_arms
from mim_lightning.online.estimates import Interval, click_rate, design_effect, rate_interval, user_rate
from mim_lightning.online.power import Plan, SampleSize, sample_size
from mim_lightning.online.validity import SampleRatio, sample_ratio, validity_warnings

CONTROL = "control"  # name of the control arm, unless another one is given


@dataclass(frozen=True)
class ArmSummary:
    """Counts and rates of one arm."""

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
    design_effect: float  # variance of the click rate over that of independent impressions; nan without clicks
    mean_latency_ms: float


@dataclass(frozen=True)
class ExperimentReport:
    """The result of an experiment."""

    experiment: str
    control: str
    plan: Plan
    first: datetime | None  # impression, UTC
    last: datetime | None
    arms: Sequence[ArmSummary]  # the control first
    comparisons: Sequence[ArmComparison]
    sample_ratio: SampleRatio
    needed: SampleSize | None  # of each arm for the planned lift, at the control's rate; None if it has no clicks
    positions: Sequence[PositionCounts]
    warnings: Sequence[str]  # a sample ratio mismatch is the first


def make_report(
    counts: ExperimentCounts,
    plan: Plan,
    control: str | None = None,
    traffic_fractions: Mapping[str, float] | None = None,
) -> ExperimentReport:
    """Return the report of an experiment.

    Args:
        counts: with at least one arm.
        plan: settings fixed before the experiment.
        control: the arm that others are compared with; None: the one named "control", or the only one.
        traffic_fractions: of the arms, as the service assigned them; None: equal ones.

    Raises:
        ValueError: there is no such control, several arms but no control, or an arm without a traffic fraction.
    """
    chosen = _choose_control(list(counts.arms), control)
    arms = {chosen: counts.arms[chosen], **counts.arms}
    users = {name: arm.num_users for name, arm in arms.items()}
    ratio = sample_ratio(users, dict.fromkeys(arms, 1.0) if traffic_fractions is None else traffic_fractions)
    return ExperimentReport(
        experiment=counts.experiment,
        control=chosen,
        plan=plan,
        first=counts.first,
        last=counts.last,
        arms=[_summarize(arm, plan.alpha) for arm in arms.values()],
        comparisons=compare_arms(arms, chosen, plan),
        sample_ratio=ratio,
        needed=_needed_size(arms[chosen], len(arms) - 1, plan),
        positions=counts.positions,
        warnings=validity_warnings(counts, ratio, plan),
    )


def to_json(report: ExperimentReport) -> dict[str, Any]:
    """Return a report as plain values for JSON: nan as null, times in ISO 8601."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if isinstance(value, datetime):
            return value.isoformat()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {str(key): plain(value) for key, value in asdict(report).items()}


def _choose_control(names: Sequence[str], control: str | None) -> str:
    assert names, "a report needs an experiment with impressions"
    if control is None and CONTROL not in names and len(names) > 1:
        raise ValueError(f"control: needs a value; name the arm that others are compared with: {', '.join(names)}")
    chosen = control or (CONTROL if CONTROL in names else names[0])
    if chosen not in names:
        raise ValueError(f"control={chosen}: no impressions of such an arm; there are {', '.join(names)}")
    return chosen


def _summarize(arm: ArmCounts, alpha: float) -> ArmSummary:
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


def _needed_size(control: ArmCounts, num_comparisons: int, plan: Plan) -> SampleSize | None:
    base, effect = click_rate(control.sums).value, design_effect(control.sums)
    if not 0 < base < 1 or not base * (1 + plan.lift) < 1 or math.isnan(effect):
        return None
    per_user = control.num_impressions / control.num_users
    # an effect below 1 is chance: the impressions of a user are positively correlated
    return sample_size(base, plan.lift, plan.power, plan.alpha, max(1.0, effect), per_user, max(1, num_comparisons))


def choose_experiment(name: str | None, known: dict[str, int], log: str) -> str:
    """Return the named experiment, or the only one in the log."""
    if not known:
        raise ValueError(f"event_log={log}: contains no impressions yet; there is nothing to report")
    if name is None and len(known) == 1:
        return next(iter(known))
    if name is None:
        raise ValueError(f"experiment_name: needs a value; there are {', '.join(known)}")
    if name not in known:
        raise ValueError(f"experiment_name={name}: has no impressions; there are {', '.join(known)}")
    return name
