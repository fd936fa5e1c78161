"""The order of hard negatives: every row once a pass, beside rows whose products were mined as its negatives.

No product is encoded for the sake of a row: which rows share a batch is all that changes, and rows that share a product
stay positives of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from mim_lightning.data.sampling.endless import in_epochs
from mim_lightning.data.sampling.grouped import GROUPED_SHARDS
from mim_lightning.data.sampling.negative_table import NegativeTable, read_negatives
from mim_lightning.data.sampling.order import (
    WINDOW_SHARDS,
    BatchOrder,
    EpochSettings,
    SetColumns,
    StateKey,
    read_column,
    release_pages,
)
from mim_lightning.data.sampling.shuffled import ShuffledOrder

TABLE = "data.sampling.table"
_IN_TRAINING = "in training the key is data.sampling.mining.<name>"


@dataclass(frozen=True, eq=False)
class HardNegativeOrder(ShuffledOrder):
    """The shuffled order, with the rows of each window arranged in groups: a row, and rows of its hard negatives.

    The rows of a window are gone through in random order. A row that is in no group yet begins one, with up to
    `num_negatives` rows of products that are among its negatives, as far as there are such rows left. Groups follow
    each other in random order; one that begins at the end of a batch goes on in the next.

    Args:
        query_keys, product_keys: (num_samples,) of each row.
        tables: by the first pass that uses each; a pass before the first table is shuffled alone.
        num_negatives: rows that are brought beside a row, each of another product.
    """

    query_keys: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64), repr=False)
    product_keys: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64), repr=False)
    tables: Mapping[int, NegativeTable] = field(default_factory=dict, repr=False)
    num_negatives: int = 4

    def state_key(self) -> StateKey:
        return {**super().state_key(), "order": "hard_negatives", "order.num_negatives": self.num_negatives}

    def arrange(self, epoch: int, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rows = rng.permutation(rows)
        first = max((first for first in self.tables if first <= epoch), default=None)
        if first is None:
            return rows
        negatives_MK = self.tables[first].find(self.query_keys[rows])
        arranged: np.ndarray = rows[gather(self.product_keys[rows], negatives_MK, self.num_negatives, rng)]
        for column in (self.query_keys, self.product_keys):
            release_pages(column)
        return arranged


def gather(
    products_M: np.ndarray, negatives_MK: np.ndarray, num_negatives: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the positions 0 to M - 1, group after group, see `HardNegativeOrder`.

    Args:
        products_M: of each row.
        negatives_MK: products that are hard negatives of each row, NO_KEY where it has fewer; drawn from at random.
    """
    products_P, product_M = np.unique(products_M, return_inverse=True)
    rows_by_product = np.argsort(product_M, kind="stable").tolist()
    stops = np.cumsum(np.bincount(product_M, minlength=len(products_P)))
    # of each product, the next of its rows that may be free, and where its rows end
    cursors, stops = (stops - np.bincount(product_M, minlength=len(products_P))).tolist(), stops.tolist()
    place_MK = np.minimum(np.searchsorted(products_P, negatives_MK), len(products_P) - 1)
    place_MK = np.where(products_P[place_MK] == negatives_MK, place_MK, -1).astype(np.int32)
    place_MK = rng.permuted(place_MK, axis=1)
    groups = np.full(len(products_M), -1)
    num_groups = 0
    order: list[int] = []
    is_taken = bytearray(len(products_M))
    for row in range(len(products_M)):
        if is_taken[row]:
            continue
        members = [row]
        is_taken[row] = True
        for place in place_MK[row].tolist():
            if len(members) > num_negatives:
                break
            if place < 0:
                continue
            while cursors[place] < stops[place] and is_taken[rows_by_product[cursors[place]]]:
                cursors[place] += 1
            if cursors[place] < stops[place]:
                found = rows_by_product[cursors[place]]
                is_taken[found] = True
                members.append(found)
        groups[members] = num_groups
        order += members
        num_groups += 1
    positions = np.array(order, dtype=np.int64)
    shuffled: np.ndarray = positions[np.argsort(rng.permutation(num_groups)[groups[positions]], kind="stable")]
    return shuffled


@dataclass(frozen=True)
class MiningSettings:
    """Which products are hard negatives of a query: those that rank high and are no answer.

    Args:
        direction: whose ranking is mined, of `directions`; None: the monitored one.
        num_candidates: negatives that are kept of each query.
        depth: products that are ranked for each.
        max_relative_score: a negative scores at most this fraction of the best relevant product's score: what scores
            higher may be an answer that nobody has named. Source: NV-Retriever (arXiv 2407.15831), TopK-PercPos, whose
            authors found 0.95 best. None: no limit.
        margin: and so much less (TopK-MarginPos there).
        group_column: column of the products; those with one value are never negatives of each other.
        skip_duplicates: nor are those with the same picture, by the perceptual hashes of `prepare`.
    """

    direction: str | None = None
    num_candidates: int = 16
    depth: int = 200
    max_relative_score: float | None = 0.95
    margin: float = 0.0
    group_column: str | None = None
    skip_duplicates: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.num_candidates <= self.depth:
            raise ValueError(
                f"mining.num_candidates={self.num_candidates}: give 1 to mining.depth={self.depth}; {_IN_TRAINING}"
            )
        if self.max_relative_score is not None and not 0 < self.max_relative_score <= 1:
            raise ValueError(
                f"mining.max_relative_score={self.max_relative_score}: give a fraction of the relevant product's "
                f"score, above 0 and up to 1, or null; {_IN_TRAINING}"
            )
        if not 0 <= self.margin < 2:
            raise ValueError(
                f"mining.margin={self.margin}: give a difference of cosines, 0 or more and below 2; {_IN_TRAINING}"
            )


@dataclass(frozen=True)
class HardNegativeSettings:
    """data/sampling=hard_negatives: a shuffled pass in which rows meet rows of their hard negatives.

    Args:
        table: path of hard negatives, see `negative_table`; None: they are mined in training.
        num_negatives: see `HardNegativeOrder`.
        every_n_epochs: epochs from one mining to the next.
        first_epoch: the first with hard negatives; 0: mined by the model before training.
        mined: what was mined in training, by the first pass that uses it; not of a config.
    """

    table: str | None = None
    num_negatives: int = 4
    every_n_epochs: int = 1
    first_epoch: int = 1
    mining: MiningSettings = field(default_factory=MiningSettings)
    mined: Mapping[int, NegativeTable] = field(default_factory=lambda: MappingProxyType({}), repr=False, compare=False)

    def __post_init__(self) -> None:
        for key, least in (("num_negatives", 1), ("every_n_epochs", 1), ("first_epoch", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"data.sampling.{key}={getattr(self, key)}: must be at least {least}")

    @property
    def group_size(self) -> int:
        return 1

    def for_shards(self, shards: SetColumns, epoch: EpochSettings) -> BatchOrder:
        least = max(WINDOW_SHARDS, GROUPED_SHARDS // epoch.num_streams)
        keys, products = read_column(shards, "keys"), read_column(shards, "product_keys")
        passes = HardNegativeOrder(
            tuple(shards.sizes),
            epoch.global_batch_size,
            epoch.seed,
            num_streams=epoch.num_streams,
            window=epoch.window_for(len(shards), len(shards.sizes), least),
            query_keys=keys,
            product_keys=products,
            tables=self.mined if self.table is None else {0: self._read(self.table, shards, keys, products)},
            num_negatives=self.num_negatives,
        )
        return in_epochs(passes, epoch.num_rows)

    def _read(self, path: str, shards: SetColumns, keys: np.ndarray, products: np.ndarray) -> NegativeTable:
        where = f"{TABLE}={path}"
        table = read_negatives(Path(path), where)
        for what, own, found in (("queries", keys, table.query_keys), ("products", products, table.product_keys)):
            if not np.isin(found, own).any():
                raise ValueError(f"{where}: none of its {what} is in the training rows of {shards.folder}")
        return table
