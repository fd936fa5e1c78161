"""How often the product of each row is drawn in training, for the correction of in-batch negatives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mim_lightning.data.sampling.mixture import MixtureOrder
from mim_lightning.data.sampling.order import BatchOrder, SetColumns, StreamedOrder, read_column
from mim_lightning.data.sampling.weighted import WeightedOrder
from mim_lightning.data.shards.mixture_set import ConcatShardSet
from mim_lightning.ids import NO_KEY


def log_frequencies(shards: SetColumns, order: BatchOrder) -> np.ndarray:
    """Return log(draws of a row's product / mean over products), (rows of the set,) float32.

    Draws are those of an epoch, on average. A row without a product has 0. The result takes 4 bytes a row; computing it
    takes about 60.
    """
    keys = read_column(shards, "product_keys")
    draws = np.concatenate([*_draws_of_rows(order)])
    products = _number_products(shards, keys)
    totals = np.bincount(products, weights=draws)
    is_product = np.zeros(len(totals), dtype=bool)
    is_product[products[keys != NO_KEY]] = True
    if not is_product.any():
        return np.zeros(len(keys), dtype=np.float32)
    logs = np.log(np.maximum(totals, np.finfo(np.float32).tiny) / totals[is_product].mean())
    return np.where(is_product, logs, 0.0).astype(np.float32)[products]


def _draws_of_rows(order: BatchOrder) -> Iterator[np.ndarray]:
    """Yield how often each row of each set is drawn in an epoch, on average, up to a common factor."""
    for name, one in order.passes().items():
        rate = 1.0
        if isinstance(order, MixtureOrder):
            rate = float(order.parts[name].fraction) / one.rows_by_shard.sum()
        yield rate * _draws_in_pass(one)


def _draws_in_pass(order: StreamedOrder) -> np.ndarray:
    if isinstance(order, WeightedOrder):
        weights = np.asarray(order.weights, dtype=np.float64)
        return weights * (order.num_samples / weights.sum())
    return np.repeat(order.rows_by_shard / np.maximum(order.shard_sizes, 1), order.shard_sizes)


def _number_products(shards: SetColumns, keys: np.ndarray) -> np.ndarray:
    """Return the number of each row's product; equal ids are other products in the sets of a mixture with own ids."""
    if not isinstance(shards, ConcatShardSet):
        return np.unique(keys, return_inverse=True)[1]
    numbers, num_numbered = np.empty(len(keys), dtype=np.int64), 0
    sizes = [len(part) for part in shards.sets.values()]
    is_own = np.repeat([name in shards.own_ids for name in shards.sets], sizes)
    own = [np.repeat(np.array([*shards.sets]) == name, sizes) for name in shards.own_ids]
    for rows in (~is_own, *own):
        _, found = np.unique(keys[rows], return_inverse=True)
        numbers[rows] = found + num_numbered
        num_numbered += 1 + found.max(initial=-1)
    return numbers
