"""A mixture of sets: their fractions, a whole pass over each before it repeats, resume at any batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mim_lightning.data.sampling.grouped import GroupedSettings
from mim_lightning.data.sampling.mixture import MixtureOrder, make_mixture_order
from mim_lightning.data.sampling.order import EpochSettings, OrderSettings
from mim_lightning.data.sampling.shuffled import ShuffledSettings
from mim_lightning.data.sampling.weighted import WeightedSettings
from mim_lightning.data.shards.mixture_set import (
    MAIN,
    ConcatShardSet,
    MixtureEntry,
    parse_mixture,
    split_fractions,
    validate_distinct_ids,
)
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.types import hash_id
from tests.data.conftest import MakeSet
from tests.data.rows import ColumnSet, random_sizes

SHARES = {MAIN: Fraction(5, 8), "web": Fraction(1, 4), "old": Fraction(1, 8)}


def mixed(
    sizes: dict[str, list[int]],
    shares: dict[str, Fraction] | None = None,
    each: OrderSettings | None = None,
    batch_size: int = 16,
    **settings: Any,
) -> MixtureOrder:
    """Return the order over sets of which only columns exist: products of four rows, weights from 1 to 3."""
    sets: dict[str, Any] = {
        name: ColumnSet(
            part,
            product_keys=np.arange(sum(part)) // 4,
            category_keys=np.arange(sum(part)) // 40,
            weights=1.0 + np.arange(sum(part)) % 3,
        )
        for name, part in sizes.items()
    }
    return make_mixture_order(
        ConcatShardSet(sets), shares or SHARES, each or ShuffledSettings(), EpochSettings(batch_size, **settings)
    )


def by_set(order: MixtureOrder, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows of each set in a batch, under the numbers the set itself gives them."""
    starts = np.array([part.first_number for part in order.parts.values()])
    owner = np.searchsorted(starts, batch, side="right") - 1
    return {name: batch[owner == idx] - starts[idx] for idx, name in enumerate(order.parts)}


def run(order: MixtureOrder, num_epochs: int) -> list[np.ndarray]:
    return [batch for epoch in range(num_epochs) for batch in order.batches(epoch)]


@pytest.mark.parametrize("seed", range(25))
def test_every_set_has_its_fraction_after_any_number_of_batches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = rng.integers(1, 20, int(rng.integers(1, 5))).tolist()
    shares = {f"set{i}": Fraction(part, sum(parts)) for i, part in enumerate(parts)}
    sizes = {name: random_sizes(rng) for name in shares}
    batch_size = int(np.ceil(sum(parts) / min(parts))) + int(rng.integers(0, 30))
    order = mixed(sizes, shares, batch_size=batch_size, seed=seed, num_streams=2, window=2, num_rows=batch_size * 7)
    seen: Counter[str] = Counter()
    rows: dict[str, list[int]] = {name: [] for name in shares}
    for num_batches, batch in enumerate(run(order, 3), start=1):
        assert len(batch) == batch_size
        for name, own in by_set(order, batch).items():
            seen[name] += len(own)
            rows[name] += own.tolist()
            off = abs(seen[name] - shares[name] * batch_size * num_batches)
            assert off < 1 if len(shares) > 2 else off <= Fraction(1, 2)
    for name, numbers in rows.items():
        size = sum(sizes[name])
        for start in range(0, len(numbers), size):  # once each before any comes again, wherever the mix's epochs end
            turn = numbers[start : start + size]
            assert len(set(turn)) == len(turn)


@pytest.mark.parametrize("each", [ShuffledSettings(), GroupedSettings(2, 0.5), GroupedSettings(4), WeightedSettings()])
def test_resumes_from_every_position(each: OrderSettings) -> None:
    order = mixed({MAIN: [30, 41], "web": [25, 9], "old": [11, 6]}, each=each, batch_size=64)
    for epoch in range(3):
        whole = [batch.tolist() for batch in order.batches(epoch)]
        assert len(whole) == order.num_batches
        assert {len(batch) for batch in whole} == {64}
        for num_done in range(len(whole) + 1):
            assert [batch.tolist() for batch in order.batches(epoch, num_done * 64)] == whole[num_done:]


def test_a_small_set_repeats_and_a_large_one_is_not_exhausted() -> None:
    order = mixed({MAIN: [1000], "web": [10]}, {MAIN: Fraction(1, 2), "web": Fraction(1, 2)}, num_rows=160)
    rows = [by_set(order, batch) for batch in run(order, 2)]
    assert set(Counter(np.concatenate([own["web"] for own in rows]).tolist()).values()) == {16}
    main = np.concatenate([own[MAIN] for own in rows])
    assert len(set(main.tolist())) == 160, "the second epoch continues where the first stopped"


def test_an_epoch_is_one_pass_over_the_first_set_by_default() -> None:
    sizes = {MAIN: [50, 45], "web": [300], "old": [7]}
    assert mixed(sizes).num_samples == 160  # 95 rows at 10 a batch
    assert mixed(sizes, num_rows=33).num_samples == 48
    assert mixed(sizes, num_rows=33).num_batches == 3


def test_groups_of_a_mix_stay_whole() -> None:
    """Sets of 25 and 66 rows in groups of 4: what fills no group is filled up, by other rows each time."""
    sizes = {MAIN: [25], "web": [66]}
    order = mixed(sizes, {MAIN: Fraction(1, 3), "web": Fraction(2, 3)}, GroupedSettings(4), 24, num_rows=2400)
    rows: dict[str, list[int]] = {name: [] for name in sizes}
    for batch in order.batches(0):
        for name, own in by_set(order, batch).items():
            rows[name] += own.tolist()
            assert len(own) == {MAIN: 8, "web": 16}[name]
        groups = batch.reshape(-1, 4)
        assert ((groups < 25).all(axis=1) | (groups >= 25).all(axis=1)).all()
    for name, size, num_groups in ((MAIN, 28, 6), ("web", 68, 16)):
        turns = [rows[name][start : start + size] for start in range(0, len(rows[name]) - size + 1, size)]
        assert all(set(turn) == set(range(sum(sizes[name]))) for turn in turns)
        assert len({tuple(sorted((Counter(turn) - Counter(set(turn))).elements())) for turn in turns}) > 5
        whole = [sum(len(set(np.array(t[i : i + 4]) // 4)) == 1 for i in range(0, size, 4)) for t in turns]
        assert set(whole) == {num_groups}


def test_a_set_of_one_row_fills_its_groups() -> None:
    order = mixed({MAIN: [30], "web": [1], "old": [6]}, each=GroupedSettings(4), batch_size=32)
    for batch in run(order, 2):
        assert by_set(order, batch)["web"].tolist() == [0] * 8


def test_every_rank_gets_its_part_of_each_set() -> None:
    order = mixed({MAIN: [100], "web": [90], "old": [80]}, batch_size=64)
    for batch in order.batches(0):
        for rank_rows in np.split(batch, 4):
            counts = [len(own) for own in by_set(order, rank_rows).values()]
            assert np.abs(np.array(counts) - [10, 4, 2]).max() <= 1


def test_a_set_that_is_not_trained_on_is_left_out() -> None:
    assert split_fractions(
        parse_mixture({"a": {"folder": "x", "fraction": 0.3}, "b": {"folder": "y", "fraction": 0.7}})
    ) == {
        "a": Fraction(3, 10),
        "b": Fraction(7, 10),
    }
    assert split_fractions(parse_mixture({"a": {"folder": "x", "fraction": 0.3}, "b": None})) == {
        MAIN: Fraction(7, 10),
        "a": Fraction(3, 10),
    }


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        (
            {"web": {"foldr": "x", "fraction": 0.3}},
            r"no config key 'data.mixture.web.foldr'; there are \['folder', 'fraction'",
        ),
        ({"web": {"folder": "x"}}, "data.mixture.web.fraction: needs a value"),
        ({"web": {"folder": "x", "fraction": 0}}, "data.mixture.web.fraction=0: give a fraction of every batch"),
        (
            {"web": {"folder": "x", "fraction": 0.2, "id_namespace": "mine"}},
            "data.mixture.web.id_namespace=mine: give separate or shared",
        ),
        ({"main": {"folder": "x", "fraction": 0.2}}, "data.mixture.main: is the name of data.folder"),
        (
            {"a": {"folder": "x", "fraction": 0.7}, "b": {"folder": "x", "fraction": 0.4}},
            "the fractions sum to 1.1, must",
        ),
    ],
)
def test_mistakes_in_the_mixture_are_named(entries: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        split_fractions(parse_mixture(entries))


def test_fractions_too_small_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0.125 of a batch of 4 for 'old' is less than 1 rows"):
        mixed({MAIN: [9], "web": [9], "old": [9]}, batch_size=4)
    with pytest.raises(ValueError, match=r"0.125 of a batch of 16 for 'old' is less than 4 rows"):
        mixed({MAIN: [9], "web": [9], "old": [9]}, each=GroupedSettings(4))
    with pytest.raises(ValueError, match=r"data.batch_size=30: must be a multiple of 4"):
        mixed({MAIN: [9], "web": [9], "old": [9]}, each=GroupedSettings(4), batch_size=30)


def test_fixed_names_what_decides_the_order() -> None:
    sizes = {MAIN: [20], "web": [20], "old": [20]}
    fixed = mixed(sizes).state_key()
    for changed, name in (
        (mixed(sizes, batch_size=24), "batch_size"),
        (mixed(sizes, seed=1), "seed"),
        (mixed(sizes, num_rows=48), "rows_per_epoch"),
        (mixed(sizes, {**SHARES, "web": Fraction(1, 8), "old": Fraction(1, 4)}), "mix"),
        (mixed({**sizes, "web": [21]}), "mix.web.num_samples"),
        (mixed(sizes, each=WeightedSettings()), "order"),
    ):
        assert changed.state_key()[name] != fixed[name]
    assert fixed["mix"] == "5/8 main + 1/4 web + 1/8 old"


def own_samples(shards: ShardSet) -> list[Any]:
    return shards.read(range(len(shards)))


def test_a_concatenated_set_reads_as_its_parts(make_set: MakeSet) -> None:
    first, second = make_set(11, 4), make_set(7, 3)
    both = ConcatShardSet({MAIN: first, "web": second})
    assert (len(both), both.sizes, both.max_relevant) == (18, [*first.sizes, *second.sizes], 1)
    expected = [*own_samples(first), *(replace(s, sample_num=s.sample_num + 11) for s in own_samples(second))]
    assert both.read([17, 0, 11, 10]) == [expected[number] for number in (17, 0, 11, 10)]
    assert both.read([12], is_padding=True)[0].is_padding
    assert both.read_facts(13)["query_id"] == "q2"
    assert [both.span(idx) for idx in (0, len(first.sizes))] == [(0, first.sizes[0]), (11, 11 + second.sizes[0])]
    assert both.keys.tolist() == [*first.keys.tolist(), *second.keys.tolist()]
    assert both.find([hash_id("q9"), hash_id("q3")]) == {hash_id("q9"): 9, hash_id("q3"): 3}


def test_separate_ids_get_a_namespace(make_set: MakeSet) -> None:
    first, second = make_set(5), make_set(6)
    shared, own = ConcatShardSet({MAIN: first, "web": second}), ConcatShardSet({MAIN: first, "web": second}, {"web"})
    assert own.read(range(5)) == shared.read(range(5)) == own_samples(first)
    sample = own.read([7])[0]
    assert (sample.query_id, sample.product_id) == ("web:q2", "web:p2")
    assert (sample.target_ids, sample.reference_ids) == (("web:p2",), ("web:p2",))
    assert sample.inputs == shared.read([7])[0].inputs


def test_shared_product_ids_need_an_id_namespace(make_set: MakeSet) -> None:
    def catalog(num: int) -> ShardSet:
        return make_set(num)

    def refuse(*, web: str | None = None, old: str | None = None, num_old: int = 3) -> None:
        mix = {"web": MixtureEntry("w", 0.1, web), "old": MixtureEntry("o", 0.1, old)}
        validate_distinct_ids({MAIN: catalog(6), "web": catalog(4), "old": catalog(num_old)}, mix)

    with pytest.raises(
        ValueError, match=r"data.mixture.web: 4 of its products have ids of .*set-6.* the first is 'p0'; "
    ):
        refuse()
    with pytest.raises(
        ValueError, match=r"data.mixture.old: 3 .* give data.mixture.old.id_namespace=shared if they are the same"
    ):
        refuse(web="separate")
    refuse(web="separate", old="separate")
    refuse(web="shared", old="separate")
    refuse(web="shared", old="shared")


def test_two_sets_of_a_mix_may_have_ids_in_common_too() -> None:
    def catalog(*keys: int) -> Any:
        return SimpleNamespace(keys=np.array(keys), folder="f", read_facts=lambda number: {"product_id": keys[number]})

    catalogs = {MAIN: catalog(1, 2), "web": catalog(3, 4), "old": catalog(5, 4)}
    with pytest.raises(ValueError, match=r"data.mixture.old: 1 of its products have ids of f too, the first is '4'"):
        validate_distinct_ids(catalogs, {"web": MixtureEntry("w", 0.1), "old": MixtureEntry("o", 0.1)})
    validate_distinct_ids(catalogs, {"web": MixtureEntry("w", 0.1, "separate"), "old": MixtureEntry("o", 0.1)})
