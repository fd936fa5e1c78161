"""Collectives of an evaluation pass: embeddings are gathered over batches and ranks, results over ranks.

The gathered `EmbeddingTable` is the same for any number of ranks and any order of batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from mim_lightning.metrics.embedding_table import EmbeddingTable, distinct_rows
from mim_lightning.types import NO_KEY


class EmbeddingCollector(Metric):
    """Collects the embeddings of one set, queries or gallery, over batches and ranks.

    Rows stay on the metric's device; with `compute_on_cpu` they are kept in host memory and are on the device only
    while ranks exchange them. Every rank gets the whole table. Keep the collector as a submodule, or move it to the
    rank's device: NCCL does not exchange host memory.
    """

    full_state_update = False
    row_keys: list[Tensor]

    def __init__(self, names: Sequence[str], columns: Sequence[str] = (), compute_on_cpu: bool = False) -> None:
        """Take the names of the towers or fusions whose vectors are kept, and of the int64 id columns."""
        super().__init__(compute_on_cpu=compute_on_cpu)
        self.names, self.columns = tuple(names), tuple(columns)
        self._dtypes = {
            "row_keys": torch.int64,
            **{f"vectors_{name}": torch.float32 for name in names},
            **{f"present_{name}": torch.bool for name in names},
            **{f"column_{name}": torch.int64 for name in columns},
        }
        for state in self._dtypes:
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(
        self,
        row_keys: Tensor,
        vectors: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        columns: Mapping[str, Tensor],
        valid: Tensor,
    ) -> None:
        """Keep the valid rows of a batch.

        Args:
            row_keys: (B,) identity of each row: the query, or the gallery product and its image.
            vectors: (B, D) by tower or fusion; those not named at construction are ignored.
            present: (B,) bool by tower or fusion.
            columns: (B,) or (B, R) int64 by column; R may differ between batches and ranks.
            valid: (B,) bool, False for padding.
        """
        batch = {"row_keys": row_keys}
        batch |= {f"vectors_{name}": vectors[name] for name in self.names}
        batch |= {f"present_{name}": present[name] for name in self.names}
        batch |= {f"column_{name}": _at_least_one_wide(columns[name]) for name in self.columns}
        for state, dtype in self._dtypes.items():
            getattr(self, state).append(batch[state][valid].to(self.device, dtype))

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[[], bool] | None = None,
    ) -> None:
        """Gather the rows of all ranks; ranks may hold different numbers of rows, or none."""
        available = distributed_available or self.distributed_available_fn
        is_shared = should_sync and callable(available) and available()
        # torchmetrics sends the state of a rank without rows as a flat float tensor, which kills the process group:
        # each rank first converts its states to the common dtype and width
        widths = self._widths()
        if is_shared:
            dist.all_reduce(widths, dist.ReduceOp.MAX, group=process_group or self.process_group)
        self._stack_states(widths.tolist(), self.device if is_shared else self._storage_device)
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def compute(self) -> EmbeddingTable:
        """Return the rows of all ranks, each key once, ascending by key."""
        rows = {state: self._rows(state).to(self._storage_device) for state in self._dtypes}
        table = EmbeddingTable(
            rows["row_keys"],
            {name: rows[f"vectors_{name}"] for name in self.names},
            {name: rows[f"present_{name}"] for name in self.names},
            {name: rows[f"column_{name}"] for name in self.columns},
        )
        return table.take(distinct_rows(table))

    def _wrap_compute(self, compute: Callable[[], EmbeddingTable]) -> Callable[[], EmbeddingTable]:
        # The inherited wrapper squeezes tensors of one row and cannot return a frozen dataclass.
        @functools.wraps(compute)
        def synced() -> EmbeddingTable:
            with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
                return compute()

        return synced

    @property
    def _storage_device(self) -> torch.device:
        return torch.device("cpu") if self.compute_on_cpu else self.device

    def _rows(self, state: str) -> Tensor:
        held = getattr(self, state)  # one tensor after a gather, a list of one without
        return held if isinstance(held, Tensor) else held[0]

    def _widths(self) -> Tensor:
        """Return the second size of each state as this rank knows it; 0 for flat states and without rows."""
        seen = [[part.shape[1] for part in getattr(self, s) if part.dim() == 2] for s in self._dtypes]
        return torch.tensor([max(sizes, default=0) for sizes in seen], device=self.device)

    def _stack_states(self, widths: Sequence[int], device: torch.device) -> None:
        for (state, dtype), width in zip(self._dtypes.items(), widths, strict=True):
            empty = torch.empty((0, width) if width else (0,), dtype=dtype, device=device)
            parts = [part.to(device) for part in getattr(self, state) if len(part)]
            if state.startswith("column_") and width:
                parts = [F.pad(part, (0, width - part.shape[1]), value=NO_KEY) for part in parts]
            setattr(self, state, [torch.cat([empty, *parts])])


def _at_least_one_wide(column: Tensor) -> Tensor:
    # a batch without relevant products has R = 0, which means "flat" above
    return F.pad(column, (0, 1), value=NO_KEY) if column.dim() == 2 and column.shape[1] == 0 else column


def share_of_rank(num_rows: int) -> slice:
    """Return which of `num_rows` rows this rank works on: contiguous, may be none; `num_rows` is equal on all ranks."""
    start, stop = _bounds(num_rows)[dist.get_rank()] if _is_shared() else (0, num_rows)
    return slice(start, stop)


def gather_shares(parts: Mapping[str, Tensor], num_rows: int) -> dict[str, Tensor]:
    """Return the rows of all ranks on every rank, in order; `parts` has those of this rank, see `share_of_rank`.

    Every rank must call it, with the same names, dtypes and widths; a rank may have no rows. Returns tensors on
    the device of the parts.
    """
    if not _is_shared():
        return dict(parts)
    sizes = [stop - start for start, stop in _bounds(num_rows)]
    return {name: _gather_rows(part, sizes) for name, part in parts.items()}


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _bounds(num_rows: int) -> list[tuple[int, int]]:
    world_size = dist.get_world_size()
    return [(num_rows * rank // world_size, num_rows * (rank + 1) // world_size) for rank in range(world_size)]


def _gather_rows(part: Tensor, sizes: Sequence[int]) -> Tensor:
    # NCCL does not exchange host memory, gloo no GPU memory
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    filled = part.new_zeros((max(sizes), *part.shape[1:]), device=device)
    filled[: len(part)] = part.to(device)
    gathered = [torch.empty_like(filled) for _ in sizes]
    dist.all_gather(gathered, filled)
    return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)]).to(part.device)
