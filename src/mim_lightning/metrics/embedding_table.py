"""Embeddings of one set, queries or gallery: each row once, in ascending order of its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mim_lightning.metrics.collectives import send_rows, sum_of_ranks, world


@dataclass(frozen=True)
class EmbeddingTable:
    """N distinct rows, ascending by `row_keys`: vectors and presence by tower or fusion, ids by column.

    Of several processes each has its own rows, none that another has.
    """

    row_keys: Tensor  # (N,) int64
    vectors: dict[str, Tensor]  # (N, D) float32, or float16 where they are stored so
    present: dict[str, Tensor]  # (N,) bool
    columns: dict[str, Tensor]  # (N,) or (N, R) int64, NO_KEY where a row has no (further) id

    def __len__(self) -> int:
        return len(self.row_keys)

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        parts = (self.row_keys, *self.vectors.values(), *self.present.values(), *self.columns.values())
        return sum(part.nbytes for part in parts)

    def take(self, rows: Tensor) -> EmbeddingTable:
        """Return the rows chosen by a bool mask (N,) or by positions (M,)."""

        def pick(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: part[rows] for name, part in parts.items()}

        return EmbeddingTable(self.row_keys[rows], pick(self.vectors), pick(self.present), pick(self.columns))

    def gather(self) -> EmbeddingTable | None:
        """Return the rows of all processes on the first one, float32; all must call it, the others get None."""
        rank, world_size = world()
        sizes = [len(self), *[0] * (world_size - 1)]
        rows = send_rows(self.row_keys, sizes)[0]
        order = rows.argsort() if world_size > 1 else slice(None)

        def collect(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
            received = ((name, send_rows(part, sizes)[0]) for name, part in parts.items())
            return {name: (part.float() if part.is_floating_point() else part)[order] for name, part in received}

        parts = collect(self.vectors), collect(self.present), collect(self.columns)
        return EmbeddingTable(rows[order], *parts) if rank == 0 else None


def check_complete(table: EmbeddingTable, expected: int, what: str) -> None:
    """Raise ValueError unless the pass embedded exactly the `expected` number of distinct `what`, in all processes."""
    (num_rows,) = sum_of_ranks(len(table))
    if num_rows != expected:
        raise ValueError(
            f"{what}: {num_rows} embedded, {expected} expected; no numbers are published from a partial pass"
        )


def distinct_rows(row_keys: Tensor, fullness: Tensor, sums: Tensor) -> Tensor:
    """Return the positions of one row a key, ascending by key.

    Two rows of one key may differ in rounding or in what is present. The row with most towers present is taken, then
    the one with the smallest sum: a choice that does not depend on ranks and batches.

    Args:
        row_keys: (N,).
        fullness: (N,) number of towers that a row has.
        sums: (N,) float64 sums of its vectors.
    """
    order = torch.arange(len(row_keys), device=row_keys.device)
    for rank in (sums, -fullness, row_keys):  # the last sort has precedence
        order = order[rank[order].argsort(stable=True)]
    is_first = torch.ones_like(order, dtype=torch.bool)
    is_first[1:] = row_keys[order][1:] != row_keys[order][:-1]
    return order[is_first]
