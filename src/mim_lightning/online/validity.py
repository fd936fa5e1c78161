"""Validity checks of an experiment: sample ratio mismatch, mixed users, a changed arm, early looks, too few clicks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mim_lightning.online.aggregates import ExperimentCounts
from mim_lightning.online.power import Plan

MISMATCH_LEVEL = 0.001  # of the p-value, as in Kohavi, Tang and Xu 2020, chapter 21: the check is made often
MIN_CLICKING_USERS = 30  # of an arm, our choice: with fewer the estimates are not yet normal


@dataclass(frozen=True)
class SampleRatio:
    """Whether the users of the arms are in proportion to the traffic fractions."""

    expected: Mapping[str, float]  # users by arm
    p_value: float  # nan with fewer than two arms

    @property
    def is_mismatch(self) -> bool:
        return self.p_value < MISMATCH_LEVEL


def sample_ratio(num_users: Mapping[str, int], traffic_fractions: Mapping[str, float]) -> SampleRatio:
    """Test whether the users of the arms are in proportion to the traffic fractions (Pearson's chi-square).

    A mismatch means that users were lost or moved after they were assigned, or assigned by other fractions: the arms
    then differ in their users, and a comparison of their clicks is meaningless until this is explained.

    Args:
        num_users: by arm, an arm without any included.
        traffic_fractions: by arm, of any sum; 0 for an arm that gets no users and is left out.

    Raises:
        ValueError: an arm has users but no traffic fraction.

    Source: statsmodels' powerdiscrepancy; Fabijan et al. 2019, "Diagnosing sample ratio mismatch".
    """
    from statsmodels.stats.gof import powerdiscrepancy

    missing = sorted(set(num_users) - {arm for arm, fraction in traffic_fractions.items() if fraction > 0})
    if missing:
        raise ValueError(f"traffic_fractions.{missing[0]}: needs a value above 0, the arm has users; give all arms")
    arms = [arm for arm, fraction in traffic_fractions.items() if fraction > 0]
    observed = [num_users.get(arm, 0) for arm in arms]
    total = sum(traffic_fractions[arm] for arm in arms)
    expected = [sum(observed) * traffic_fractions[arm] / total for arm in arms]
    p_value = float("nan")
    if len(arms) > 1 and sum(observed) > 0:
        p_value = float(powerdiscrepancy(observed, expected, lambd="pearson")[1])
    return SampleRatio(dict(zip(arms, expected, strict=True)), p_value)


def validity_warnings(counts: ExperimentCounts, ratio: SampleRatio, plan: Plan) -> list[str]:
    """Return one sentence for each reason not to trust a report, a sample ratio mismatch first."""
    return [*_of_assignment(counts, ratio), *_of_arms(counts), *_of_size(counts, plan), *_of_clicks(counts)]


def _of_assignment(counts: ExperimentCounts, ratio: SampleRatio) -> Iterator[str]:
    if ratio.is_mismatch:
        users = ", ".join(
            f"{arm} {counts.arms[arm].num_users if arm in counts.arms else 0:,} of {expected:,.1f} expected"
            for arm, expected in ratio.expected.items()
        )
        yield (
            f"SAMPLE RATIO MISMATCH (p = {max(ratio.p_value, 1e-99):.2g}): {users}; users were lost, moved or "
            "assigned by other traffic fractions; do not trust the differences below until this is explained"
        )
    if counts.num_crossing_users:
        yield (
            f"{counts.num_crossing_users:,} users have impressions in more than one arm and count in each: "
            "traffic fractions, arms or user keys changed during the experiment"
        )


def _of_arms(counts: ExperimentCounts) -> Iterator[str]:
    for arm in counts.arms.values():
        if arm.num_fingerprints > 1:
            yield f"arm '{arm.arm}' answered with {arm.num_fingerprints} models (fingerprints): it is not one variant"
    if len(counts.arms) == 1:
        yield f"there is only one arm, '{next(iter(counts.arms))}': nothing to compare it to"


def _of_size(counts: ExperimentCounts, plan: Plan) -> Iterator[str]:
    if len(counts.arms) < 2:
        return
    if plan.num_users is None:
        yield (
            "no sample size was planned (planned_users): the fixed interval and p-value are valid only at a size fixed "
            "beforehand; if you decide at each look whether to stop, use the always-valid ones"
        )
        return
    smallest = min(counts.arms.values(), key=lambda arm: arm.num_users)
    if smallest.num_users < plan.num_users:
        yield (
            f"a look before the planned size: arm '{smallest.arm}' has {smallest.num_users:,} of {plan.num_users:,} "
            "users; stopping now because of the fixed interval or p-value finds false differences far more often than "
            f"in {plan.alpha:.0%} of experiments: act only on the always-valid ones"
        )


def _of_clicks(counts: ExperimentCounts) -> Iterator[str]:
    for arm in counts.arms.values():
        if not arm.num_clicked:
            yield f"arm '{arm.arm}' has no clicks yet: no lift can be estimated"
        elif arm.num_clicking_users < MIN_CLICKING_USERS:
            yield f"arm '{arm.arm}' has {arm.num_clicking_users} users who clicked: too few to trust the intervals"
