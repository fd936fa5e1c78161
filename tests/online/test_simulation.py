"""What the report says of experiments whose truth is known, over many of them: how often is it right?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mim_lightning.online.aggregates import UserSums
from mim_lightning.online.assignment import Arm, assign
from mim_lightning.online.estimates import (
    Estimate,
    Interval,
    always_valid_interval,
    click_rate,
    design_effect,
    log_ratio,
)
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.power import Plan, sample_size
from mim_lightning.online.simulation import (
    RELEVANCE,
    ClickModel,
    simulate_events,
    simulate_lift,
    simulate_looks,
    simulate_sums,
)
from tests.online.event_factory import SALT

MODEL, PLAN = ClickModel(), Plan()
LIFTED = simulate_lift(MODEL, RELEVANCE, PLAN.lift)
NUM_REPEATS, NUM_LOOKS = 400, 20


def test_rates_are_those_of_clicks_that_are_drawn() -> None:
    rng = np.random.default_rng(0)
    for level, eagerness in enumerate(MODEL.eagerness):
        is_relevant = rng.random((20_000, 10)) < np.asarray(RELEVANCE)
        chances = MODEL.click_probabilities(is_relevant, np.full(20_000, eagerness))
        drawn = (rng.random(chances.shape) < chances).any(axis=1).mean()
        rate = MODEL.click_rates(RELEVANCE)[level]
        assert drawn == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 20_000))


def test_a_rate_by_hand() -> None:
    model = ClickModel((1.0, 0.5), relevant_liking=0.5, other_liking=0.0, eagerness=(0.5, 1.0))
    assert model.click_rates((1.0, 0.4)) == pytest.approx([1 - 0.75 * 0.95, 1 - 0.5 * 0.9])
    assert model.click_rate((1.0, 0.4)) == pytest.approx((0.2875 + 0.55) / 2)


@pytest.mark.parametrize("lift", [0.0495, -0.2, 0.0])
def test_a_planted_lift_is_the_one_asked_for(lift: float) -> None:
    planted = simulate_lift(MODEL, RELEVANCE, lift)
    assert MODEL.click_rate(planted) / MODEL.click_rate(RELEVANCE) - 1 == pytest.approx(lift, abs=1e-9)
    assert all(0 <= chance <= 1 for chance in planted)


def test_invalid_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lift=3.0: no ranking reaches it"):
        simulate_lift(MODEL, RELEVANCE, 3.0)
    with pytest.raises(ValueError, match="relevance: needs 10 probabilities"):
        MODEL.click_rate((0.5, 0.5))
    with pytest.raises(ValueError, match="click model: liking"):
        ClickModel(relevant_liking=0.9)
    with pytest.raises(ValueError, match="click model: examination"):
        ClickModel(examination=(1.2,))
    with pytest.raises(ValueError, match="queries_per_user"):
        ClickModel(queries_per_user=0.5)


def is_likely(found: np.ndarray, chance: float) -> bool:
    """Whether the fraction of repeats is one that this chance gives in all but one of ten thousand simulations."""
    low, high = stats.binom.ppf([0.00005, 0.99995], len(found), chance)
    return bool(low <= found.sum() <= high)


def excludes(interval: Interval, value: float) -> np.ndarray:
    return (np.asarray(interval.low) > value) | (np.asarray(interval.high) < value)


def users_of_the_plan() -> int:
    """Return the required sample size, with the design effect estimated from a pilot of 50,000 users."""
    pilot = simulate_sums(MODEL, RELEVANCE, 1, 50_000, np.random.default_rng(9))
    base, effect = float(click_rate(pilot).value[0]), float(design_effect(pilot)[0])
    per_user = float(pilot.impressions[0] / pilot.num_users[0])
    return sample_size(base, PLAN.lift, PLAN.power, PLAN.alpha, effect, per_user).num_users


@pytest.fixture(scope="module")
def ratios() -> dict[float, Estimate]:
    """The log ratio in many experiments of the planned size, by the lift that was planted."""
    rng, size = np.random.default_rng(1), users_of_the_plan()

    def arm(relevance: tuple[float, ...]) -> UserSums:
        return simulate_sums(MODEL, relevance, NUM_REPEATS, size, rng)

    return {
        lift: log_ratio(click_rate(arm(RELEVANCE)), click_rate(arm(relevance)))
        for lift, relevance in ((PLAN.lift, LIFTED), (0.0, RELEVANCE))
    }


def test_a_planted_lift_is_found_as_often_as_planned(ratios: dict[float, Estimate]) -> None:
    interval = ratios[PLAN.lift].interval(PLAN.alpha)
    assert is_likely(np.asarray(interval.low) > 0, PLAN.power)


def test_without_a_planted_lift_false_positives_have_the_planned_rate(ratios: dict[float, Estimate]) -> None:
    assert is_likely(excludes(ratios[0.0].interval(PLAN.alpha), 0), PLAN.alpha)


@pytest.mark.parametrize("lift", [PLAN.lift, 0.0])
@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_intervals_cover_the_truth_at_their_level(ratios: dict[float, Estimate], lift: float, alpha: float) -> None:
    assert is_likely(excludes(ratios[lift].interval(alpha), np.log1p(lift)), alpha)


def test_impressions_taken_for_independent_would_find_what_is_not_there() -> None:
    rng = np.random.default_rng(2)
    sides = [simulate_sums(MODEL, RELEVANCE, NUM_REPEATS, 1000, rng) for _ in range(2)]
    rates = [click_rate(side) for side in sides]
    naive = [
        Estimate(rate.value, np.sqrt(rate.value * (1 - rate.value) / side.impressions))
        for rate, side in zip(rates, sides, strict=True)
    ]
    assert excludes(log_ratio(*naive).interval(0.05), 0).mean() > 0.09
    assert is_likely(excludes(log_ratio(*rates).interval(0.05), 0), 0.05)


@pytest.mark.parametrize("returning", [False, True])
def test_only_the_always_valid_interval_is_valid_under_continuous_monitoring(returning: bool) -> None:
    rng = np.random.default_rng(3)
    rates = [
        click_rate(simulate_looks(MODEL, RELEVANCE, 250, NUM_LOOKS, 1600, rng, returning=returning)) for _ in range(2)
    ]
    ratio = log_ratio(*rates)
    ever = {
        "fixed": excludes(ratio.interval(0.05), 0).any(axis=1),
        "always valid": excludes(always_valid_interval(ratio, PLAN.mixture_scale, 0.05), 0).any(axis=1),
    }
    assert ever["fixed"].mean() > 0.15
    assert ever["always valid"].sum() <= stats.binom.ppf(0.9999, 250, 0.05)
    assert is_likely(excludes(ratio.interval(0.05), 0)[:, -1], 0.05)  # at a single look the fixed interval is valid


def test_the_always_valid_level_is_reached_not_only_kept() -> None:
    """A mixture at its own best point, in Brownian motion with many looks: its level comes near alpha."""
    rng, looks, alpha = np.random.default_rng(4), np.geomspace(1, 1e6, 400), 0.2
    steps = rng.normal(size=(2000, len(looks))) * np.sqrt(np.diff(looks, prepend=0))
    path = steps.cumsum(axis=1) / looks
    found = excludes(always_valid_interval(Estimate(path, looks**-0.5), 1.0, alpha), 0).any(axis=1).mean()
    assert 0.6 * alpha < found <= alpha


def test_looks_grow_by_new_users_or_by_the_same_ones() -> None:
    rng = np.random.default_rng(5)
    new = simulate_looks(MODEL, RELEVANCE, 3, 4, 200, rng)
    assert new.num_users.tolist() == [[50, 100, 150, 200]] * 3
    same = simulate_looks(MODEL, RELEVANCE, 3, 4, 200, rng, returning=True)
    assert (np.diff(same.num_users, axis=1) > 0).all() and same.num_users.max() <= 200
    for made in (new, same):
        assert (np.diff(made.impressions, axis=1) > 0).all() and (np.diff(made.clicked, axis=1) >= 0).all()


def test_events_are_those_of_the_model(tmp_path: Path) -> None:
    arms = {"control": Arm("control", 2), "new": Arm("new", 1)}
    relevance = {"control": RELEVANCE, "new": simulate_lift(MODEL, RELEVANCE, 0.25)}
    with EventLog(str(tmp_path / "events.db")) as log:
        simulate_events(log, MODEL, relevance, arms, "made up", 600, SALT, seed=1)
        counts = log.counts("made up")
    users = Counter(assign(f"user-{number}", arms, "made up", SALT).name for number in range(600))
    assert {name: arm.num_users for name, arm in counts.arms.items()} == users
    for name, arm in counts.arms.items():
        rate = click_rate(arm.sums)
        assert rate.value == pytest.approx(MODEL.click_rate(relevance[name]), abs=4 * rate.error)
        assert arm.num_impressions / arm.num_users == pytest.approx(2.5, abs=0.6)
        assert design_effect(arm.sums) > 1.2
    top, last = ([row.click_rate for row in counts.positions if row.position == position] for position in (1, 10))
    assert min(top) > 3 * max(last)
    assert counts.num_crossing_users == 0
