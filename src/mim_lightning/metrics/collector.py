"""The embeddings of an evaluation pass: each process collects those of its own batches, in memory of a known size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_lightning.metrics.collectives import find_repeated, gather_rows, max_of_ranks, world
from mim_lightning.metrics.embedding_table import EmbeddingTable, distinct_rows
from mim_lightning.types import NO_KEY

_GROWTH = 1.5  # of the arrays, where more rows come than were expected


class EmbeddingCollector:
    """Collects the embeddings of one set, queries or gallery, over the batches of this process.

    Args:
        names: of the towers or fusions whose vectors are kept.
        columns: names of the int64 id columns.
        num_rows: that this process is expected to collect: arrays of so many rows are filled, none is copied.
        device: that keeps the rows; None: that of the first batch.
        dtype: of the vectors that are kept, float32 or float16.
    """

    def __init__(
        self,
        names: Sequence[str],
        columns: Sequence[str] = (),
        num_rows: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.names, self.columns, self.num_expected = tuple(names), tuple(columns), num_rows
        self.device, self.dtype = None if device is None else torch.device(device), dtype
        self._dtypes = {
            "row_keys": torch.int64,
            **{f"vectors_{name}": dtype for name in names},
            **{f"present_{name}": torch.bool for name in names},
            **{f"column_{name}": torch.int64 for name in columns},
        }
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._parts: dict[str, Tensor] = {}  # of which the first `num_rows` rows are filled
        self.num_rows = 0

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
            row_keys: (B,) identity of each row, 0 or more: the query, or the gallery product and its image.
            vectors: (B, D) by tower or fusion; those not named at construction are ignored.
            present: (B,) bool by tower or fusion.
            columns: (B,) or (B, R) int64 by column; R may differ between batches and processes.
            valid: (B,) bool, False for padding.
        """
        batch = {"row_keys": row_keys}
        batch |= {f"vectors_{name}": vectors[name] for name in self.names}
        batch |= {f"present_{name}": present[name] for name in self.names}
        batch |= {f"column_{name}": _at_least_one_wide(columns[name]) for name in self.columns}
        self.append({name: batch[name][valid] for name in self._dtypes})

    def append(self, rows: Mapping[str, Tensor]) -> None:
        """Keep rows, in the parts that `read` returns."""
        stop = self.num_rows
        for name, dtype in self._dtypes.items():
            part = rows[name].to(self.device or rows[name].device, dtype)
            stop = self.num_rows + len(part)
            self._make_room(name, part, stop)
            kept = self._parts[name]
            if name.startswith("column_") and part.dim() == 2:
                part = F.pad(part, (0, kept.shape[1] - part.shape[1]), value=NO_KEY)
            elif part.shape[1:] != kept.shape[1:]:
                raise ValueError(f"{name}: is {tuple(part.shape[1:])} wide, earlier batches {tuple(kept.shape[1:])}")
            kept[self.num_rows : stop] = part
        self.num_rows = stop

    def read(self, rows: slice) -> dict[str, Tensor]:
        """Return rows in the order in which they were collected: keys, vectors, presence and ids by name."""
        return {name: part[rows] for name, part in self._parts.items()}

    def take_table(self) -> EmbeddingTable:
        """Return the rows of this process, ascending by key, and forget them.

        All processes must call it. A key that several batches or processes have stays in one, see `distinct_rows`;
        ids of several columns have the width of the widest in any process.
        """
        self._agree_on_widths()
        rows = self._distinct_rows()
        in_order = self._parts["row_keys"][rows] if len(rows) else rows
        rows = rows[in_order.argsort(stable=True)]
        is_all = len(rows) == self.num_rows and bool((rows.diff() == 1).all())
        # part after part, so that a copy in another order exists of one at a time
        taken = {}
        for name in self._dtypes:
            part = self._parts.pop(name)
            taken[name] = part[: self.num_rows] if is_all else part[rows]
            del part
        self.reset()
        return EmbeddingTable(
            taken["row_keys"],
            {name: taken[f"vectors_{name}"] for name in self.names},
            {name: taken[f"present_{name}"] for name in self.names},
            {name: taken[f"column_{name}"] for name in self.columns},
        )

    def _make_room(self, name: str, rows: Tensor, stop: int) -> None:
        """Make the array of a part large enough for `stop` rows, as wide as these; at first as large as expected."""
        kept, is_column = self._parts.get(name), name.startswith("column_")
        fill = NO_KEY if is_column else None
        width = rows.shape[1:]
        if kept is not None and is_column and rows.dim() == 2:
            width = torch.Size([max(kept.shape[1], rows.shape[1])])
        elif kept is not None:
            width = kept.shape[1:]
        if kept is not None and stop <= len(kept) and width == kept.shape[1:]:
            return
        size = max(stop, self.num_expected) if kept is None else len(kept)
        size = size if stop <= size else max(stop, int(size * _GROWTH))
        self._parts[name] = _resized(kept, (size, *width), rows, self.num_rows, fill)

    def _agree_on_widths(self) -> None:
        """Give the parts of all processes one width, also in those without a batch."""
        names = list(self._dtypes)
        known = [self._parts[name].shape[1] if _is_wide(self._parts.get(name)) else 0 for name in names]
        for name, width in zip(names, max_of_ranks(torch.tensor(known)).tolist(), strict=True):
            part = self._parts.get(name)
            shape = (width,) if width else ()
            if part is None:
                device = self.device or torch.device("cpu")
                self._parts[name] = torch.empty((0, *shape), dtype=self._dtypes[name], device=device)
            elif part.shape[1:] != shape and name.startswith("column_"):
                self._parts[name] = _resized(part, (len(part), width), part, self.num_rows, NO_KEY)

    def _distinct_rows(self) -> Tensor:
        """Return the positions of the rows that this process keeps."""
        keys = self._parts["row_keys"][: self.num_rows]
        repeated = find_repeated(keys.cpu()).nonzero().flatten().to(keys.device)
        places = torch.arange(self.num_rows, device=keys.device)
        sums = torch.zeros(len(repeated), dtype=torch.float64, device=keys.device)
        fullness = torch.zeros_like(repeated)
        for name in self.names:
            sums += self._parts[f"vectors_{name}"][repeated].sum(dim=-1, dtype=torch.float64)
            fullness += self._parts[f"present_{name}"][repeated]
        rank, _ = world()
        mine = [keys[repeated], fullness, sums, repeated, torch.full_like(repeated, rank)]
        all_keys, all_fullness, all_sums, all_places, all_ranks = (gather_rows(part.cpu()) for part in mine)
        chosen = distinct_rows(all_keys, all_fullness, all_sums)
        chosen = all_places[chosen[all_ranks[chosen] == rank]].to(keys.device)
        is_kept = torch.ones(self.num_rows, dtype=torch.bool, device=keys.device)
        is_kept[repeated] = False
        is_kept[chosen] = True
        return places[is_kept]


def _resized(kept: Tensor | None, shape: Sequence[int], like: Tensor, num_rows: int, fill: int | None) -> Tensor:
    larger = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    if kept is not None and num_rows:
        if fill is not None and kept.dim() == 2:
            larger[:num_rows] = F.pad(kept[:num_rows], (0, larger.shape[1] - kept.shape[1]), value=fill)
        else:
            larger[:num_rows] = kept[:num_rows]
    return larger


def _is_wide(part: Tensor | None) -> bool:
    return part is not None and part.dim() == 2


def _at_least_one_wide(column: Tensor) -> Tensor:
    # a batch without relevant products has R = 0, which means "flat" above
    return F.pad(column, (0, 1), value=NO_KEY) if column.dim() == 2 and column.shape[1] == 0 else column
