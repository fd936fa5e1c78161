"""What rounding weights costs: a float32 model and its rounded version on the same queries and catalog."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_lightning.inference.tower_encoder import TowerEncoder
from mim_lightning.metrics import EmbeddingCollector, EmbeddingTable
from mim_lightning.metrics.directions import COLUMNS, columns_of, evaluate_countable
from mim_lightning.model.fusion import Fusions
from mim_lightning.types import Batch, Direction, InputSpec, TextSpec, TowerInput, map_tensors, side_of

Batches = Sequence[Iterable[Batch]]  # of the queries, then of each part of the gallery; iterated once or more
CUTOFFS = (1, 10)
METRICS = tuple(f"hit@{k}" for k in CUTOFFS)
NUM_SAMPLES = 32


@dataclass(frozen=True)
class QuantizationLoss:
    """Differences between a rounded model and the float32 one."""

    cosines: dict[str, tuple[float, float]]  # tower -> mean and smallest, of the same input
    recall: dict[str, dict[str, tuple[float, float, float]]]  # direction -> metric -> see `VARIANTS`
    num_queries: int
    num_products: int


VARIANTS = ("float32", "rounded", "rounded queries, float32 catalogue")


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
    results = []
    for query, products in ((0, 0), (1, 1), (1, 0)):
        reports, _ = evaluate_countable(
            directions, queries[query], gallery[products], fusions, cutoffs=CUTOFFS, depth=max(CUTOFFS)
        )
        results.append({name: report.values for name, report in reports.items()})
    recall = {name: {m: tuple(result[name][m] for result in results) for m in METRICS} for name in results[0]}
    cosines = {name: cosine for pair in (queries, gallery) for name, cosine in _cosines(*pair).items()}
    return QuantizationLoss(cosines, recall, len(queries[0]), len(gallery[0].columns["product_keys"].unique()))  # type: ignore[arg-type]


def sample_inputs(
    specs: Mapping[str, InputSpec | tuple[InputSpec, ...]], batches: Batches | None
) -> dict[str, TowerInput]:
    """Return a few inputs of each tower: the first of the data, or noise and made-up words without any."""
    found: dict[str, TowerInput] = {}
    for loader in batches or ():
        batch = next(iter(loader))
        found |= {name: _first(inputs) for name, inputs in batch.inputs.items() if name in specs}
    return {name: found[name] if name in found else _made_up(spec) for name, spec in specs.items()}


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
    first, second = (collector.compute() for collector in collectors)
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


def _first(inputs: TowerInput) -> Any:
    return map_tensors(inputs, lambda tensor: tensor[:NUM_SAMPLES])


def _made_up(spec: InputSpec | tuple[InputSpec, ...]) -> Any:
    if isinstance(spec, tuple):
        return tuple(map(_made_up, spec))
    if isinstance(spec, TextSpec):
        return spec.tokenise([" ".join(["red", "apple", "shop", "blue"][: 1 + n % 4]) for n in range(NUM_SAMPLES)])
    # from large color patches to fine noise: embeddings of noise alone are alike, and would prove little
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 3, 2 + 2 * n, 2 + 2 * n, generator=generator) for n in range(NUM_SAMPLES)]
    return torch.cat([F.interpolate(image, spec.size) for image in images]).mul(255).round().to(torch.uint8)
