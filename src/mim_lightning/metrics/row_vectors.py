"""Vectors of many rows that are read block by block, so that what is computed of stored ones is never kept whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mim_lightning.metrics.collectives import gather_rows, sum_of_ranks, world
from mim_lightning.precision import TILE_ROWS

Rows = Tensor | slice  # positions, or a contiguous part
BLOCK_BYTES = 2**23  # of float32 vectors that are checked at once
READ_ROWS = 2**11  # that are computed at once
BLOCK_ROWS = TILE_ROWS  # blocks of a multiple of them fill the matrix products that rank them


@dataclass(frozen=True)
class RowVectors:
    """Vectors (N, D) of some rows of a table in this process: selected, fused or converted when they are read.

    Attributes:
        make: returns the float32 vectors (n, D) of rows of the table.
        rows: their positions in the table, (N,).
        is_stored: whether the vectors are stored as they are read, all rows of the table in order: reading copies
            nothing.
        width: D.
        device: on which they are read.
    """

    make: Callable[[Rows], Tensor]
    rows: Tensor
    width: int
    device: torch.device
    is_stored: bool = False

    @classmethod
    def of(cls, vectors_ND: Tensor) -> RowVectors:
        rows = torch.arange(len(vectors_ND), device=vectors_ND.device)
        width = vectors_ND.shape[1] if vectors_ND.dim() == 2 else -1
        is_stored = vectors_ND.dtype == torch.float32 and vectors_ND.is_contiguous()
        return cls(lambda some: vectors_ND[some].detach().float(), rows, width, vectors_ND.device, is_stored)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Rows) -> RowVectors:
        """Return the rows chosen by a bool mask, positions or a slice."""
        taken = self.rows[rows.to(self.rows.device) if isinstance(rows, Tensor) else rows]
        return replace(self, rows=taken, is_stored=self.is_stored and len(taken) == len(self))

    def read(self, block: slice = slice(None)) -> Tensor:
        """Return the vectors (n, D) of a block, float32 and contiguous."""
        rows = self.rows[block]
        if self.is_stored or len(rows) <= READ_ROWS:
            return self._make(rows)
        # part by part: a fusion makes several vectors of a row, and adds them
        vectors_ND = torch.empty(len(rows), self.width, device=self.device)
        for filled, part in zip(vectors_ND.split(READ_ROWS), rows.split(READ_ROWS), strict=True):
            filled.copy_(self._make(part))
        return vectors_ND

    def _make(self, rows: Tensor) -> Tensor:
        first = int(rows[0]) if len(rows) else 0
        is_range = len(rows) and int(rows[-1]) - first == len(rows) - 1 and bool((rows.diff() == 1).all())
        return self.make(slice(first, first + len(rows)) if is_range else rows).contiguous()

    def blocks(self, num_bytes: int = BLOCK_BYTES) -> list[slice]:
        """Return blocks of about so many bytes of vectors; one of everything if reading copies nothing."""
        fitting = num_bytes // (4 * max(1, self.width))
        size = len(self) if self.is_stored else max(BLOCK_ROWS, fitting // BLOCK_ROWS * BLOCK_ROWS)
        return [slice(start, min(start + size, len(self))) for start in range(0, len(self), max(1, size))]


@dataclass(frozen=True)
class SharedVectors:
    """Vectors (Q, D) of rows that are spread over processes: all know which rows there are, each stores its own.

    Attributes:
        own: the rows that this process stores.
        owners: (Q,) the rank that stores each row.
        places: (Q,) its position in `own` of that rank.
    """

    own: RowVectors
    owners: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, rows: Rows) -> SharedVectors:
        return replace(self, owners=self.owners[rows], places=self.places[rows])

    @property
    def device(self) -> torch.device:
        return self.own.device

    @property
    def width(self) -> int:
        return self.own.width

    def read(self, block: slice = slice(None)) -> Tensor:
        """Return the vectors (n, D) of a block on every process; all must read it."""
        owners = self.owners[block]
        mine = self.own[self.places[block][owners == world()[0]]].read()
        by_owner = owners.argsort(stable=True)
        gathered = gather_rows(mine, owners.bincount(minlength=world()[1]).tolist())
        return torch.empty_like(gathered).index_copy_(0, by_owner.to(gathered.device), gathered)

    def of_this_rank(self) -> RowVectors:
        return self.own[self.places[self.owners == world()[0]]]


def check_finite_rows(what: str, vectors: RowVectors, is_shared: bool) -> None:
    """Raise ValueError, on all processes alike, if a row of the `what` vectors has a value that is not finite.

    Args:
        is_shared: other processes have further rows, and count them; else all have the same.
    """
    num_bad, num_rows = sum(count_not_finite(vectors.read(block)) for block in vectors.blocks()), len(vectors)
    if is_shared:
        num_bad, num_rows = sum_of_ranks(num_bad, num_rows)
    if num_bad:
        raise ValueError(f"{num_bad} of {num_rows} {what} vectors are not finite")


def count_not_finite(vectors_ND: Tensor) -> int:
    """Return how many rows have a value that is not finite."""
    # One pass over sums: a finite sum has finite values only; that of huge values may overflow.
    suspects = vectors_ND[~vectors_ND.sum(dim=1, dtype=torch.float32).isfinite()]
    return int((~suspects.isfinite().all(dim=1)).sum())
