"""Embeddings of one whole set, queries or gallery: each row once, in ascending order of its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EmbeddingTable:
    """N distinct rows, ascending by `row_keys`: vectors and presence by tower or fusion, ids by column."""

    row_keys: Tensor  # (N,) int64
    vectors: dict[str, Tensor]  # (N, D) float32
    present: dict[str, Tensor]  # (N,) bool
    columns: dict[str, Tensor]  # (N,) or (N, R) int64, NO_KEY where a row has no (further) id

    def __len__(self) -> int:
        return len(self.row_keys)

    def take(self, rows: Tensor) -> EmbeddingTable:
        """Return the rows chosen by a bool mask (N,) or by positions (M,)."""

        def pick(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: part[rows] for name, part in parts.items()}

        return EmbeddingTable(self.row_keys[rows], pick(self.vectors), pick(self.present), pick(self.columns))


def check_complete(table: EmbeddingTable, expected: int, what: str) -> None:
    """Raise ValueError unless the pass embedded exactly the `expected` number of distinct `what`."""
    if len(table) != expected:
        raise ValueError(
            f"{what}: {len(table)} embedded, {expected} expected; no numbers are published from a partial pass"
        )


def distinct_rows(table: EmbeddingTable) -> Tensor:
    """Return the positions of one row a key, ascending by key.

    Two rows of one key may differ in rounding or in what is present. The row with most towers present is taken, then
    the one with the smallest sum: a choice that does not depend on ranks and batches.
    """
    sums, fullness = torch.zeros_like(table.row_keys, dtype=torch.float64), torch.zeros_like(table.row_keys)
    for name, vectors in table.vectors.items():
        sums += vectors.sum(dim=-1, dtype=torch.float64)
        fullness += table.present[name]
    order = torch.arange(len(table), device=sums.device)
    for rank in (sums, -fullness, table.row_keys):  # the last sort has precedence
        order = order[rank[order].argsort(stable=True)]
    is_first = torch.ones_like(order, dtype=torch.bool)
    is_first[1:] = table.row_keys[order][1:] != table.row_keys[order][:-1]
    return order[is_first]
