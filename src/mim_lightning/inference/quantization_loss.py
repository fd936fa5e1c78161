"""What rounding weights costs: a float32 model and its rounded version on the same queries and catalog."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim_lightning.inference.tower_encoder import TowerEncoder
from mim_lightning.metrics import EmbeddingCollector, EmbeddingTable
from mim_lightning.metrics.directions import COLUMNS, columns_of, evaluate_countable
from mim_lightning.model.fusion import Fusions
from mim_lightning.types import Batch, Direction, side_of

Batches = Sequence[Iterable[Batch]]  # of the queries, then of each part of the gallery; iterated once or more
CUTOFFS = (1, 10)
METRICS = tuple(f"hit@{k}" for k in CUTOFFS)


@dataclass(frozen=True)
class QuantizationLoss:
    """Differences between a rounded model and the float32 one."""

    cosines: dict[str, tuple[float, float]]  # tower -> mean and smallest, of the same input
    recall: dict[str, dict[str, tuple[float, float, float]]]  # direction -> metric -> see `VARIANTS`
    num_queries: int
    num_products: int


VARIANTS = ("float32", "rounded", "rounded queries, float32 catalog")


def measure_loss(
    original: Mapping[str, TowerEncoder],
    rounded: Mapping[str, TowerEncoder],
    batches: Batches,
    directions: Mapping[str, Direction],
    fusions: Fusions,
) -> QuantizationLoss:
    """Embed queries and gallery with both, decoding every image once, and rank with both and with one of each.

    Raises:
        ValueError: these data cannot answer a direction.
    """
    queries = _embed((original, rounded), batches[:1], "query")
    gallery = _embed((original, rounded), batches[1:], "product")
    # of the towers that read other fields than that of their own name
    fields = {name: [*tower.spec] for name, tower in original.items() if isinstance(tower.spec, Mapping)}
    results = []
    for query, products in ((0, 0), (1, 1), (1, 0)):
        reports, _ = evaluate_countable(
            directions, queries[query], gallery[products], fusions, fields, cutoffs=CUTOFFS, depth=max(CUTOFFS)
        )
        results.append({name: report.values for name, report in reports.items()})
    recall = {name: {m: tuple(result[name][m] for result in results) for m in METRICS} for name in results[0]}
    cosines = {name: cosine for pair in (queries, gallery) for name, cosine in _cosines(*pair).items()}
    return QuantizationLoss(cosines, recall, len(queries[0]), len(gallery[0].columns["product_keys"].unique()))  # type: ignore[arg-type]


def _embed(
    models: Sequence[Mapping[str, TowerEncoder]], loaders: Batches, side: str
) -> tuple[EmbeddingTable, EmbeddingTable]:
    names = [name for name in models[0] if side_of(name) == side]
    collectors = [EmbeddingCollector(names, COLUMNS) for _ in models]
    num_before = 0  # rows of earlier loaders: each numbers its rows from 0
    for loader in loaders:
        last = -1
        for batch in loader:
            columns = columns_of(batch)
            keys = batch.query_keys if side == "query" else batch.sample_nums + num_before
            last = max(last, int(batch.sample_nums.max()))
            present = {name: batch.rows[name] >= 0 for name in names}
            for model, collector in zip(models, collectors, strict=True):
                vectors = {name: _rows(model[name](batch.inputs[name]), batch.rows[name]) for name in names}
                collector.update(keys, vectors, present, columns, valid=~batch.is_padding)
        num_before += last + 1
    first, second = (collector.take_table() for collector in collectors)
    return first, second


def _rows(vectors: Tensor, rows_B: Tensor) -> Tensor:
    return vectors[rows_B.clamp(min=0)] * (rows_B >= 0)[:, None]


def _cosines(left: EmbeddingTable, right: EmbeddingTable) -> dict[str, tuple[float, float]]:
    found = {}
    for name, present in left.present.items():
        if present.any():
            cosines = torch.cosine_similarity(left.vectors[name][present], right.vectors[name][present])
            found[name] = (float(cosines.mean()), float(cosines.min()))
    return found
