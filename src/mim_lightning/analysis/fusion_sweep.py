"""A fusion's weights swept after training: the kept embeddings are fused and ranked anew, nothing is embedded again.

The embeddings of an evaluation come in, a FusionCurve goes out: the metric at every share, and what choosing the
best share is worth on products it was not chosen on. The tune_fusion door calls it, `fusion_curve` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mim_lightning.analysis.embeddings import EvaluationEmbeddings
from mim_lightning.metrics import PairedDifference, bootstrap_intervals, paired_difference
from mim_lightning.metrics.directions import evaluate_directions
from mim_lightning.types import Direction, RetrievalReport


@dataclass(frozen=True)
class FusionCurve:
    """One metric of one direction over the share of a fusion's first tower, 0 (the second alone) to 1."""

    direction: str
    metric: str
    fusion: str
    parts: tuple[str, str]  # the two towers; a share of s gives them the weights s and 1 - s
    shares: list[float]
    values: list[float]
    intervals: list[tuple[float, float]]  # 95 %, over products
    trained_share: float  # of the model's own weights
    trained_value: float
    best_share: float
    chosen: PairedDifference  # best share against trained share, each half of the products with the other's choice

    @property
    def best_weights(self) -> dict[str, float]:
        return dict(zip(self.parts, (self.best_share, 1 - self.best_share), strict=True))


def sweep_fusion(
    embeddings: EvaluationEmbeddings,
    name: str,
    direction: Direction,
    fusion: str,
    metric: str = "hit@1",
    num_shares: int = 21,
    weights: Mapping[str, Mapping[str, float]] | None = None,
) -> FusionCurve:
    """Evaluate a direction at evenly spaced shares of `fusion`'s first tower.

    The curve and its best share use all queries, so its peak flatters. `chosen` does not: the products are halved
    by key, the best share of each half is used on the other, and that is compared with the trained weights.

    Args:
        embeddings: of queries and gallery, by tower.
        name, direction: what is evaluated; one of its sides is `fusion`.
        fusion: of two towers.
        metric: "hit@k", "recall@k", "ndcg@k" with k of 1, 5, 10, or "mrr", "map".
        num_shares: points of the curve, both ends included.
        weights: of other fusions, instead of the trained ones.

    Raises:
        ValueError: the direction does not use the fusion, or it has not two towers; no such metric.

    Source: our choice.
    """
    fusions = {**embeddings.fusions, **(weights or {})}
    if fusion not in (direction.query, direction.gallery) or fusion not in fusions:
        raise ValueError(f"directions.{name}: does not use the fusion '{fusion}'; there are {list(fusions)}")
    if len(fusions[fusion]) != 2:
        raise ValueError(f"model.fusions.{fusion}: a curve needs two towers, it has {list(fusions[fusion])}")
    first, second = fusions[fusion]
    trained_share = fusions[fusion][first] / sum(fusions[fusion].values())

    def evaluate(share: float) -> RetrievalReport:
        changed = {**fusions, fusion: {first: share, second: 1 - share}}
        reports = evaluate_directions(
            {name: direction}, embeddings.queries, embeddings.gallery, changed, embeddings.fields
        )
        return reports[name]

    trained = evaluate(trained_share)
    rising = [name for name in trained.scores if not name.startswith(("wrong_", "same_"))]  # higher is better
    if metric not in rising:
        raise ValueError(f"no metric '{metric}' to choose by; there are {', '.join(rising)}")
    shares = np.linspace(0, 1, num_shares).tolist()
    scores_SQ = np.stack([evaluate(share).scores[metric].numpy() for share in shares])
    units_Q, trained_Q = trained.unit_keys.numpy(), trained.scores[metric].numpy()
    intervals = bootstrap_intervals({str(i): row for i, row in enumerate(scores_SQ)}, units_Q)
    return FusionCurve(
        direction=name,
        metric=metric,
        fusion=fusion,
        parts=(first, second),
        shares=shares,
        values=np.nanmean(scores_SQ, axis=1).tolist(),
        intervals=list(intervals.values()),
        trained_share=trained_share,
        trained_value=trained.values[metric],
        best_share=shares[_best(scores_SQ, trained_share)],
        chosen=paired_difference(_cross_chosen(scores_SQ, units_Q, trained_share), trained_Q, units_Q),
    )


def _best(scores_SQ: np.ndarray, trained_share: float) -> int:
    """Return the place of the best mean; of equal ones the nearest to the trained share."""
    means = np.nanmean(scores_SQ, axis=1)
    distances = np.abs(np.linspace(0, 1, len(means)) - trained_share)
    return int(np.lexsort((distances, -means))[0])


def _cross_chosen(scores_SQ: np.ndarray, units_Q: np.ndarray, trained_share: float) -> np.ndarray:
    """Return each query's score (Q,) at the share that the other half of the products likes best."""
    is_odd = units_Q % 2 == 1  # keys are digests: as good as drawn
    chosen_Q = np.empty(scores_SQ.shape[1])
    for half in (is_odd, ~is_odd):
        if half.all():
            raise ValueError("a curve needs queries of more products than these")
        chosen_Q[half] = scores_SQ[_best(scores_SQ[:, ~half], trained_share)][half]
    return chosen_Q
