"""Whether a fusion finds less than one of its towers alone: the same direction is ranked again by each tower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mim_lightning.metrics.collectives import any_of_ranks
from mim_lightning.metrics.directions import evaluate_countable
from mim_lightning.metrics.embedding_table import EmbeddingTable
from mim_lightning.metrics.intervals import paired_difference
from mim_lightning.model.fusion import FIXED_SUM, GATE, LEARNED_SUM, Fusion, Fusions, weights_of
from mim_lightning.types import Direction, RetrievalReport


@dataclass(frozen=True)
class WeakFusion:
    """A fusion and the tower that finds clearly more alone, by one metric over the queries that both count."""

    direction: str
    fusion: str
    value: float
    tower: str
    tower_value: float
    others: tuple[str, ...]  # the fusion's other towers
    kind: str  # of the fusion

    def describe(self, metric: str) -> str:
        """Return one sentence, with the key that mends it."""
        keys = " and ".join(f"model.fusions.{self.fusion}.{tower}" for tower in self.others)
        # a sweep is over two towers, and turns learned weights into a fixed sum
        command = (
            f", which mim tune_fusion <run> --direction {self.direction} --fusion {self.fusion} "
            "chooses without training"
            if len(self.others) == 1
            else ""
        )
        advice = (
            f"its weights are learned (kind={self.kind}): with kind={FIXED_SUM} lower the weight {keys}"
            if self.kind in (GATE, LEARNED_SUM)
            else f"lower the weight {keys}"
        )
        return (
            f"{self.direction}/{metric}: the fusion '{self.fusion}' reaches {self.value:.3f}, {self.tower} alone "
            f"{self.tower_value:.3f}; {advice}{command}"
        )


def find_weak_fusions(
    directions: Mapping[str, Direction],
    reports: Mapping[str, RetrievalReport],
    queries: EmbeddingTable,
    gallery: EmbeddingTable,
    fusions: Fusions,
    fields: Mapping[str, Sequence[str]],
    metric: str,
    first: str = "",
    **options: Any,
) -> list[WeakFusion]:
    """Return the fusions of which a tower alone is better: the 95 % interval of the paired difference is below 0.

    Each fusion is compared in one direction that uses it.

    Args:
        directions, reports: by name; the reports are of these tables.
        metric: "hit@1" and the like.
        first: name of the direction to take where it uses the fusion; else the first that does.
        options: of `evaluate_direction`.
    """
    found = []
    for fusion in fusions:
        names = [name for name in reports if fusion in (directions[name].query, directions[name].gallery)]
        if not names:
            continue
        name = first if first in names else names[0]
        weaker = [
            weak
            for tower, report in _alone(directions[name], fusion, queries, gallery, fusions, fields, options)
            if (weak := _compare(name, fusion, tower, reports[name], report, metric, fusions)) is not None
        ]
        found += sorted(weaker, key=lambda weak: weak.tower_value)[-1:]
    return found


def _alone(
    direction: Direction,
    fusion: str,
    queries: EmbeddingTable,
    gallery: EmbeddingTable,
    fusions: Fusions,
    fields: Mapping[str, Sequence[str]],
    options: Mapping[str, Any],
) -> Iterator[tuple[str, RetrievalReport]]:
    """Yield each tower of a fusion and the report of the direction with the tower in its place."""
    towers = weights_of(fusions[fusion])
    side = "query" if direction.query == fusion else "gallery"
    parts = {name: weights_of(given) for name, given in fusions.items()}
    same = replace(direction, relevance=direction.truth, requires=direction.needs(parts, fields))
    for tower in towers if len(towers) > 1 else ():
        changed = {tower: replace(same, query=tower) if side == "query" else replace(same, gallery=tower)}
        if side == "gallery" and not any_of_ranks(gallery.present[tower].any()):
            continue
        reports, _ = evaluate_countable(changed, queries, gallery, fusions, fields, **options)
        yield from reports.items()


def _compare(
    name: str,
    fusion: str,
    tower: str,
    fused: RetrievalReport,
    alone: RetrievalReport,
    metric: str,
    fusions: Fusions,
) -> WeakFusion | None:
    if metric not in fused.scores or metric not in alone.scores:
        return None
    _, rows, other_rows = np.intersect1d(
        fused.hits.query_keys.numpy(), alone.hits.query_keys.numpy(), return_indices=True
    )
    fused_scores, alone_scores = fused.scores[metric].numpy()[rows], alone.scores[metric].numpy()[other_rows]
    difference = paired_difference(fused_scores, alone_scores, fused.cluster_keys.numpy()[rows], 2000)
    if not difference.high < 0:  # nan too
        return None
    others = tuple(other for other in weights_of(fusions[fusion]) if other != tower)
    given = fusions[fusion]
    kind = given.kind if isinstance(given, Fusion) else given.get("kind", FIXED_SUM)
    value, tower_value = float(np.nanmean(fused_scores)), float(np.nanmean(alone_scores))
    return WeakFusion(name, fusion, value, tower, tower_value, others, kind)
