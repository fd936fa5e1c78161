"""What casts doubt on a report: users lost or mixed, an arm changed on the way, a look too early, clicks too few.

Counts, shares and a plan come in, one sentence for each doubt goes out, the gravest first; `summary` calls it.
"""

from __future__ import annotations

from collections.abc import Iterator

from mim_lightning.online.counts import ExperimentCounts
from mim_lightning.online.plan import Plan
from mim_lightning.online.sample_size import SampleRatio

MIN_CLICKING_USERS = 30  # of an arm, our choice: with fewer the estimates are not yet normal


def find_doubts(counts: ExperimentCounts, ratio: SampleRatio, plan: Plan) -> list[str]:
    """Return every doubt that the counts themselves raise."""
    return [*_of_assignment(counts, ratio), *_of_arms(counts), *_of_size(counts, plan), *_of_clicks(counts)]


def _of_assignment(counts: ExperimentCounts, ratio: SampleRatio) -> Iterator[str]:
    if ratio.is_mismatch:
        users = ", ".join(
            f"{arm} {counts.arms[arm].num_users if arm in counts.arms else 0:,} of {expected:,.1f} expected"
            for arm, expected in ratio.expected.items()
        )
        yield (
            f"SAMPLE RATIO MISMATCH (p = {max(ratio.p_value, 1e-99):.2g}): {users}; users were lost, moved or "
            "assigned by shares other than these; believe no difference below before the reason is found"
        )
    if counts.num_crossing_users:
        yield (
            f"{counts.num_crossing_users:,} users were seen in more than one arm and count in each: shares, arms or "
            "the user keys changed on the way"
        )


def _of_arms(counts: ExperimentCounts) -> Iterator[str]:
    for arm in counts.arms.values():
        if arm.num_fingerprints > 1:
            yield f"arm '{arm.arm}' answered with {arm.num_fingerprints} models (fingerprints): it is not one variant"
    if len(counts.arms) == 1:
        yield f"there is one arm, '{next(iter(counts.arms))}': nothing to compare it to"


def _of_size(counts: ExperimentCounts, plan: Plan) -> Iterator[str]:
    if len(counts.arms) < 2:
        return
    if plan.num_users is None:
        yield (
            "no sample size was planned (planned_users): the fixed interval and p-value hold only at a size settled "
            "beforehand; where looks decide when to stop, read the always-valid ones"
        )
        return
    smallest = min(counts.arms.values(), key=lambda arm: arm.num_users)
    if smallest.num_users < plan.num_users:
        yield (
            f"a look before the planned size: arm '{smallest.arm}' has {smallest.num_users:,} of {plan.num_users:,} "
            "users; stopping because of the fixed interval or p-value now finds differences that are none far more "
            f"often than in {plan.alpha:.0%} of experiments: only the always-valid ones may be acted on"
        )


def _of_clicks(counts: ExperimentCounts) -> Iterator[str]:
    for arm in counts.arms.values():
        if not arm.num_clicked:
            yield f"arm '{arm.arm}' has no clicks yet: no lift can be told"
        elif arm.num_clicking_users < MIN_CLICKING_USERS:
            yield f"arm '{arm.arm}' has {arm.num_clicking_users} users who clicked: too few for intervals to be trusted"
