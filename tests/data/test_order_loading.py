"""Every order through the loader: any number of ranks and workers sees one stream, and it resumes to the pixel."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim_lightning.data.images.transforms import Augment
from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.data.sampling.grouped import GroupedSettings
from mim_lightning.data.sampling.mixture import make_mixture_order
from mim_lightning.data.sampling.order import EpochSettings, OrderSettings
from mim_lightning.data.sampling.shuffled import ShuffledSettings
from mim_lightning.data.sampling.weighted import WeightedSettings
from mim_lightning.data.shards.mixture_set import MAIN, ConcatShardSet
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.types import hash_id
from tests.data.conftest import MakeSet
from tests.data.loading.test_loader import SPECS, content, global_batches

ORDERS: dict[str, OrderSettings] = {
    "stream": ShuffledSettings(),
    "grouped": GroupedSettings(2, 0.5),
    "weighted": WeightedSettings(),
}
MakeLoaders = Callable[..., list[StreamLoader]]


def with_columns(shards: ShardSet) -> ShardSet:
    """Write the columns of a set whose rows are about product `number % 5`, of one of two categories."""
    numbers = np.arange(len(shards))
    products = np.array([hash_id(f"p{number % 5}") for number in numbers])
    folder = Path(shards.folder)
    np.save(folder / "product_keys.npy", products)
    np.save(folder / "category_keys.npy", numbers % 5 % 2)
    np.save(folder / "weights.npy", (1.0 + numbers % 4).astype(np.float32))
    return ShardSet(folder)


@pytest.fixture
def make_loaders(make_set: MakeSet) -> MakeLoaders:
    sets = {MAIN: with_columns(make_set(45)), "web": with_columns(make_set(14, 5))}

    def make(name: str, world_size: int = 1, num_workers: int = 0, **settings: Any) -> list[StreamLoader]:
        epoch = EpochSettings(
            **{"global_batch_size": 16, "seed": 3, "num_streams": 1 if "mixed" in name else 2} | settings
        )
        each = ORDERS[name.removeprefix("mixed ")]
        shards = ConcatShardSet(sets, {"web"}) if name.startswith("mixed") else sets[MAIN]
        shares = {MAIN: Fraction(5, 8), "web": Fraction(3, 8)}
        order = (
            make_mixture_order(shards, shares, each, epoch)
            if isinstance(shards, ConcatShardSet)
            else each.for_shards(shards, epoch)
        )
        collate = Collate(SPECS, shards.max_relevant, Augment(), seed=3)
        return [StreamLoader(shards, collate, order, rank, world_size, num_workers) for rank in range(world_size)]

    return make


@pytest.mark.parametrize(
    ("name", "num_rows"),
    [(name, None) for name in ("grouped", "weighted", "mixed stream", "mixed grouped", "mixed weighted")]
    # of two batches and five: a pass of three, the last with 13 rows, ends inside of an epoch
    + [("stream", 20), ("grouped", 20), ("stream", 70)],
)
def test_any_world_sees_the_same_stream_and_resumes_it(
    make_loaders: MakeLoaders, name: str, num_rows: int | None
) -> None:
    """A run is stopped inside the first epoch and inside later ones, and resumed by other ranks and workers."""
    alone = global_batches(make_loaders(name, num_rows=num_rows), 8)
    for num_done, world_size, num_workers in ((0, 2, 0), (2, 4, 0), (5, 1, 2)):
        (before,) = make_loaders(name, num_rows=num_rows)
        stream = itertools.chain.from_iterable(before for _ in itertools.count())
        for _ in range(num_done):
            next(stream)
        after = make_loaders(name, world_size, num_workers, num_rows=num_rows)
        for loader in after:
            loader.load_state_dict(before.state_dict())
        assert global_batches(after, 8 - num_done) == alone[num_done:]


def test_a_grouped_batch_has_k_rows_a_product(make_loaders: MakeLoaders) -> None:
    (loader,) = make_loaders("grouped", num_streams=1)
    first, *_ = loader
    pairs = first.product_keys.reshape(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).sum() >= 7
    assert sorted(row[0] for batch in loader for row in content(batch)) == list(range(45))


def test_a_batch_of_a_mixture_has_separate_ids(make_loaders: MakeLoaders) -> None:
    (loader,) = make_loaders("mixed stream")
    batch = next(iter(loader))
    is_web = batch.sample_nums >= 45
    assert is_web.sum() == 6
    assert set(batch.product_keys[is_web].tolist()) <= {hash_id(f"web:p{number}") for number in range(5)}
    assert set(batch.product_keys[~is_web].tolist()) <= {hash_id(f"p{number}") for number in range(5)}


def test_a_position_of_epochs_of_another_length_is_refused(make_loaders: MakeLoaders) -> None:
    (whole,), (short,) = make_loaders("stream"), make_loaders("stream", num_rows=20)
    for made, now, words in ((short, whole, "=20, now it is None"), (whole, short, "=None, now it is 20")):
        with pytest.raises(ValueError, match=f"the checkpoint was made with data.rows_per_epoch{words}"):
            now.load_state_dict(made.state_dict())
    # of before other lengths were possible
    whole.load_state_dict({name: value for name, value in whole.state_dict().items() if name != "rows_per_epoch"})


def test_a_position_of_another_order_is_refused(make_loaders: MakeLoaders) -> None:
    names = ["stream", "grouped", "weighted", "mixed stream"]
    loaders = {name: make_loaders(name, window=8)[0] for name in names}
    for made, now in itertools.product(names, names):
        if made == now:
            loaders[now].load_state_dict(loaders[made].state_dict())
            continue
        words = f"data.sampling={made}, now it is {now}".replace("mixed", "mix of")
        with pytest.raises(ValueError, match=f"the checkpoint was made with {words}"):
            loaders[now].load_state_dict(loaders[made].state_dict())
