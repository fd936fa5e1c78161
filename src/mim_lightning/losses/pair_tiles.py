"""A pair of sides, whose similarities are computed a tile at a time for both directions.

B rows of this rank, G columns of all ranks, D dimension, P positives of a tile, which itself is (b, g). What ends in
`_B` belongs to the rows, against all columns; what ends in `_G` to the columns, against the rows of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mim_lightning.losses.gather import world_size
from mim_lightning.losses.positives import ProductMatches

# InfoNCE takes one exponential for both directions, exp(logit - shift) with logits from -scale to scale. e^50 times
# many columns is in the range of float32, and so is a sum above TINY. A smaller sum has lost terms, since all negatives
# are far below the largest possible logit: such a pair is computed with exponentials in float64, which need no shift up
# to MAX_SCALE.
MAX_EXPONENT, TINY, MAX_SCALE = 50.0, 1e-30, 300.0
FEW = 1 / 64  # of a tile are positives: up to here their own inner products cost less than the tile


@dataclass(frozen=True)
class Side:
    """The rows of one side of a pair that take part: none is padding or absent.

    Attributes:
        vectors: (B, D) unit length, on any device; computed with in float32 if they are in half precision.
        keys: (B, R) products of each row, on the CPU; negative keys are no product.
        weights: (B,) of each row's loss; None: 1.
        biases: (B,) added to the logits where the row is a column, as -log of its sampling probability; None: 0.
        grades: (B, R) weights of the products as positives, on the CPU; None: 1. See `ProductMatches`.
    """

    vectors: Tensor
    keys: Tensor
    weights: Tensor | None = None
    biases: Tensor | None = None
    grades: Tensor | None = None


class PairTiles:
    """The tiles of a pair, its sums over them, and in the end its value, counts and gradients.

    Args:
        left, right: rows of this rank and of all ranks.
        weight: of the pair.
        scale, bias: of the logits.
        tile: rows and columns of a tile.
        buffers: (2, tile * tile) in the dtype to compute with.
        gradients: of left and right vectors, to be added to; None: only the value is computed.
    """

    value: Tensor
    counts: Tensor  # (2,): rows with a positive, and columns that are no positive, summed over those rows

    def __init__(
        self,
        left: Side,
        right: Side,
        weight: float,
        scale: float,
        bias: float,
        tile: int,
        buffers: Tensor,
        gradients: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.left, self.right, self.scale, self.bias, self.tile = left, right, scale, bias, tile
        self.buffers, self.gradients = buffers, gradients
        self.weight = weight * world_size()  # of gradients: DDP averages them over ranks
        self.shift, self.exp_dtype = max(scale - MAX_EXPONENT, 0.0), buffers.dtype
        self.matches = ProductMatches(left.keys, right.keys, left.grades, right.grades, tile)
        self.weights_B, self.weights_G = self._values(left, "weights"), self._values(right, "weights")
        # a bias belongs to the rows of a side where they are columns: that of the left is added for the losses `_G`
        self.biases_B = None if left.biases is None else self._values(left, "biases")
        self.biases_G = None if right.biases is None else self._values(right, "biases")
        self.scale_gradient, self.bias_gradient = buffers.new_zeros(2).unbind()

    # --- tiles ----------------------------------------------------------------------------------------

    def row_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of rows, and their vectors times the scale."""
        for rows in _blocks(len(self.left.vectors), self.tile):
            yield rows, self.left.vectors[rows].to(self.buffers.dtype) * self.scale

    def column_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for columns in _blocks(len(self.right.vectors), self.tile):
            yield columns, self.right.vectors[columns].to(self.buffers.dtype)

    def logits(self, rows_bD: Tensor, columns_gD: Tensor) -> Tensor:
        """Return a tile of logits without biases, in the first buffer."""
        return torch.mm(rows_bD, columns_gD.T, out=self._buffer(0, len(rows_bD), len(columns_gD)))

    def positives(self, rows: slice, columns: slice) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the places of a tile's positives, and their grades."""
        found = self.matches.tile(rows, columns.start // self.tile)
        rows_P, columns_P = (part.to(self.buffers.device, non_blocking=True) for part in found[:2])
        ones_P = self.buffers.new_ones(len(rows_P))
        return (rows_P, columns_P), ones_P if found.weights is None else found.weights.to(ones_P)

    # --- InfoNCE --------------------------------------------------------------------------------------

    def sum_negatives(self, in_float64: bool = False) -> None:
        """Sum the exponentials of negatives of each row and column."""
        if in_float64:
            self.exp_dtype, self.shift = torch.float64, 0.0
        self.negatives_B, self.negatives_G = self._zeros(self.exp_dtype)
        self.num_B, self.num_G = self._zeros()  # positives
        for rows, rows_bD in self.row_blocks():
            for columns, columns_gD in self.column_blocks():
                places, _ = self.positives(rows, columns)
                tile_bg = self._exponentials(self.logits(rows_bD, columns_gD))
                tile_bg[places] = 0.0
                self.negatives_B[rows] += _weighted_sum(tile_bg, 1, self._factors(self.biases_G, columns))
                self.negatives_G[columns] += _weighted_sum(tile_bg, 0, self._factors(self.biases_B, rows))
                for num, of_positives, block in ((self.num_B, places[0], rows), (self.num_G, places[1], columns)):
                    num[block].index_add_(0, of_positives, num.new_ones(()).expand(len(of_positives)))
        self.num_left = self.num_B.new_tensor([len(self.num_B)])
        lost_B = _is_lost(self.negatives_B, len(self.num_G) - self.num_B)
        self.num_lost = lost_B.sum()[None].to(self.num_B.dtype)

    @property
    def shared_negatives(self) -> list[Tensor]:
        """Sums of columns, and of this rank, to be summed over ranks in place."""
        return [self.negatives_G, self.num_G, self.num_left, self.num_lost]

    def has_lost_sums(self) -> bool:
        """Return whether a row or column of any rank has negatives whose sum is not in the range of the dtype."""
        return bool(self.num_lost + _is_lost(self.negatives_G, self.num_left - self.num_G).sum())

    def sum_positives(self) -> None:
        """Sum over the positives of each row and column: grades, losses, and derivatives by the log of negatives."""
        dtype = self.buffers.dtype
        logs_B, logs_G = ((part.log() + self.shift).to(dtype) for part in (self.negatives_B, self.negatives_G))
        sums_3B, sums_3G = (torch.stack([part] * 3) for part in self._zeros())
        for rows, rows_bD in self.row_blocks():
            for columns, columns_gD in self.column_blocks():
                places, grades_P = self.positives(rows, columns)
                if not len(grades_P):
                    continue
                if len(grades_P) <= FEW * len(rows_bD) * len(columns_gD):
                    logits_P = (rows_bD[places[0]] * columns_gD[places[1]]).sum(1)
                else:
                    logits_P = self.logits(rows_bD, columns_gD)[places]
                for sums, logs, biases, mine, other in (
                    (sums_3B[:, rows], logs_B[rows], _part(self.biases_G, columns), *places),
                    (sums_3G[:, columns], logs_G[columns], _part(self.biases_B, rows), *places[::-1]),
                ):
                    margins_P = logs[mine] - (logits_P if biases is None else logits_P + biases[other])
                    parts_3P = torch.stack([torch.ones_like(grades_P), softplus(margins_P), margins_P.sigmoid()])
                    sums.index_add_(1, mine, grades_P * parts_3P)
        self.logs_B, self.logs_G = logs_B, logs_G
        (self.grades_B, self.losses_B, self.slopes_B), self.sums_3G = sums_3B, sums_3G
        self.totals = self._totals(self.losses_B)

    @property
    def shared_positives(self) -> list[Tensor]:
        """Sums of columns, and totals of this rank, to be summed over ranks in place."""
        return [self.sums_3G, self.totals]

    def average_info_nce(self) -> None:
        """Set the value, and add the gradients."""
        grades_G, losses_G, slopes_G = self.sums_3G
        shares_B, shares_G = self._average(grades_G, losses_G)
        if self.gradients is None:
            return
        # of row i: weight of a positive with grade 1; factor of exp(logit) of a negative
        pulls_B = self.weight * shares_B / _or_one(self.grades_B)
        pulls_G = self.weight * shares_G / _or_one(grades_G)
        pushes_B = pulls_B * self.slopes_B / _or_one(self.negatives_B)
        pushes_G = pulls_G * slopes_G / _or_one(self.negatives_G)
        for rows, rows_bD in self.row_blocks():
            sums_bD = torch.zeros_like(rows_bD)
            for columns, columns_gD in self.column_blocks():
                logits_bg = self.logits(rows_bD, columns_gD)
                places, grades_P = self.positives(rows, columns)
                logits_P = logits_bg[places]
                pulled_P = torch.zeros_like(logits_P)
                for pulls, logs, biases, mine, other in (
                    (pulls_B[rows], self.logs_B[rows], _part(self.biases_G, columns), *places),
                    (pulls_G[columns], self.logs_G[columns], _part(self.biases_B, rows), *places[::-1]),
                ):
                    margins_P = logs[mine] - (logits_P if biases is None else logits_P + biases[other])
                    pulled_P -= pulls[mine] * grades_P * margins_P.sigmoid()
                factors_bg = self._outer_sum(
                    pushes_B[rows],
                    self._factors(self.biases_G, columns),
                    self._factors(self.biases_B, rows),
                    pushes_G[columns],
                )
                tile_bg = self._exponentials(logits_bg).mul_(factors_bg).to(self.buffers.dtype)
                tile_bg[places] = pulled_P
                self._spread_gradient(tile_bg, rows_bD, columns_gD, sums_bD, columns)
            self._add_row_gradient(sums_bD, rows_bD, rows)

    def _exponentials(self, logits_bg: Tensor) -> Tensor:
        """Return exp(logit - shift), in place if the dtype is that of the logits."""
        exponents_bg = logits_bg.to(self.exp_dtype)
        return (exponents_bg.sub_(self.shift) if self.shift else exponents_bg).exp_()

    def _factors(self, biases: Tensor | None, block: slice) -> Tensor | None:
        return None if biases is None else biases[block].to(self.exp_dtype).exp()

    # --- sigmoid --------------------------------------------------------------------------------------

    def count_positives(self) -> None:
        """Count the positives of each row and column, and sum their grades."""
        self.num_B, self.num_G = self._zeros()
        self.grades_B, self.grades_G = self._zeros()
        for rows, _ in self.row_blocks():
            for columns, _ in self.column_blocks():
                (rows_P, columns_P), grades_P = self.positives(rows, columns)
                for num, grades, mine in (
                    (self.num_B[rows], self.grades_B[rows], rows_P),
                    (self.num_G[columns], self.grades_G[columns], columns_P),
                ):
                    num.index_add_(0, mine, torch.ones_like(grades_P))
                    grades.index_add_(0, mine, grades_P)
        self.num_left = self.num_B.new_tensor([len(self.num_B)])
        self.totals = self._totals(torch.zeros_like(self.grades_B))

    @property
    def shared_counts(self) -> list[Tensor]:
        """Sums of columns, and of this rank, to be summed over ranks in place."""
        return [self.num_G, self.grades_G, self.num_left, self.totals]

    def average_sigmoid(self) -> None:
        """Set the value, and add the gradients."""
        shares_B, shares_G = self._average(self.grades_G, torch.zeros_like(self.grades_G))
        for rows, rows_bD in self.row_blocks():
            sums_bD = torch.zeros_like(rows_bD)
            for columns, columns_gD in self.column_blocks():
                logits_bg = self.logits(rows_bD, columns_gD)
                if self.bias:
                    logits_bg += self.bias
                places, grades_P = self.positives(rows, columns)
                of_rows, of_columns = shares_B[rows], shares_G[columns]
                if self.biases_B is None and self.biases_G is None:
                    slopes_bg = self._sigmoid_terms(logits_bg, places, grades_P, of_rows, of_columns)
                else:  # each direction has logits of its own
                    added_b = 0.0 if self.biases_B is None else self.biases_B[rows, None]
                    added_g = 0.0 if self.biases_G is None else self.biases_G[columns]
                    none = torch.zeros_like
                    slopes_bg = self._sigmoid_terms(logits_bg + added_g, places, grades_P, of_rows, none(of_columns))
                    slopes_bg += self._sigmoid_terms(logits_bg + added_b, places, grades_P, none(of_rows), of_columns)
                if self.gradients is not None:
                    self.bias_gradient += slopes_bg.sum()
                    self._spread_gradient(slopes_bg, rows_bD, columns_gD, sums_bD, columns)
            if self.gradients is not None:
                self._add_row_gradient(sums_bD, rows_bD, rows)
        self.value = self.value * world_size()

    def _sigmoid_terms(
        self,
        logits_bg: Tensor,
        places: tuple[Tensor, Tensor],
        grades_P: Tensor,
        shares_b: Tensor,
        shares_g: Tensor,
    ) -> Tensor:
        """Add a tile's terms to the value; return their gradient in place of the logits."""
        logits_P = logits_bg[places]
        losses_bg = softplus(logits_bg)
        losses_bg[places] = grades_P * softplus(-logits_P)
        self.value += losses_bg.sum(1) @ shares_b + losses_bg.sum(0) @ shares_g
        if self.gradients is None:
            return logits_bg
        logits_bg.sigmoid_()
        logits_bg[places] = -grades_P * (-logits_P).sigmoid()
        return logits_bg.mul_(self._outer_sum(self.weight * shares_b, None, None, self.weight * shares_g))

    # --- both -----------------------------------------------------------------------------------------

    def _totals(self, losses_B: Tensor) -> Tensor:
        """Return (4,) over rows with a positive: weights, weighted losses, number, and number of their positives."""
        is_row_B = self.grades_B > 0
        weights_B = self.weights_B * is_row_B
        rows_4B = torch.stack(
            [weights_B, weights_B * losses_B / _or_one(self.grades_B), is_row_B, self.num_B * is_row_B]
        )
        return rows_4B.sum(1)

    def _average(self, grades_G: Tensor, losses_G: Tensor) -> tuple[Tensor, Tensor]:
        """Set value and counts from sums over ranks; return the share of each row and column in the value."""
        is_column_G = grades_G > 0
        weights_G = self.weights_G * is_column_G
        total_B, loss_B, num_rows, num_positives = self.totals
        total_G, loss_G = weights_G.sum(), (weights_G * losses_G / _or_one(grades_G)).sum()
        self.value = (loss_B / _or_one(total_B) + loss_G / _or_one(total_G)) / 2
        num_negatives = num_rows * len(grades_G) - num_positives + ((self.num_left - self.num_G) * is_column_G).sum()
        self.counts = torch.stack([num_rows + is_column_G.sum(), num_negatives])
        return self.weights_B * (self.grades_B > 0) / _or_one(total_B) / 2, weights_G / _or_one(total_G) / 2

    def _spread_gradient(
        self, tile_bg: Tensor, rows_bD: Tensor, columns_gD: Tensor, sums_bD: Tensor, columns: slice
    ) -> None:
        """Add the gradient of a tile of logits to that of its columns, and that of its rows to `sums_bD`."""
        assert self.gradients is not None
        sums_bD.addmm_(tile_bg, columns_gD)
        self.gradients[1][columns].addmm_(tile_bg.T, rows_bD)

    def _add_row_gradient(self, sums_bD: Tensor, rows_bD: Tensor, rows: slice) -> None:
        assert self.gradients is not None
        self.gradients[0][rows].add_(sums_bD, alpha=self.scale)
        self.scale_gradient += (sums_bD * rows_bD).sum() / self.scale

    def _zeros(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Return a zero for each row, and for each column."""
        zeros_B, zeros_G = (self.buffers.new_zeros(len(side.vectors), dtype=dtype) for side in (self.left, self.right))
        return zeros_B, zeros_G

    def _values(self, side: Side, name: str) -> Tensor:
        values_B = getattr(side, name)
        return self.buffers.new_ones(len(side.vectors)) if values_B is None else values_B.to(self.buffers)

    def _buffer(self, idx: int, height: int, width: int) -> Tensor:
        return self.buffers[idx, : height * width].view(height, width)

    def _outer_sum(self, a_b: Tensor, a_g: Tensor | None, c_b: Tensor | None, c_g: Tensor) -> Tensor:
        """Return the sum of two outer products; None: ones."""
        out = self._buffer(1, len(a_b), len(c_g)) if a_b.dtype == self.buffers.dtype else None
        if a_g is None and c_b is None:
            return torch.add(a_b[:, None], c_g, out=out)
        a_g, c_b = (torch.ones_like(like) if part is None else part for part, like in ((a_g, c_g), (c_b, a_b)))
        return torch.outer(a_b, a_g, out=out).addr_(c_b, c_g)


def _blocks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _part(values: Tensor | None, block: slice) -> Tensor | None:
    return None if values is None else values[block]


def _weighted_sum(tile_bg: Tensor, dim: int, weights: Tensor | None) -> Tensor:
    if weights is None:
        return tile_bg.sum(dim)
    return tile_bg @ weights if dim == 1 else weights @ tile_bg


def _is_lost(sums: Tensor, num_terms: Tensor) -> Tensor:
    return ~sums.isfinite() | ((sums < TINY) & (num_terms > 0))


def _or_one(divisor: Tensor) -> Tensor:
    """Return 1 for a divisor of 0: what is divided is 0 too."""
    return torch.where(divisor == 0, 1.0, divisor)
