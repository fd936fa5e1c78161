"""Samples are found by id in several sets: the first set that can show one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mim_lightning.data.shards.lookup import find_samples
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.writer import Record
from tests.shard_sets import write_shard_set

MakeCatalogue = Callable[[str, Mapping[str, list[bytes | None]]], ShardSet]


@pytest.fixture
def make_catalogue(tmp_path: Path) -> MakeCatalogue:
    """Return a function that writes a set: a row for each picture of each product, None for a row without one."""

    def make(name: str, pictures: Mapping[str, list[bytes | None]]) -> ShardSet:
        records = [
            Record({"product_image": data} if data else {}, {"product_id": product_id, "product_text": name})
            for product_id, rows in pictures.items()
            for data in rows
        ]
        write_shard_set(tmp_path / name, records, len(records), samples_per_shard=2)
        return ShardSet(tmp_path / name)

    return make


def test_the_first_of_the_first_set_that_has_one(make_catalogue: MakeCatalogue) -> None:
    one = make_catalogue("one", {"a": [b"a1", b"a2"], "b": [b"b1"]})
    other = make_catalogue("other", {"b": [b"b2"], "c": [b"c2"]})
    found = find_samples([one, other], iter(["c", "b", "nobody", "a", "b"]))
    assert {item_id: sample.inputs["product_image"] for item_id, sample in found.items()} == {
        "a": b"a1", "b": b"b1", "c": b"c2",
    }  # fmt: skip
    assert all(sample.product_id == item_id for item_id, sample in found.items())
    assert find_samples([other, one], ["b"])["b"].inputs["product_text"] == "other"
    assert find_samples([], ["a"]) == find_samples([one], []) == {}


def test_a_sample_without_the_input_is_passed_over(make_catalogue: MakeCatalogue) -> None:
    one, other = make_catalogue("one", {"a": [None], "b": [None]}), make_catalogue("other", {"a": [b"a2"]})
    assert set(find_samples([one, other], ["a", "b"])) == {"a", "b"}
    found = find_samples([one, other], ["a", "b"], having="product_image")
    assert [sample.inputs["product_image"] for sample in found.values()] == [b"a2"] and set(found) == {"a"}


def test_what_is_damaged_or_gone_is_told_or_passed_over(make_catalogue: MakeCatalogue) -> None:
    one = make_catalogue("one", {"a": [b"a1"], "b": [b"b1"], "c": [b"c1"]})
    other = make_catalogue("other", {"a": [b"a2"]})
    (one.folder / "000000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000000\.tar: damaged .it has 0 bytes"):
        find_samples([one, other], ["a", "c"])
    found = find_samples([one, other], ["a", "b", "c"], skip_damaged=True)
    assert {item_id: sample.inputs["product_image"] for item_id, sample in found.items()} == {"a": b"a2", "c": b"c1"}
    shutil.rmtree(one.folder)
    with pytest.raises((OSError, ValueError)):
        find_samples([one, other], ["a"])
    assert find_samples([one, other], ["a"], skip_damaged=True)["a"].inputs["product_image"] == b"a2"
