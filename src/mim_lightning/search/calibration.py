"""From scores to probabilities: how likely a hit answers the query, and from which score on anything here does.

Fitted to searches of held-out queries in the very index, for each kind of query. Another catalog, or a grown one, gives
other scores: a calibration holds for the content that it was fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mim_lightning.io.damaged_file import DamagedFileError, errors_as_damaged_file
from mim_lightning.search.index.card import CATALOG_DIGESTS, IndexCard
from mim_lightning.search.query import SearchQuery

CALIBRATION = "calibration"  # key of the card's `extra`
KINDS = ("image", "text", "composed")  # of queries
MIN_QUERIES = 50  # of a kind; fewer give no calibration
NUM_FOLDS, NUM_BINS, NUM_KNOTS = 5, 10, 65
Z = 1.959963984540054  # of a 95 % interval
Curve = tuple[np.ndarray, np.ndarray]  # (M,) ascending scores and probabilities


@dataclass(frozen=True)
class Rate:
    """A fraction of `count` queries, and its 95 % interval (Wilson 1927) for as many as the groups are worth."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, is_true_Q: np.ndarray, groups_Q: np.ndarray) -> Rate:
        """Return the rate of queries; those of a group, of one product, are not independent of each other."""
        count, value = len(is_true_Q), float(is_true_Q.mean()) if len(is_true_Q) else 0.0
        if not count:
            return cls(0.0, 0.0, 1.0, 0)
        # the design effect (Kish 1965): the variance of the mean over groups, relative to that of independent queries
        sums_G = np.bincount(groups_Q, is_true_Q - value)
        effect = max(1.0, float((sums_G**2).sum()) / (count * value * (1 - value))) if 0 < value < 1 else 1.0
        worth = count / effect
        center, scale = value + Z**2 / (2 * worth), 1 + Z**2 / worth
        half = Z * math.sqrt(value * (1 - value) / worth + Z**2 / (4 * worth**2))
        return cls(value, max(0.0, (center - half) / scale), min(1.0, (center + half) / scale), count)


@dataclass(frozen=True)
class ScoreCalibration:
    """What scores of one kind of query mean. All rates and bins are of queries that the fit did not see.

    Attributes:
        method: "logistic" or "isotonic", whichever had the smaller log loss.
        scores, probabilities: (M,) ascending knots; linear between them, constant outside.
        error: mean distance of predicted probability and observed frequency over bins (expected calibration error).
        bins: of hits, by probability: mean probability, frequency of right hits, number of hits.
        threshold: of the first hit's score: below it, nothing in the index answers the query.
        false_alarms: of queries that nothing answers, those whose first hit reaches the threshold.
        detected: of queries that something answers, the same.
    """

    method: str
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    error: float
    bins: tuple[tuple[float, float, int], ...]
    threshold: float
    false_alarms: Rate
    detected: Rate

    def __post_init__(self) -> None:
        """Raise ValueError for knots that are no curve."""
        knots = np.array([self.scores, self.probabilities], dtype=float)
        if knots.shape[1] < 1 or not np.isfinite(knots).all() or (np.diff(knots) < 0).any():
            raise ValueError("the knots of a calibration are not ascending numbers")
        if knots[1, 0] < 0 or knots[1, -1] > 1 or not math.isfinite(self.threshold):
            raise ValueError("a probability or the threshold of a calibration is out of range")

    def probability(self, score: float) -> float:
        """Return the probability that a hit with this score answers the query."""
        return float(np.interp(score, self.scores, self.probabilities))


def kind_of(query: SearchQuery) -> str | None:
    """Return the kind of a query, None if its scores are not comparable with those of any."""
    if query.like is not None or query.not_text or query.fields or query.weights:
        return None
    if query.box is not None or len(query.images) > 1:  # a part, or a mean, is nearer to other products
        return None
    return "composed" if query.images and query.text else "image" if query.images else "text"


def fit_calibration(
    scores_QK: np.ndarray,
    is_right_QK: np.ndarray,
    best_wrong_Q: np.ndarray,
    is_answerable_Q: np.ndarray,
    groups_Q: np.ndarray,
    false_alarm_rate: float,
    seed: int = 0,
) -> ScoreCalibration:
    """Fit probabilities and a threshold to judged searches; arguments as in `JudgedSearches`.

    A query that something answers counts among those that nothing answers too, by its best wrong hit.

    Args:
        false_alarm_rate: of the queries that nothing answers, at most these shall reach the threshold (split conformal
            prediction, Vovk et al. 2005: the rate holds for further queries like these).

    Raises:
        ValueError: too few queries, or all hits are right, or none is.
    """
    num_queries = len(scores_QK)
    if num_queries < MIN_QUERIES:
        raise ValueError(f"{num_queries} queries, a calibration takes {MIN_QUERIES}")
    if false_alarm_rate * (num_queries * (NUM_FOLDS - 2) / NUM_FOLDS + 1) < 1:  # groups make folds uneven
        raise ValueError(
            f"{num_queries} queries cannot tell a false alarm rate of {false_alarm_rate:g}; give a higher one"
        )
    is_hit_QK = np.isfinite(scores_QK)
    if len(np.unique(is_right_QK[is_hit_QK])) < 2:
        raise ValueError("all hits answer their query, or none does: there is nothing to tell apart")
    # queries of a product stay together: what the fit has not seen is other products
    _, group_of_Q = np.unique(groups_Q, return_inverse=True)
    folds_Q = (np.random.default_rng(seed).permutation(group_of_Q.max() + 1) % NUM_FOLDS)[group_of_Q]
    first_Q = scores_QK[:, 0]
    by_method = {method: np.zeros_like(scores_QK) for method in METHODS}
    passed_wrong_Q, passed_Q = np.zeros(num_queries, dtype=bool), np.zeros(num_queries, dtype=bool)
    for fold in range(NUM_FOLDS):
        train_Q, test_Q = folds_Q != fold, folds_Q == fold
        hits_QK = is_hit_QK[train_Q]
        for method, fit in METHODS.items():
            curve = fit(scores_QK[train_Q][hits_QK], is_right_QK[train_Q][hits_QK])
            by_method[method][test_Q] = np.interp(scores_QK[test_Q], *curve)
        threshold = _threshold(best_wrong_Q[train_Q], false_alarm_rate)
        passed_wrong_Q[test_Q], passed_Q[test_Q] = best_wrong_Q[test_Q] >= threshold, first_Q[test_Q] >= threshold
    right_H = is_right_QK[is_hit_QK]
    losses = {method: _log_loss(found_QK[is_hit_QK], right_H) for method, found_QK in by_method.items()}
    method = min(losses, key=losses.__getitem__)
    curve = METHODS[method](scores_QK[is_hit_QK], right_H)
    bins = _reliability(by_method[method][is_hit_QK], right_H)
    num_hits = sum(count for *_, count in bins)
    return ScoreCalibration(
        method,
        tuple(map(float, curve[0])),
        tuple(map(float, curve[1])),
        sum(abs(predicted - observed) * count for predicted, observed, count in bins) / num_hits,
        bins,
        _threshold(best_wrong_Q, false_alarm_rate),
        Rate.of(passed_wrong_Q, group_of_Q),
        Rate.of(passed_Q[is_answerable_Q], group_of_Q[is_answerable_Q]),
    )


def _threshold(best_wrong_Q: np.ndarray, rate: float) -> float:
    """Return the score that at most this rate of further queries without an answer reaches."""
    place = math.ceil((len(best_wrong_Q) + 1) * (1 - rate))
    ordered = np.sort(best_wrong_Q)
    return float(np.nextafter(ordered[min(place, len(ordered)) - 1], np.inf))


def _fit_logistic(scores_H: np.ndarray, is_right_H: np.ndarray) -> Curve:
    """Return the curve of a logistic regression on the score (Platt 1999), by Newton's method."""
    center, spread = scores_H.mean(), max(float(scores_H.std()), 1e-12)
    rows_H2 = np.stack([(scores_H - center) / spread, np.ones_like(scores_H)], 1)
    weights = np.zeros(2)
    for _ in range(50):
        chance_H = _expit(rows_H2 @ weights)
        curvature = (rows_H2 * (chance_H * (1 - chance_H))[:, None]).T @ rows_H2 + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, rows_H2.T @ (is_right_H - chance_H) - 1e-6 * weights)
        weights += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    knots_M = np.linspace(scores_H.min(), scores_H.max(), NUM_KNOTS)
    slope = max(float(weights[0]), 0.0)  # a higher score never means less
    return knots_M, _expit(slope * (knots_M - center) / spread + weights[1])


def _fit_isotonic(scores_H: np.ndarray, is_right_H: np.ndarray) -> Curve:
    """Return the curve of an isotonic regression on the score, at least one hit in doubt at either end."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(scores_H, kind="stable")
    fitted_H = isotonic_regression(is_right_H[order].astype(float)).x
    least = 1 / (len(scores_H) + 2)
    is_step = np.diff(fitted_H) != 0
    is_end_H = np.append(is_step, True) | np.append(True, is_step)  # of a run of equal probabilities
    return scores_H[order][is_end_H], np.clip(fitted_H[is_end_H], least, 1 - least)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Curve]] = {"logistic": _fit_logistic, "isotonic": _fit_isotonic}


def _expit(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))


def _log_loss(probabilities_H: np.ndarray, is_right_H: np.ndarray) -> float:
    chance_H = np.where(is_right_H, probabilities_H, 1 - probabilities_H)
    return float(-np.log(np.maximum(chance_H, 1e-12)).mean())


def _reliability(probabilities_H: np.ndarray, is_right_H: np.ndarray) -> tuple[tuple[float, float, int], ...]:
    parts = np.array_split(np.argsort(probabilities_H, kind="stable"), NUM_BINS)
    return tuple(
        (float(probabilities_H[part].mean()), float(is_right_H[part].mean()), len(part)) for part in parts if len(part)
    )


def describe_calibrations(
    card: IndexCard, fingerprint: str, calibrations: Mapping[str, ScoreCalibration], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return calibrations as the card's `extra` keeps them, with what they hold for, and how they are made again.

    Args:
        card: of the index when it was searched.
        fingerprint: of the model of the queries.
    """
    kinds = {kind: asdict(calibration) for kind, calibration in calibrations.items()}
    return {"kinds": kinds, "settings": dict(settings), "content": content_of(card), "model": fingerprint}


def read_calibrations(card: IndexCard, fingerprint: str, place: str = "the index") -> dict[str, ScoreCalibration]:
    """Return the calibrations of an index by kind of query; none if it has changed since, or they are of another model.

    Args:
        fingerprint: of the model of the queries.

    Raises:
        DamagedFileError: the card holds something else.
    """
    stored = card.extra.get(CALIBRATION)
    if stored is None:
        return {}
    with errors_as_damaged_file(place, "calibrate it again"):
        if not isinstance(stored, dict) or not isinstance(stored.get("kinds"), dict):
            raise DamagedFileError(place, "its calibration has no kinds", "calibrate it again")
        if stored.get("content") != content_of(card) or stored.get("model") != fingerprint:
            return {}
        return {kind: _parse(found) for kind, found in stored["kinds"].items() if kind in KINDS}


def content_of(card: IndexCard) -> dict[str, Any]:
    """Return what tells the content of an index from another one, as far as its card knows."""
    return {"num_products": card.num_products, "catalogs": dict(card.extra.get(CATALOG_DIGESTS, {}))}


def _parse(found: Mapping[str, Any]) -> ScoreCalibration:
    rates = {name: Rate(**found[name]) for name in ("false_alarms", "detected")}
    columns = {name: tuple(map(float, found[name])) for name in ("scores", "probabilities")}
    bins = tuple((float(predicted), float(observed), int(count)) for predicted, observed, count in found["bins"])
    return ScoreCalibration(**{**found, **columns, **rates, "bins": bins})
