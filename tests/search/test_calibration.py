"""Probabilities and thresholds of made-up searches whose truth is known."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from mim_lightning.io.damaged_file import DamagedFileError
from mim_lightning.search.calibration import (
    CALIBRATION,
    Rate,
    ScoreCalibration,
    describe_calibrations,
    fit_calibration,
    kind_of,
    read_calibrations,
)
from mim_lightning.search.index.card import CATALOG_DIGESTS, IndexCard, Recall
from mim_lightning.search.query import SearchQuery

CARD = IndexCard(
    "faiss", "flat", "", "f" * 16, "product", 8, 40, 40, 0, 0.0, Recall(10, 1.0, 0, ""), {}, "",
    extra={CATALOG_DIGESTS: {"shop": "abc"}},
)  # fmt: skip


def searches(num_queries: int, chance: Any, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return judged searches of 4 hits, each right with the chance of its score."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.uniform(0, 1, (num_queries, 4)), axis=1)
    is_right = rng.uniform(size=scores.shape) < chance(scores)
    best_wrong = np.where(is_right, 0.0, scores).max(1)
    return scores, is_right, best_wrong, is_right.any(1), np.arange(num_queries)


def logistic(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-8 * (scores - 0.6)))


def step(scores: np.ndarray) -> np.ndarray:
    return np.where(scores > 0.7, 0.9, 0.1)


@pytest.mark.parametrize(("truth", "method"), [(logistic, "logistic"), (step, "isotonic")])
def test_the_planted_probabilities_are_found(truth: Any, method: str) -> None:
    found = fit_calibration(*searches(2000, truth), false_alarm_rate=0.1)
    assert found.method == method and found.error < 0.03
    for score in (0.2, 0.5, 0.65, 0.9):
        assert found.probability(score) == pytest.approx(float(truth(np.array(score))), abs=0.06)
    assert found.probability(-9) <= found.probability(0.5) <= found.probability(9)
    assert sum(count for *_, count in found.bins) == 8000


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_the_false_alarm_rate_holds_for_further_queries(rate: float) -> None:
    thresholds = [fit_calibration(*searches(200, logistic, seed), rate).threshold for seed in range(20)]
    _, _, best_wrong, _, _ = searches(20_000, logistic, seed=99)
    rates = [(best_wrong >= threshold).mean() for threshold in thresholds]
    assert 0.5 * rate < np.mean(rates) < 1.15 * rate  # at most the rate on average, and not needlessly less
    found = fit_calibration(*searches(2000, logistic), rate)
    assert found.false_alarms.low <= rate * 1.1 and found.false_alarms.high >= rate * 0.9
    assert found.false_alarms.count == 2000 and found.detected.count < 2000


def test_queries_that_tell_nothing_are_refused() -> None:
    scores, is_right, best_wrong, answerable, groups = searches(60, logistic)
    with pytest.raises(ValueError, match="40 queries, a calibration takes 50"):
        fit_calibration(scores[:40], is_right[:40], best_wrong[:40], answerable[:40], groups[:40], 0.1)
    with pytest.raises(ValueError, match=r"60 queries cannot tell a false alarm rate of 0.001; give a higher one"):
        fit_calibration(scores, is_right, best_wrong, answerable, groups, 0.001)
    with pytest.raises(ValueError, match="all hits answer their query, or none does"):
        fit_calibration(scores, np.zeros_like(is_right), best_wrong, answerable, groups, 0.1)


def test_an_interval_of_a_rate() -> None:
    found = Rate.of(np.array([True] * 8 + [False] * 2), np.arange(10))
    # Wilson's interval of 8 of 10, as in Newcombe 1998
    assert (found.value, found.count) == (0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    twice = Rate.of(np.array([True] * 16 + [False] * 4), np.repeat(np.arange(10), 2))  # every product asked for twice
    assert (twice.value, twice.count) == (0.8, 20)
    assert (twice.low, twice.high) == pytest.approx((found.low, found.high), abs=1e-6)


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ({"images": (b"",)}, "image"),
        ({"text": "mug"}, "text"),
        ({"images": (b"",), "text": "mug", "where": {"price": {"max": 2}}}, "composed"),
        ({"like": "p1"}, None),
        ({"text": "mug", "not_text": "red"}, None),
        ({"text": "mug", "weights": {"text": 2.0}}, None),
        ({"images": (b"", b"")}, None),
        ({"images": (b"",), "box": (0, 0, 1, 0.5)}, None),
    ],
)
def test_only_queries_like_those_it_was_fitted_to_have_a_kind(query: dict[str, Any], kind: str | None) -> None:
    assert kind_of(SearchQuery(**query)) == kind


def test_a_calibration_holds_for_the_content_that_it_was_fitted_to() -> None:
    found = fit_calibration(*searches(100, logistic), 0.1)
    extra = {**CARD.extra, CALIBRATION: describe_calibrations(CARD, "m0", {"image": found}, {"split": "val"})}
    card = replace(CARD, extra=extra)
    assert read_calibrations(card, "m0") == {"image": found}
    assert read_calibrations(CARD, "m0") == {}
    assert read_calibrations(replace(card, num_products=41), "m0") == {}
    assert read_calibrations(replace(card, extra={**extra, CATALOG_DIGESTS: {"shop": "other"}}), "m0") == {}
    assert read_calibrations(card, "m1") == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"scores": [1.0, 0.0]},
        {"probabilities": [0.1, 1.5]},
        {"threshold": float("nan")},
        {"scores": "abc"},
        {"bins": [[1]]},
        {"detected": 3},
        {"other": 1},
    ],
)
def test_a_damaged_calibration_is_named(damage: dict[str, Any]) -> None:
    sound = ScoreCalibration("logistic", (0.0, 1.0), (0.1, 0.9), 0.0, (), 0.5, Rate(0, 0, 1, 1), Rate(0, 0, 1, 1))
    stored = describe_calibrations(CARD, "m0", {"image": sound}, {})
    stored["kinds"]["image"] = {**asdict(sound), **damage}
    with pytest.raises(DamagedFileError, match="shop"):
        read_calibrations(replace(CARD, extra={**CARD.extra, CALIBRATION: stored}), "m0", "shop")
