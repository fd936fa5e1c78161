"""Sets at an address are read as sets in a folder, by workers too, and what a store does wrong is named in time."""

from __future__ import annotations

import json
import logging
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.corrupt_samples import CorruptSamplePolicy, load_batch
from mim_lightning.data.loading.loader import SequentialLoader, StreamLoader
from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.preparation import prepare_shards
from mim_lightning.data.preparation.prepared import ShardSettings, open_prepared
from mim_lightning.data.sampling.shuffled import ShuffledOrder
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.lookup import find_samples
from mim_lightning.data.shards.prefetcher import Prefetcher
from mim_lightning.data.shards.shard_set import ShardError, ShardSet
from mim_lightning.io import remote
from mim_lightning.io.remote import download
from mim_lightning.io.retry import RetryPolicy
from mim_lightning.types import ImageSpec
from tests.data.conftest import MakeSet
from tests.data.stores import FaultyStore, in_processes, serving, watch_disk_usage

SPECS = {"query_image": ImageSpec((8, 8)), "product_image": ImageSpec((8, 8))}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(RetryPolicy, "pause", lambda *_: 0.02)
    prefetcher = Prefetcher()  # its process is forked in the test, and has what the test changes
    monkeypatch.setattr("mim_lightning.data.shards.remote_files._PREFETCHER", prefetcher)
    yield
    if prefetcher._process is not None:
        prefetcher._process.kill()
        prefetcher._process.join()


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """s3fs's file system of a server on loopback, which whatever speaks S3 finds by the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
    variables |= {"DEFAULT_REGION": "us-east-1", "EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(f"AWS_{name}", value)
        remote._open_file_system.cache_clear()
        yield fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    remote._open_file_system.cache_clear()
    server.stop()


@pytest.fixture
def bucket(s3: Any) -> Iterator[Any]:
    """The file system, with an empty bucket."""
    s3.mkdir("shop")
    yield s3
    s3.rm("shop", recursive=True)


def settings(tmp_path: Path, **options: Any) -> CacheSettings:
    return CacheSettings(str(tmp_path / "cache"), **({"timeout": 20, "retries": 1} | options))


def loader(shards: ShardSet, num_workers: int = 0, batch_size: int = 8, **options: Any) -> StreamLoader:
    order = ShuffledOrder(tuple(shards.sizes), batch_size, seed=1, window=2)
    return StreamLoader(shards, Collate(SPECS, shards.max_relevant), order, num_workers=num_workers, **options)


def numbers(batches: Any) -> list[list[int]]:
    return [batch.sample_nums[~batch.is_padding].tolist() for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_set_in_s3_is_read_as_on_disk(make_set: MakeSet, bucket: Any, tmp_path: Path, num_workers: int) -> None:
    written = make_set(40, 9)
    bucket.put(str(written.folder), "shop/train", recursive=True)
    shards = ShardSet("s3://shop/train", settings(tmp_path))
    assert shards.read(range(40)) == written.read(range(40))  # the client is open before workers are forked
    assert pickle.loads(pickle.dumps(shards)).read([39]) == written.read([39])
    assert shards.keys.tolist() == written.keys.tolist()
    assert shards.find([int(written.keys[7])]) == {int(written.keys[7]): 7}
    cold = ShardSet("s3://shop/train", CacheSettings(str(tmp_path / "another"), timeout=20))
    expected = list(loader(written))
    for stream in (loader(cold, num_workers), loader(shards, num_workers)):
        found = list(stream)
        assert numbers(found) == numbers(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.inputs["query_image"] == theirs.inputs["query_image"]).all()


def test_prepared_data_in_s3(shop: ManifestSource, bucket: Any, tmp_path: Path) -> None:
    local = prepare_shards(shop, tmp_path / "prepared", ShardSettings(samples_per_shard=2))
    bucket.put(str(tmp_path / "prepared"), "shop/prepared", recursive=True)
    prepared = open_prepared("s3://shop/prepared/", settings(tmp_path))
    assert prepared.describe() == local.describe()
    assert prepared.splits() == ["train", "val"]
    for ours, theirs in (
        (prepared.catalog(), local.catalog()),
        (prepared.queries("train"), local.queries("train")),
    ):
        assert ours.read(range(len(ours))) == theirs.read(range(len(theirs)))
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train', 'val'\]"):
        prepared.queries("test")
    with pytest.raises(ValueError, match="s3://shop/elsewhere: no prepared data here"):
        open_prepared("s3://shop/elsewhere", settings(tmp_path))


def test_prepared_data_on_a_web_server_that_lists_nothing(shop: ManifestSource, tmp_path: Path) -> None:
    local = prepare_shards(shop, tmp_path / "prepared", ShardSettings(samples_per_shard=2))
    with serving(tmp_path / "prepared") as store:
        prepared = open_prepared(store.address, settings(tmp_path))
        assert prepared.queries("val").read([0]) == local.queries("val").read([0])
        with pytest.raises(ValueError, match="/queries/test: not a finished shard set"):
            prepared.queries("test")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("000001.tar", None, "s3://shop/train/000001.tar: there is no such file"),
        ("000001.npy", None, "s3://shop/train/000001.npy: there is no such file"),
        ("000001.tar", lambda data: data[:-700], "s3://shop/train/000001.tar: it has .* bytes, the index says"),
        ("000001.tar", lambda data: data[:900] + b"?" + data[901:], "000001.tar: its checksum is .*, the index says"),
        ("000001.npy", lambda data: data[:-9], "s3://shop/train/000001.npy: "),
        ("index.json", None, "s3://shop/train: not a finished shard set"),
        ("index.json", lambda data: data[:-9], "s3://shop/train/index.json: damaged"),
    ],
)
def test_damage_in_s3_is_named(
    make_set: MakeSet, bucket: Any, tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None, words: str
) -> None:
    bucket.put(str(make_set(20, 9).folder), "shop/train", recursive=True)
    if change is None:
        bucket.rm(f"shop/train/{name}")
    else:
        bucket.pipe(f"shop/train/{name}", change(bucket.cat(f"shop/train/{name}")))
    with pytest.raises(ValueError, match=words) as caught:
        ShardSet("s3://shop/train", settings(tmp_path)).read([8, 0])
    assert "\n" not in str(caught.value)


def test_a_store_that_is_not_there_is_named_in_time(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ShardError, match=r"http://127.0.0.1:9/set/index.json: .*tried 2 times"):
        ShardSet("http://127.0.0.1:9/set", settings(tmp_path))
    assert time.monotonic() - started < 60


def test_importing_the_client_takes_no_time_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"content")
    find, pauses = fsspec.get_filesystem_class, [1.0]

    def find_slowly(protocol: str) -> Any:
        time.sleep(pauses.pop() if pauses else 0.0)
        return find(protocol)

    for module in (fsspec, fsspec.core):
        monkeypatch.setattr(module, "get_filesystem_class", find_slowly)
    with serving(tmp_path) as store:
        assert download(f"{store.address}/file", tmp_path / "found", RetryPolicy(0.9, 0)).read_bytes() == b"content"


@pytest.fixture
def served(make_set: MakeSet) -> Iterator[tuple[ShardSet, FaultyStore]]:
    """A set of 45 samples in 5 shards, and a store that has it."""
    written = make_set(45, 9)
    with serving(Path(written.folder)) as store:
        yield written, store


@pytest.mark.parametrize(
    ("fault", "num_workers"), [("error", 0), ("error", 1), ("stall", 0), ("silent", 1), ("short", 0), ("flipped", 1)]
)
def test_a_store_error_passes_through_workers(
    served: tuple[ShardSet, FaultyStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, num_workers: int
) -> None:
    _, store = served
    shards = ShardSet(store.address, settings(tmp_path))
    shards.read([27])
    (copy,) = (tmp_path / "cache").rglob("000003.tar")
    copy.unlink()
    shards.read([0, 9, 18, 36])  # all but that shard are here: nothing else is downloaded in the short time below
    monkeypatch.setattr(CacheSettings, "retry_policy", RetryPolicy(0.4, 1))
    store.fail("000003.tar", fault)
    with pytest.raises(ShardError, match=f"{store.address}/000003.tar: ") as caught:
        list(loader(shards, num_workers))
    assert "tried 2 times" in str(caught.value)
    assert {name: count for name, count in store.asked.items() if name.endswith(".npy")} == dict.fromkeys(
        [f"{idx:06d}.npy" for idx in range(5)], 1
    )
    traceback.clear_frames(caught.tb)  # ends the workers now; the garbage collector would wait five seconds for each


def test_a_transient_error_changes_nothing(served: tuple[ShardSet, FaultyStore], tmp_path: Path) -> None:
    written, store = served
    for name, fault in [
        ("000000.tar", "error"),
        ("000001.tar", "flipped"),
        ("000002.npy", "cut"),
        ("index.json", "short"),
    ]:
        store.fail(name, fault, times=1)
    shards = ShardSet(store.address, settings(tmp_path))
    assert shards.read(range(45)) == written.read(range(45))
    assert {name: store.asked[name] for name in ("000000.tar", "000001.tar", "000003.tar")} == {
        "000000.tar": 2,
        "000001.tar": 2,
        "000003.tar": 1,
    }


def test_ranks_and_workers_fetch_a_shard_once(served: tuple[ShardSet, FaultyStore], tmp_path: Path) -> None:
    _, store = served
    shards = ShardSet(store.address, settings(tmp_path))

    def stream(rank: int) -> None:
        order = ShuffledOrder(tuple(shards.sizes), 8)
        ranked = StreamLoader(shards, Collate(SPECS, shards.max_relevant), order, rank, 2, num_workers=2)
        assert sum(len(batch) for _ in range(2) for batch in ranked) == 2 * 23

    assert in_processes(stream, 2) == [0, 0]
    assert {name: count for name, count in store.asked.items() if name.endswith(".tar")} == dict.fromkeys(
        [f"{idx:06d}.tar" for idx in range(5)], 1
    )
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_are_prefetched_while_a_batch_is_read(
    served: tuple[ShardSet, FaultyStore], tmp_path: Path, num_workers: int
) -> None:
    _, store = served
    shards = ShardSet(store.address, settings(tmp_path, prefetch_shards=5))
    batches = iter(SequentialLoader(shards, Collate(SPECS), range(5), 9, num_workers))
    next(batches)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cache").rglob("*.tar"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 5, "one batch was read, the shards of all are here"
    assert sum(len(batch) for batch in batches) == 36
    assert max(store.asked[f"{idx:06d}.tar"] for idx in range(5)) == 1


def test_a_cache_of_a_part_of_the_set(make_set: MakeSet, tmp_path: Path) -> None:
    """Two ranks of two workers, over three epochs: the bound holds, and no shard is evicted before it is finished."""
    written = make_set(90, 5)
    num_shards = len(written.sizes)
    num_bytes = sum(path.stat().st_size for path in Path(written.folder).glob("0*"))
    barrier, cache = get_context("fork").Barrier(2), tmp_path / "cache"
    with serving(Path(written.folder)) as store:
        limit = num_bytes // 2
        shards = ShardSet(store.address, settings(tmp_path, max_size=limit, prefetch_shards=2, connections=3))

        def stream(rank: int) -> None:
            order = ShuffledOrder(tuple(shards.sizes), 6, seed=3, window=2)
            ranked = StreamLoader(shards, Collate(SPECS, shards.max_relevant), order, rank, 2, num_workers=2)
            for _ in range(3):
                for batch in ranked:
                    assert len(batch) == 3
                    barrier.wait(60)  # as the collectives of a step do

        with watch_disk_usage(cache) as sizes:
            assert in_processes(stream, 2) == [0, 0]
    assert 0 < max(sizes) <= limit
    downloads = [store.asked[f"{idx:06d}.tar"] for idx in range(num_shards)]
    assert sum(downloads) < 3 * num_shards, "what an epoch left is not downloaded again"
    assert not list(cache.rglob("*.partial*"))


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_few_samples_are_read_without_their_shards(make_set: MakeSet, tmp_path: Path, has_ranges: bool) -> None:
    written = make_set(90, 30)
    with serving(Path(written.folder), has_ranges) as store:
        shards = ShardSet(store.address, settings(tmp_path))
        ids = ["q3", "q40", "q89"]
        before = store.num_bytes
        found = find_samples([shards], ids)
        assert found == find_samples([written], ids)
        assert shards.read_facts(50) == written.read_facts(50)
        if has_ranges:
            assert not list((tmp_path / "cache").rglob("*.tar")), "no shard was downloaded"
            sample_bytes = Path(written.folder, "000000.tar").stat().st_size / 30
            assert store.num_bytes - before < 8 * sample_bytes + written.keys.nbytes + 1000
            assert shards.read_few(range(30)) == written.read(range(30)), "many: the shard is downloaded"
            assert len(list((tmp_path / "cache").rglob("*.tar"))) == 1
        assert list(shards.all_facts()) == list(written.all_facts())
        store.fail("000001.tar", "error")
        assert ShardSet(store.address, settings(tmp_path)).read_few([31]) == written.read([31]), "from the cache"
        other = ShardSet(store.address, CacheSettings(str(tmp_path / "other"), timeout=20, retries=1, verify=True))
        with pytest.raises(ShardError, match=f"{store.address}/000001.tar: .*tried 2 times"):
            other.read_few([31])


def test_a_rewritten_set_is_downloaded_again(make_set: MakeSet, tmp_path: Path) -> None:
    first, second = make_set(9, 9), make_set(9, 9)
    content = Path(second.folder) / "000000.tar"
    place = tmp_path / "place"
    place.symlink_to(first.folder)
    with serving(place) as store:
        assert ShardSet(store.address, settings(tmp_path)).read([0])[0].query_id == "q0"
        other = make_set(5, 5)
        place.unlink()
        place.symlink_to(other.folder)
        again = ShardSet(store.address, settings(tmp_path))
        assert len(again) == 5 and again.read([4]) == other.read([4])
    assert content.is_file()


def test_a_damaged_copy_is_downloaded_again(served: tuple[ShardSet, FaultyStore], tmp_path: Path) -> None:
    """Only data.cache.verify compares a cached copy with its checksum."""
    written, store = served
    assert ShardSet(store.address, settings(tmp_path)).read([0]) == written.read([0])
    (copy,) = (tmp_path / "cache").rglob("000000.tar")
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert ShardSet(store.address, settings(tmp_path, verify=True)).read([0]) == written.read([0])
    assert copy.read_bytes() == (Path(written.folder) / "000000.tar").read_bytes()


def test_a_damaged_copy_of_a_byte_index_is_downloaded_again(
    served: tuple[ShardSet, FaultyStore], tmp_path: Path
) -> None:
    written, store = served
    assert ShardSet(store.address, settings(tmp_path)).read([0]) == written.read([0])
    (copy,) = (tmp_path / "cache").rglob("000000.npy")
    copy.write_bytes(bytes(copy.stat().st_size))
    assert ShardSet(store.address, settings(tmp_path, verify=True)).read([0]) == written.read([0])
    assert copy.read_bytes() == (Path(written.folder) / "000000.npy").read_bytes()


def test_a_byte_index_that_does_not_fit_is_downloaded_once_more(make_set: MakeSet, tmp_path: Path) -> None:
    folder = Path(make_set(9, 9).folder)
    whole = (folder / "000000.npy").read_bytes()
    (folder / "000000.npy").write_bytes(whole[:-8] + b"\1" + whole[-7:])  # of the last image
    with serving(folder) as store:
        shards = ShardSet(store.address, settings(tmp_path))
        with pytest.raises(ShardError, match=rf"{store.address}/000000.npy: its copy in {tmp_path}/cache is damaged"):
            shards.read([0])
        assert store.asked["000000.npy"] == 2, "tried once more"
        (folder / "000000.npy").write_bytes(whole)
        assert ShardSet(store.address, settings(tmp_path)).read([0])[0].query_id == "q0"


def test_damage_that_no_checksum_tells_is_not_kept(make_set: MakeSet, tmp_path: Path) -> None:
    """The first format had no checksums: when the store has mended the shard, it is fetched again."""
    folder = Path(make_set(9, 9).folder)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(
        json.dumps({key: index[key] for key in ("sizes", "max_relevant")} | {"version": 1})
    )
    whole = (folder / "000000.tar").read_bytes()
    (folder / "000000.tar").write_bytes(whole[:512] + b"?" + whole[513:])
    with serving(folder) as store:
        shards = ShardSet(store.address, settings(tmp_path))
        with pytest.raises(ShardError, match=f"{store.address}/000000.tar, sample 0: damaged"):
            shards.read([0])
        (folder / "000000.tar").write_bytes(whole)
        assert shards.read([0])[0].query_id == "q0"


def test_a_cache_of_one_shard_downloads_each_of_a_batch_once(
    served: tuple[ShardSet, FaultyStore], tmp_path: Path
) -> None:
    """Not for every row: of shards of a usual size a batch would take an hour."""
    local, store = served
    largest = max(map(local.shard_bytes, range(len(local.sizes))))
    shards = ShardSet(store.address, CacheSettings(str(tmp_path / "small"), largest, timeout=20, prefetch_shards=0))
    mixed = [start + row for row in range(9) for start in (18, 0, 36)]
    batch, _ = load_batch(shards, Collate(SPECS, shards.max_relevant), [*mixed, mixed[0]], 1, (0, 0))
    expected, _ = load_batch(local, Collate(SPECS, local.max_relevant), [*mixed, mixed[0]], 1, (0, 0))
    assert (
        batch.sample_nums.tolist() == [*mixed, mixed[0]] and batch.query_keys.tolist() == expected.query_keys.tolist()
    )
    assert all((batch.inputs[name] == expected.inputs[name]).all() for name in SPECS)
    assert {name: store.asked[name] for name in store.asked if name.endswith(".tar")} == {
        "000000.tar": 1,
        "000002.tar": 1,
        "000004.tar": 1,
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreachable_shard_is_skipped_and_counted(
    served: tuple[ShardSet, FaultyStore], tmp_path: Path, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    _, store = served
    shards = ShardSet(store.address, settings(tmp_path))
    store.fail("000003.tar", "error")
    stream = loader(shards, num_workers, policy=CorruptSamplePolicy("skip", "20%"))
    with caplog.at_level(logging.WARNING):
        batches = list(stream)
    assert [len(batch) for batch in batches] == [8] * 5 + [5]
    assert sorted(number for batch in numbers(batches) for number in batch) == [*range(27), *range(36, 45)]
    assert stream.skipped.num_skipped == 9
    messages = [record.getMessage() for record in caplog.records if "skipped: " in record.getMessage()]
    assert len(messages) == 1 and f"{store.address}/000003.tar" in messages[0]


def test_a_part_of_a_file_of_json_counts_as_a_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[str | OSError] = iter([OSError("reset"), "{", OSError("reset"), "[", "{}"])

    def answer(url: str, target: Path, timeout: float) -> None:
        found = next(answers)
        if isinstance(found, OSError):
            raise found
        target.write_text(found)

    monkeypatch.setattr(remote, "_download_once", answer)
    assert remote.download_json("memory://shop/index.json", RetryPolicy(retries=3)) == b"[", "the last of four"
    assert remote.download_json("memory://shop/index.json", RetryPolicy(retries=3)) == b"{}"


def test_a_check_is_given_the_number_of_the_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that failed to come counts as a try, whatever the name of the file that is checked next."""
    answers: Iterator[str | OSError] = iter(["{", OSError("reset"), "{}"])
    tries: list[tuple[str, int]] = []

    def answer(url: str, target: Path, timeout: float) -> None:
        found = next(answers)
        if isinstance(found, OSError):
            raise found
        target.write_text(found)

    def check(path: Path, number: int) -> None:
        tries.append((path.read_text(), number))
        json.loads(path.read_text())

    monkeypatch.setattr(remote, "_download_once", answer)
    found = remote.download("memory://shop/index.try3", tmp_path / "index.try3", RetryPolicy(retries=3), check)
    assert found.read_text() == "{}" and tries == [("{", 0), ("{}", 2)]
