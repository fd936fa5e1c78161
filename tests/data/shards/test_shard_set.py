"""Shard sets give back what was written, any tar reader reads them, and damage is named."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import pickle
import random
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.open_shards import read_array_header
from mim_lightning.data.shards.shard_set import ShardError, ShardSet
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.types import NO_KEY, hash_id
from tests.data.conftest import MakeSet, jpeg
from tests.shard_sets import write_shard_set

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
    assert (first.target_ids, first.reference_ids, first.is_padding) == (("p1", "p2"), ("p3", "p1", "p2"), False)
    assert second.inputs == IMAGES[1]
    assert (second.query_id, second.target_ids, second.category) == (None, (), None)
    assert third.inputs == {"query_text": "text alone"}
    assert third.product_id is None
    assert shards.read([2], is_padding=True)[0].is_padding
    assert (shards.sizes, len(shards), shards.max_relevant) == ([2, 1], 3, 3)
    assert shards.keys.tolist() == [hash_id("q-ä"), hash_id("p2"), hash_id("q2")]


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


def test_reading_in_any_order_and_from_a_copy(make_set: MakeSet) -> None:
    shards = make_set()
    numbers = np.random.default_rng(0).permutation(23).tolist()
    assert [sample.query_id for sample in shards.read(numbers)] == [f"q{number}" for number in numbers]
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read(numbers) == shards.read(numbers)


def test_a_rewritten_set_is_read_again(tmp_path: Path) -> None:
    """An open shard of the old files must not answer for the new ones."""
    folder = tmp_path / "set"
    for text in ("first", "other, and longer"):
        write_shard_set(folder, [Record({}, {"query_id": text}) for _ in range(3)], 3, 3)
        assert ShardSet(folder).read([2])[0].query_id == text
        folder.rename(tmp_path / f"moved {text}")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def overwrite(text: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[512 : 512 + len(text)] = text
        path.write_bytes(bytes(data))

    return change


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing shard": ("000000.tar", Path.unlink, "000000.tar: the shard is missing"),
    "truncated tar": ("000000.tar", cut, "000000.tar: damaged .it has 700 bytes, the index says 10,240"),
    "empty tar": ("000000.tar", lambda path: path.write_bytes(b""), "000000.tar: damaged .it has 0 bytes"),
    "flipped json": ("000000.tar", overwrite(b"["), "000000.tar, sample 0: damaged"),
    "flipped letters": ("000000.tar", overwrite(b'{"\xff\xfe'), "000000.tar, sample 0: damaged"),
    "folder as shard": ("000000.tar", as_folder, "000000.tar: damaged .is a folder, not a file.; run prepare again"),
    "folder as index": ("000000.npy", as_folder, "000000.npy: damaged .is a folder, not a file.; run prepare again"),
    "folder as set index": (
        "index.json",
        as_folder,
        "index.json: damaged .is a folder, not a file.; run prepare again",
    ),
    "missing index": ("000000.npy", Path.unlink, "000000.npy: the byte index of the shard is missing"),
    "cut index": ("000000.npy", lambda path: path.write_bytes(path.read_bytes()[:-8]), "000000.npy: damaged"),
    "empty index": ("000000.npy", lambda path: path.write_bytes(b""), "000000.npy: damaged"),
    "foreign index": ("000000.npy", lambda path: np.save(path, np.zeros((1, 3, 2))), "000000.npy: damaged"),
    "missing set index": ("index.json", Path.unlink, "not a finished shard set"),
    "damaged set index": ("index.json", lambda path: path.write_text("{"), "index.json: damaged"),
    "half an index": (
        "index.json",
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"crc32": [1]})),
        "index.json: damaged .sizes, bytes and crc32 differ in length",
    ),
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


@pytest.mark.parametrize("name", ["index.json", "000000.npy", "000000.tar"])
def test_a_file_that_may_not_be_read_is_named_with_the_reason(
    written: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = errno.EACCES

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:  # the mode of a file does not stop root
        def refuse(path: Any, *args: Any, **options: Any) -> Any:
            if str(path) == str(written / name):
                raise OSError(code, os.strerror(code), str(path))
            return function(path, *args, **options)

        return refuse

    monkeypatch.setattr(Path, "open", refusing(Path.open))
    monkeypatch.setattr(os, "open", refusing(os.open))
    with pytest.raises(ShardError, match=f"^{written}/{name}: Permission denied$"):
        ShardSet(written).read([0])
    code = errno.EMFILE
    with pytest.raises(OSError, match="Too many open files"):  # no fault of the file
        ShardSet(written).read([0])


@pytest.mark.parametrize("place", [0, 700, -1])
def test_the_checksum_detects_a_flipped_byte(written: Path, place: int) -> None:
    """An image with another byte may well decode; only the checksum of its shard knows."""
    path = written / "000000.tar"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"{path}: damaged .its checksum is [0-9a-f]{{8}}, the index says"):
        ShardSet(written, CacheSettings(verify=True)).read([0])
    assert ShardSet(written, CacheSettings(verify=True)).read([2])[0].query_id == "q2"


def test_a_set_of_the_first_format_is_read(written: Path) -> None:
    """The first format has no checksums and no column but the keys."""
    path = written / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({"version": 1} | {key: index[key] for key in ("sizes", "members", "max_relevant")}))
    for column in ("product_keys", "category_keys", "weights"):
        (written / f"{column}.npy").unlink()
    shards = ShardSet(written, CacheSettings(verify=True))
    assert [sample.query_id for sample in shards.read([2, 0])] == ["q2", "q-ä"]
    with pytest.raises(ValueError, match=f"{written}: has no weights.npy; run prepare again"):
        shards.column("weights")


def test_columns_of_every_sample(written: Path) -> None:
    shards = ShardSet(written)
    assert shards.column("product_keys").tolist() == [hash_id("p1"), hash_id("p2"), NO_KEY]
    assert shards.column("category_keys").tolist() == [hash_id("mugs"), NO_KEY, hash_id("cups")]
    assert shards.column("weights").tolist() == [1.0, 1.0, 1.0]
    assert isinstance(shards.column("weights"), np.memmap)


def test_shards_and_samples_find_each_other(make_set: MakeSet) -> None:
    shards = make_set(23, 9)  # of 8, 8 and 7
    assert [shards.span(idx) for idx in range(3)] == [(0, 8), (8, 16), (16, 23)]
    assert shards.shards_of(range(23)).tolist() == [0] * 8 + [1] * 8 + [2] * 7
    assert shards.shard_name(2) == f"{shards.folder}/000002.tar"


def test_the_first_sample_of_a_key_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are searched part by part: those of a large set would fill the memory."""
    monkeypatch.setattr("mim_lightning.data.shards.shard_set.KEYS_AT_ONCE", 4)
    ids = ["a", "b", "a", "c", "b", "d", "a", "e", "d", "f"]
    write_shard_set(tmp_path / "set", [Record({}, {"query_id": name}) for name in ids], 10, 3)
    wanted = [hash_id(name) for name in ("d", "b", "nobody", "f", "a")]
    expected = {hash_id(name): ids.index(name) for name in ("a", "b", "d", "f")}
    assert ShardSet(tmp_path / "set").find(wanted) == expected
    assert ShardSet(tmp_path / "set").find(hash_id("e")) == {hash_id("e"): 7}


def test_a_disk_that_fails_is_named(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ShardSet(written)
    shards.read([0])

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", fail)
    with pytest.raises(ShardError, match=f"{written}/000000.tar, sample 0: damaged .* Input/output error"):
        shards.read([0])


def test_the_rest_of_a_damaged_set_is_read(written: Path) -> None:
    (written / "000000.tar").unlink()
    assert ShardSet(written).read([2])[0].query_id == "q2"


def test_an_image_is_stored_unchanged(tmp_path: Path) -> None:
    data = jpeg()
    write_shard_set(tmp_path / "set", [Record({"query_image": data}, {"query_id": "q"})], 1, 1)
    assert ShardSet(tmp_path / "set").read([0])[0].inputs["query_image"] == data


def test_headers_are_read_in_several_threads() -> None:
    """A collection of garbage within a parse lets another thread parse, which Python 3.11 miscounts."""
    content = io.BytesIO()
    np.save(content, np.zeros((2, 3)))
    threshold, switch = gc.get_threshold(), lambda *_: time.sleep(random.random() * 1e-4)
    gc.callbacks.append(switch)
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(4) as pool:
            headers = list(pool.map(lambda _: read_array_header(io.BytesIO(content.getvalue())), range(300)))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(switch)
    assert set(headers) == {((2, 3), False, np.dtype("float64"))}


@pytest.mark.parametrize("array", [np.zeros(3, "<i8"), np.zeros((0, 2, 5), ">u2"), np.ones((4, 2), "?", order="F")])
def test_headers_are_read_as_numpy_reads_them(array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array)
    file.seek(8)
    expected = np.lib.format.read_array_header_1_0(file)
    first = file.tell()
    file.seek(0)
    assert read_array_header(file) == expected
    assert file.tell() == first


@pytest.mark.parametrize("array", [np.array("text"), np.array([{}], dtype=object), np.zeros(2, [("a", "<i8")])])
def test_arrays_of_anything_but_numbers_are_refused(array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    with pytest.raises(ValueError, match=r"^no array of numbers$"):
        read_array_header(file)
