"""The training objective: the weighted sum of losses over pairs of towers or fusions.

The paper's equations are not public: the pairs, the symmetric loss and the one learned scale are our reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mim_lightning.fields import PRODUCT
from mim_lightning.losses.contrastive import share_product
from mim_lightning.losses.gather import gather_rows, gather_with_gradient, world_size
from mim_lightning.types import REFERENCE, TARGET, Batch, Embeddings, StepResult, relevance_of, side_of

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """Two towers or fusions that should agree, and the weight of their loss."""

    left: str
    right: str
    weight: float = 1.0


class Objective(nn.Module):
    """Weighted sum of pair losses, each averaged over both directions and over all rows of all ranks.

    The value does not depend on how rows are distributed over ranks: every rank compares its own rows with those of
    all, and divides by the total count, times the world size, by which DDP divides gradients.

    Args:
        pairs: by name; the names become `train/loss/<pair>`.
        loss: a function of `losses.contrastive`.
        names: of all towers and fusions.
        init_scale: initial logit scale (inverse temperature), which is learned.
        max_scale: maximum of the logit scale (100 in CLIP).
        init_bias: initial value of a learned bias, for the sigmoid loss; None: no bias.
        scale_per_pair: learn a scale (and bias) for each pair instead of one for all.
    """

    def __init__(
        self,
        pairs: Mapping[str, Pair],
        loss: PairLoss,
        names: tuple[str, ...],
        init_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        init_bias: float | None = None,
        scale_per_pair: bool = False,
    ) -> None:
        super().__init__()
        for pair_name, pair in pairs.items():
            for name in (pair.left, pair.right):
                if name not in names:
                    raise ValueError(f"model.pairs.{pair_name}: no tower or fusion '{name}'; there are {list(names)}")
            if pair.weight < 0:
                raise ValueError(f"model.pairs.{pair_name}.weight={pair.weight}: must not be negative")
        if init_scale > max_scale:
            raise ValueError(f"loss.init_scale={init_scale}: exceeds loss.max_scale={max_scale}")
        if not any(pair.weight > 0 for pair in pairs.values()):
            raise ValueError("model.pairs: no pair has a weight above 0: there is nothing to learn")
        self.pairs = {name: pair for name, pair in pairs.items() if pair.weight > 0}
        self.loss = loss
        self.max_log_scale = math.log(max_scale)
        scale_names = list(self.pairs) if scale_per_pair else ["all"]
        self.log_scales = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(math.log(init_scale))) for name in scale_names}
        )
        self.biases = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(init_bias)) for name in scale_names if init_bias is not None}
        )

    @property
    def sides(self) -> tuple[str, ...]:
        """The towers and fusions of all pairs."""
        return tuple(dict.fromkeys(name for pair in self.pairs.values() for name in (pair.left, pair.right)))

    def forward(self, embeddings: Embeddings, batch: Batch) -> StepResult:
        vectors = embeddings.vectors
        with torch.no_grad():
            for log_scale in self.log_scales.values():
                log_scale.clamp_(
                    max=self.max_log_scale
                )  # in place: a clamp in the graph has no gradient above the maximum
        # in float32: autocast would round similarities, which are then multiplied by up to 100
        with torch.autocast(batch.product_keys.device.type, enabled=False):
            present = {name: embeddings.present[name] & ~batch.is_padding for name in self.sides}
            all_vectors, all_present = self._gather(vectors, present)
            keys = {PRODUCT: batch.product_keys[:, None], REFERENCE: batch.reference_keys, TARGET: batch.target_keys}
            all_keys = {name: gather_rows(table) for name, table in keys.items()}
            sums, counts, negatives = [], [], []
            for name, pair in self.pairs.items():
                for a, b in ((pair.left, pair.right), (pair.right, pair.left)):
                    columns_G = all_present[b]
                    positives_BG = share_product(keys[_truth(a)], all_keys[_truth(b)]) & columns_G
                    rows_B = present[a] & positives_BG.any(1)
                    losses_B = self.loss(self._logits(name, vectors[a], all_vectors[b]), positives_BG, columns_G)
                    sums.append(losses_B.masked_fill(~rows_B, 0.0).sum())
                    counts.append(rows_B.sum())
                    negatives.append(((columns_G & ~positives_BG).sum(1) * rows_B).sum())
            means = torch.stack(sums) * world_size() / gather_rows(torch.stack(counts)[None]).sum(0).clamp(min=1)
            per_pair = dict(zip(self.pairs, means.view(-1, 2).mean(1), strict=True))
            loss = torch.stack([self.pairs[name].weight * value for name, value in per_pair.items()]).sum()
        return StepResult(
            loss=loss,
            per_pair={name: value.detach() for name, value in per_pair.items()},
            stats={
                **self._scales(),
                "negatives_per_row": torch.stack(negatives).sum() / torch.stack(counts).sum().clamp(min=1),
                "rows_with_repeated_product": _repeated_fraction(keys[PRODUCT], all_keys[PRODUCT]),
            },
        )

    def _gather(
        self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gather all sides in two collectives: vectors with gradient, presence without."""
        names = self.sides
        all_vectors = gather_with_gradient(torch.cat([vectors[name] for name in names], dim=1))
        all_present = gather_rows(torch.stack([present[name] for name in names], dim=1))
        return (
            dict(zip(names, all_vectors.chunk(len(names), dim=1), strict=True)),
            dict(zip(names, all_present.unbind(1), strict=True)),
        )

    def _logits(self, pair_name: str, left_BD: Tensor, right_GD: Tensor) -> Tensor:
        key = pair_name if pair_name in self.log_scales else "all"
        logits_BG = left_BD @ right_GD.T * self.log_scales[key].exp()
        return logits_BG + self.biases[key] if key in self.biases else logits_BG

    def _scales(self) -> dict[str, Tensor]:
        names = {name: "logit_scale" if name == "all" else f"logit_scale/{name}" for name in self.log_scales}
        return {names[name]: value.detach().exp() for name, value in self.log_scales.items()}


def _repeated_fraction(products_B1: Tensor, all_products_G1: Tensor) -> Tensor:
    """Return the fraction of rows whose product is in another row too."""
    return (share_product(products_B1, all_products_G1).sum(1) > 1).float().mean()


def _truth(name: str) -> str:
    """Return which ids decide the positives of a tower or fusion."""
    return PRODUCT if side_of(name) == PRODUCT else relevance_of(name)
