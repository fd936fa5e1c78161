"""Shard sets give back what was written, any tar reader reads them, and damage is named."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.data.shards import Record, ShardSet, write_shard_set
from mim_lightning.types import id_key
from tests.data.conftest import MakeSet, jpeg

FACTS = [
    {
        "query_id": "q-ä",
        "product_id": "p1",
        "asked_ids": ["p1", "p2"],
        "shown_ids": ["p3", "p1", "p2"],
        "category": "mugs",
        "product_text": "Red mug",
        "query_text": "grün",
    },
    {"product_id": "p2", "category": None, "product_text": None},
    {"query_id": "q2", "query_text": "text alone", "asked_ids": ["p2"], "shown_ids": ["p2"], "category": "cups"},
]
IMAGES = [{"product_image": b"product", "query_image": b"query"}, {"product_image": b"x" * 1500}, {}]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    records = [Record(images, facts) for images, facts in zip(IMAGES, FACTS, strict=True)]
    write_shard_set(tmp_path / "set", iter(records), 3, samples_per_shard=2)
    return tmp_path / "set"


def test_round_trip_of_every_field(written: Path) -> None:
    shards = ShardSet(written)
    first, second, third = shards.read([0, 1, 2])
    assert first.inputs == {**IMAGES[0], "product_text": "Red mug", "query_text": "grün"}
    assert (first.sample_num, first.query_id, first.product_id, first.category) == (0, "q-ä", "p1", "mugs")
    assert (first.asked_ids, first.shown_ids, first.is_padding) == (("p1", "p2"), ("p3", "p1", "p2"), False)
    assert second.inputs == IMAGES[1]
    assert (second.query_id, second.asked_ids, second.category) == (None, (), None)
    assert third.inputs == {"query_text": "text alone"}
    assert third.product_id is None
    assert shards.read([2], is_padding=True)[0].is_padding
    assert (shards.sizes, len(shards), shards.max_relevant) == ([2, 1], 3, 3)
    assert shards.keys.tolist() == [id_key("q-ä"), id_key("p2"), id_key("q2")]


def test_any_tar_reader_reads_a_shard(written: Path) -> None:
    members = []
    for path in sorted(written.glob("*.tar")):
        places = np.load(path.with_suffix(".npy"))
        with tarfile.open(path) as tar:
            for member in tar:
                members.append((member.name, tar.extractfile(member).read()))  # type: ignore[union-attr]
                assert [member.offset_data, member.size] in places.reshape(-1, 2).tolist()
    expected = []
    for number, (images, facts) in enumerate(zip(IMAGES, FACTS, strict=True)):
        files = {"json": json.dumps(facts, ensure_ascii=False).encode(), **images}
        expected += [(f"{number:012d}.{name}", data) for name, data in files.items()]
    assert members == expected


@pytest.mark.parametrize(("num", "per_shard", "sizes"), [(7, 3, [3, 2, 2]), (6, 3, [3, 3]), (1, 9, [1])])
def test_shards_are_of_equal_size(make_set: MakeSet, num: int, per_shard: int, sizes: list[int]) -> None:
    shards = make_set(num, per_shard)
    assert shards.sizes == sizes
    assert [sample.query_id for sample in shards.read(range(num))] == [f"q{number}" for number in range(num)]


@pytest.mark.parametrize("announced", [2, 4])
def test_another_number_of_records_than_announced(tmp_path: Path, announced: int) -> None:
    records = [Record({}, {"product_id": str(number)}) for number in range(3)]
    with pytest.raises(ValueError, match=f"{announced} records announced"):
        write_shard_set(tmp_path / "set", records, announced, 2)
    with pytest.raises(ValueError, match="not a finished shard set"):
        ShardSet(tmp_path / "set")


def test_reading_in_any_order_and_from_a_copy(make_set: MakeSet) -> None:
    shards = make_set()
    numbers = np.random.default_rng(0).permutation(23).tolist()
    assert [sample.query_id for sample in shards.read(numbers)] == [f"q{number}" for number in numbers]
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read(numbers) == shards.read(numbers)


def test_a_set_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    """An open shard of the old files must not answer for the new ones."""
    folder = tmp_path / "set"
    for text in ("first", "other, and longer"):
        write_shard_set(folder, [Record({}, {"query_id": text}) for _ in range(3)], 3, 3)
        assert ShardSet(folder).read([2])[0].query_id == text
        folder.rename(tmp_path / f"moved {text}")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def overwrite(text: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[512 : 512 + len(text)] = text
        path.write_bytes(bytes(data))

    return change


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing shard": ("000000.tar", Path.unlink, "000000.tar: the shard is missing"),
    "truncated tar": ("000000.tar", cut, "000000.tar, sample 0: damaged .the file ends"),
    "empty tar": ("000000.tar", lambda path: path.write_bytes(b""), "000000.tar, sample 0: damaged"),
    "flipped json": ("000000.tar", overwrite(b"["), "000000.tar, sample 0: damaged"),
    "flipped letters": ("000000.tar", overwrite(b'{"\xff\xfe'), "000000.tar, sample 0: damaged"),
    "missing index": ("000000.npy", Path.unlink, "000000.npy: the byte index of the shard is missing"),
    "cut index": ("000000.npy", lambda path: path.write_bytes(path.read_bytes()[:-8]), "000000.npy: damaged"),
    "empty index": ("000000.npy", lambda path: path.write_bytes(b""), "000000.npy: damaged"),
    "foreign index": ("000000.npy", lambda path: np.save(path, np.zeros((1, 3, 2))), "000000.npy: damaged"),
    "missing set index": ("index.json", Path.unlink, "not a finished shard set"),
    "damaged set index": ("index.json", lambda path: path.write_text("{"), "index.json: damaged"),
    "other version": (
        "index.json",
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99})),
        "shard format 99",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(written: Path, kind: str) -> None:
    name, damage, words = DAMAGE[kind]
    damage(written / name)
    with pytest.raises(ValueError, match=words) as caught:
        ShardSet(written).read([0])
    assert str(written) in str(caught.value)


def test_the_rest_of_a_damaged_set_is_read(written: Path) -> None:
    (written / "000000.tar").unlink()
    assert ShardSet(written).read([2])[0].query_id == "q2"


def test_a_picture_is_stored_as_it_comes(tmp_path: Path) -> None:
    data = jpeg()
    write_shard_set(tmp_path / "set", [Record({"query_image": data}, {"query_id": "q"})], 1, 1)
    assert ShardSet(tmp_path / "set").read([0])[0].inputs["query_image"] == data
