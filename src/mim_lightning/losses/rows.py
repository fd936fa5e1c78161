"""What the loss reads of the rows of a batch besides their vectors: presence, products, weights and grades.

B rows of this rank or of all, R products of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mim_lightning.fields import PRODUCT
from mim_lightning.losses.gather import gather_rows, own_rows, world_size
from mim_lightning.losses.pair_tiles import Side
from mim_lightning.types import LOG_FREQUENCY, REFERENCE, TARGET, WEIGHT, Batch, Embeddings, relevance_of, side_of


@dataclass(frozen=True)
class LossRows:
    """Rows of one rank or of all: which sides are present, the product keys that decide the positives, and weights."""

    present: dict[str, Tensor]  # (B,) bool by side
    keys: dict[str, Tensor]  # (B, R) by truth
    values: dict[str, Tensor]  # (B,) float32 by column
    grades: dict[str, Tensor]  # (B, R) by truth, of the keys; empty if they do not count

    @classmethod
    def of(
        cls, embeddings: Embeddings, batch: Batch, sides: tuple[str, ...], columns: tuple[str, ...], is_graded: bool
    ) -> LossRows:
        present = {name: embeddings.present[name] & ~batch.is_padding for name in sides}
        keys = {PRODUCT: batch.product_keys[:, None], REFERENCE: batch.reference_keys, TARGET: batch.target_keys}
        values = {name: batch.columns[name].float() for name in columns}
        return cls(present, keys, values, _grades_of(batch, keys) if is_graded else {})

    def __len__(self) -> int:
        return len(self.keys[PRODUCT])

    def gathered(self) -> LossRows:
        """Return the rows of all ranks, in one collective."""
        if world_size() == 1:
            return self
        groups = self.keys, self.grades, {name: _as_integers(part[:, None]) for name, part in self.values.items()}
        parts = [part for group in groups for part in group.values()]
        table = gather_rows(torch.cat([*parts, torch.stack([*self.present.values()], dim=1)], dim=1))
        *gathered, present = table.split([*(part.shape[1] for part in parts), len(self.present)], dim=1)
        found = iter(gathered)
        keys, grades, values = ({name: next(found) for name in group} for group in groups)
        return LossRows(
            dict(zip(self.present, (present > 0).unbind(1), strict=True)),
            keys,
            {name: _as_floats(part)[:, 0] for name, part in values.items()},
            grades,
        )

    def graded(self, weigh: Callable[[Tensor], Tensor]) -> LossRows:
        """Return the rows with weights instead of grades, and the weight of each row times that of its product.

        Raises:
            ValueError: a weight is not above 0, or not finite.
        """
        grades = {truth: weigh(part.float()) for truth, part in self.grades.items()}
        for truth, part in grades.items():
            if (is_bad := (self.grades[truth] > 0) & ~((part > 0) & part.isfinite())).any():
                bad, weight = int(self.grades[truth][is_bad][0]), float(part[is_bad][0])
                raise ValueError(
                    f"loss.grades: weighs a grade of {bad} by {weight:g}; weights must be above 0 and finite"
                )
        own_B = grades.pop(PRODUCT)[:, 0]
        values = {**self.values, WEIGHT: own_B * self.values[WEIGHT] if WEIGHT in self.values else own_B}
        return replace(self, values=values, grades=grades)

    def cpu(self) -> LossRows:
        groups = self.present, self.keys, self.values, self.grades
        return LossRows(*({name: part.cpu() for name, part in group.items()} for group in groups))

    def side(self, name: str, vectors_BD: Tensor) -> Side:
        """Return a tower or fusion with what the tiled losses read, of the rows that have it."""
        present_B, is_product = self.present[name], side_of(name) == PRODUCT
        biases_B = -self.values[LOG_FREQUENCY] if is_product and LOG_FREQUENCY in self.values else None
        keys_BR, grades_BR = self.keys[truth_of(name)], self.grades.get(truth_of(name))
        side = Side(vectors_BD, keys_BR, self.values.get(WEIGHT), biases_B, grades_BR)
        if present_B.all():
            return side
        own = {key: part[present_B] for key, part in vars(side).items() if key != "vectors" and part is not None}
        return replace(side, vectors=vectors_BD[present_B.nonzero()[:, 0].to(vectors_BD.device)], **own)


def without_repeated_references(local: LossRows, every: LossRows, num_references: int) -> tuple[LossRows, LossRows]:
    """Return the rows of this rank and of all without references whose product is in the batch already.

    A product would otherwise be a negative as often as rows name it. Of several equal references the first stays, in
    the order of all rows, so it does not matter which rank has which.

    Args:
        num_references: rows at the end of each rank's that are reference products.
    """
    num_rows, products_G = len(local), every.keys[PRODUCT][:, 0]
    is_reference_G = torch.arange(len(every), device=products_G.device) % num_rows >= num_rows - num_references
    rows_first_G = is_reference_G.long().argsort(stable=True)
    sorted_G, order_G = products_G[rows_first_G].sort(stable=True)
    is_first_G = torch.ones_like(is_reference_G)
    is_first_G[1:] = sorted_G[1:] != sorted_G[:-1]
    kept_G = torch.empty_like(is_reference_G)
    kept_G[rows_first_G[order_G]] = is_first_G
    kept_G |= ~is_reference_G

    def masked(rows: LossRows, kept: Tensor) -> LossRows:
        present = {name: part & kept if side_of(name) == PRODUCT else part for name, part in rows.present.items()}
        return replace(rows, present=present)

    return masked(local, own_rows(kept_G, num_rows)), masked(every, kept_G)


def _grades_of(batch: Batch, keys: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the grades of keys, (B, R) int64 by truth: 1 of a product that is no target, 0 without a key."""
    grades = {}
    for truth, keys_BR in keys.items():
        is_target_BRR = (keys_BR[:, :, None] == batch.target_keys[:, None]) & (keys_BR >= 0)[:, :, None]
        found_BR = (is_target_BRR * batch.target_grades[:, None]).amax(2)
        grades[truth] = torch.where(keys_BR >= 0, found_BR.clamp(min=1), 0)
    # of a row without a product: its loss is not graded
    grades[PRODUCT] = grades[PRODUCT].clamp(min=1)
    return grades


def _as_integers(values: Tensor) -> Tensor:
    """Return float32 values as integers of the same bits, to be gathered with keys."""
    return values.view(torch.int32).long()


def _as_floats(bits: Tensor) -> Tensor:
    return bits.int().view(torch.float32)


def truth_of(name: str) -> str:
    """Return which ids decide the positives of a tower or fusion."""
    return PRODUCT if side_of(name) == PRODUCT else relevance_of(name)
