"""A Ray cluster writes the same data as the processes of one machine, to a folder and to a store, and resumes."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation import ray_engine
from mim_lightning.data.preparation.preparation import prepare_shards
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings, open_prepared
from mim_lightning.data.preparation.ray_cluster import RaySettings
from mim_lightning.data.preparation.ray_engine import prepare_with_ray
from mim_lightning.data.preparation.ray_tables import FileCount, ShopTables, catalog_rows, join_rows
from mim_lightning.data.preparation.ray_tasks import ShardJob, join_part, write_group
from mim_lightning.data.preparation.staging import staging_path
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.verify import verify_sets
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.io.store import Store
from tests.data.conftest import jpeg

SETTINGS = ShardSettings(samples_per_shard=8)
SETS = ["catalogue", "queries/train", "queries/val", "queries/test"]
RAY = RaySettings(rows_per_part=40)
NUM_PRODUCTS, NUM_QUERIES = 14, 40


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server that speaks S3, on loopback; the cluster's processes know it by the environment."""
    pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    names |= {"AWS_DEFAULT_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    import s3fs

    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def cluster(s3: str) -> Iterator[None]:
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options = {"address": "local", "num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
    options |= {
        "_system_config": {"idle_worker_killing_time_threshold_ms": 600_000}
    }  # a new one takes seconds to start
    for patience in (2, 1, 0):  # Ray gives itself 30 s to start, which a busy machine may exceed
        try:
            ray.init(**options, log_to_driver=False, logging_level="error", _node_ip_address="127.0.0.1")
            break
        except Exception:
            ray.shutdown()
            if not patience:
                raise
    yield
    ray.shutdown()


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Two tables of several files: products of no to two images, queries of one or two products, three splits."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(NUM_PRODUCTS):
        (pictures / f"{number}.jpg").write_bytes(jpeg(number, 12, 16))
    products = [
        {
            "product_id": f"p{number}",
            "image": [str(pictures / f"{number}.jpg"), str(pictures / f"{13 - number}.jpg")][: number % 3],
            "title": f"product {number}",
            "category": f"c{number % 4}",
            "price": 1.5 * number,
        }
        for number in range(NUM_PRODUCTS)
    ]
    queries = [
        {
            "query_id": f"q{number}",
            "split": "val" if number % 8 == 3 else "test" if number == 8 else "train",
            "image": str(pictures / f"{number % 5}.jpg"),
            "text": "wanted" if number % 2 else None,
            "product_id": [f"p{number % NUM_PRODUCTS}", "p2"][: 1 + number % 2],
            "shown_product_id": "p5" if number % 7 == 0 else None,
            "weight": 1.0 + number % 2,
        }
        for number in range(NUM_QUERIES)
    ]
    for i in range(2):
        table(tmp_path / "shop" / "products" / f"{i}.parquet", products[i::2])
    for i in range(2):
        table(tmp_path / "shop" / "queries" / f"part={i}" / "rows.parquet", queries[i::2])
    return tmp_path / "shop"


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the same steps here, one after the other: what is grouped by Ray is grouped by hand."""

    def count(tables: ShopTables, train_split: str) -> list[FileCount]:
        rows = [ray_engine._count_one(file, tables, train_split) for file in tables.files()]
        return ray_engine._parse_counts(rows)

    def written(
        tables: ShopTables, job: ShardJob, finished: frozenset[int], num_parts: int
    ) -> Iterator[dict[str, Any]]:
        grouped = []
        for file in tables.files():
            words = file["table"], file["file"], job.layout
            grouped += join_rows(tables, *words, num_parts, job.train_split)
        joined = [join_part(part, finished) for part in groups(pyarrow.concat_tables(grouped), "part")]
        for file in tables.files():
            if file["table"] == "products":
                joined += catalog_rows(tables, file["file"], job.layout, finished)
        for shard in groups(pyarrow.concat_tables(joined), "shard"):
            yield {name: values[0] for name, values in write_group(shard, job).items()}

    monkeypatch.setattr(ray_engine, "ray_cluster", lambda settings: nullcontext())
    monkeypatch.setattr(ray_engine, "_count", count)
    monkeypatch.setattr(ray_engine, "_write_shards", written)


def groups(table: Any, column: str) -> list[Any]:
    values = table[column].to_pylist()
    return [table.filter(pyarrow.array([other == value for other in values])) for value in dict.fromkeys(values)]


def source_of(shop: Path | str) -> ManifestSource:
    columns = {"queries": {"text": "text", "grade": None}}  # as they come from config: some are called as ours
    return ManifestSource(f"{shop}/products", f"{shop}/queries", columns)


def cache_in(folder: Path) -> CacheSettings:
    return CacheSettings(folder=str(folder / "cache"))


def content(shards: ShardSet) -> list[str]:
    """Return what each sample is, in an order of its own."""
    samples = shards.read(range(len(shards)))
    facts = [shards.read_facts(number) for number in range(len(shards))]
    weights = shards.column("weights").tolist()
    return sorted(
        json.dumps([fact, weight, {name: str(value) for name, value in sample.inputs.items()}], sort_keys=True)
        for sample, fact, weight in zip(samples, facts, weights, strict=True)
    )


def contents(prepared: PreparedData) -> dict[str, list[str]]:
    return {"catalogue": content(prepared.catalog())} | {
        split: content(prepared.queries(split)) for split in ("test", "train", "val")
    }


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


def test_the_cluster_writes_what_one_machine_writes(cluster: None, shop: Path, tmp_path: Path) -> None:
    here = prepare_shards(source_of(shop), tmp_path / "here", SETTINGS)
    folder = tmp_path / "cluster"
    there = prepare_with_ray(source_of(shop), folder, SETTINGS, RAY)
    assert contents(there) == contents(here)
    known = "source", "settings", "protocol"  # the rows are in other shards
    assert [there.describe()[key] for key in known] == [here.describe()[key] for key in known]
    assert len(there.queries("train")) > 40 and len(there.queries("train").sizes) == len(here.queries("train").sizes)
    assert verify_sets(folder, SETS).damaged == ()
    # what is there is opened, by either engine
    assert prepare_shards(source_of(shop), folder, SETTINGS) == there
    assert {path.name for path in folder.iterdir()} == {"catalogue", "queries", "settings.json", "skipped.csv"}


def test_from_a_store_to_a_store(cluster: None, s3: str, shop: Path, tmp_path: Path) -> None:
    import s3fs

    address = f"{s3}/{tmp_path.name}"
    s3fs.S3FileSystem().put(str(shop), f"{address}/tables", recursive=True)
    prepared = prepare_with_ray(source_of(f"{address}/tables"), f"{address}/out", SETTINGS, RAY)
    here = prepare_shards(source_of(shop), tmp_path / "here", SETTINGS)
    assert prepared.folder == f"{address}/out"
    assert contents(open_prepared(f"{address}/out", cache_in(tmp_path))) == contents(here)
    assert [Store(f"{address}/out").names(name) for name in ("receipts", "making.json")] == [[], []]
    assert verify_sets(f"{address}/out", SETS).damaged == ()


def test_rows_of_one_query_are_its_products_and_no_split_is_needed(
    no_cluster: None, shop: Path, tmp_path: Path
) -> None:
    (path,) = (shop / "queries" / "part=0").rglob("*.parquet")
    rows = pyarrow.parquet.read_table(path, partitioning=None).to_pylist()
    more = [rows[0] | {"product_id": [name], "weight": 7.0} for name in ("p9", "p11")]
    for split in ("train", "val"):
        table(path, [row | {"split": split} if row["query_id"] == "q0" else row for row in [*rows, *more]])
        here = prepare_shards(source_of(shop), tmp_path / f"here-{split}", SETTINGS)
        there = prepare_with_ray(source_of(shop), tmp_path / f"there-{split}", SETTINGS, RAY)
        assert contents(there) == contents(here)
        found = [facts for facts, *_ in map(json.loads, content(there.queries(split))) if facts["query_id"] == "q0"]
        assert [facts["asked_ids"] for facts in found] == [["p0", "p9", "p11"]] * (3 if split == "train" else 1)
    for path in (shop / "queries").rglob("*.parquet"):
        table(
            path, [row | {"split": "test"} for row in pyarrow.parquet.read_table(path, partitioning=None).to_pylist()]
        )
    assert prepare_with_ray(source_of(shop), tmp_path / "tests", SETTINGS, RAY).splits() == ["test"]


def test_the_order_of_rows_and_tasks_does_not_matter(no_cluster: None, shop: Path, tmp_path: Path) -> None:
    prepare_with_ray(source_of(shop), tmp_path / "one", SETTINGS, RAY)
    for path in (shop / "queries").rglob("*.parquet"):
        rows = pyarrow.parquet.read_table(path, partitioning=None)
        pyarrow.parquet.write_table(rows.take(list(range(rows.num_rows))[::-1]), path)
    prepare_with_ray(source_of(shop), tmp_path / "two", SETTINGS, RaySettings(rows_per_part=3))
    one, two = shard_bytes(tmp_path / "one"), shard_bytes(tmp_path / "two")
    assert one == two and len(one) > 6


@pytest.mark.parametrize("is_far", [False, True])
def test_an_interrupted_conversion_resumes(
    no_cluster: None, s3: str, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_far: bool
) -> None:
    target = f"{s3}/{tmp_path.name}/out" if is_far else tmp_path / "out"
    work = Store(target if is_far else staging_path(tmp_path / "out"))

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "finish_set", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_with_ray(source_of(shop), target, SETTINGS, RAY)
    with pytest.raises(ValueError, match="no prepared data here"):
        open_prepared(target)
    with pytest.raises(ValueError, match=r"unfinished preparation with samples_per_shard=8, this command has 9"):
        prepare_with_ray(source_of(shop), target, ShardSettings(samples_per_shard=9), RAY)
    with pytest.raises(ValueError, match=r"layout=by_product: engine=ray writes shuffled rows; give engine=processes"):
        prepare_with_ray(source_of(shop), target, ShardSettings(layout="by_product"), RAY)
    lost = ["receipts/queries/train/000001-", "receipts/catalogue/000000-"]
    for start in lost:
        folder, prefix = start.rsplit("/", 1)
        (name,) = [name for name in work.names(folder) if name.startswith(prefix)]
        work.remove(f"{folder}/{name}")
    written, write = [], ray_engine._write_shards

    def counted(*arguments: Any) -> Iterator[dict[str, Any]]:
        for row in write(*arguments):
            written.append(row)
            yield row

    monkeypatch.setattr(ray_engine, "_write_shards", counted)
    prepare_with_ray(source_of(shop), target, SETTINGS, RAY)
    assert len(written) == 2
    here = prepare_shards(source_of(shop), tmp_path / "here", SETTINGS)
    assert contents(open_prepared(target, cache_in(tmp_path))) == contents(here)
    assert prepare_with_ray(source_of(shop), target, SETTINGS, RAY).folder == target
    assert len(written) == 2  # nothing was left to write
    with pytest.raises(ValueError, match="was prepared with samples_per_shard=8, this command has 9"):
        prepare_with_ray(source_of(shop), target, ShardSettings(samples_per_shard=9), RAY)
    forced = prepare_with_ray(source_of(shop), target, ShardSettings(samples_per_shard=9), RAY, overwrite=True)
    assert sum(len(forced.queries(split)) for split in ("test", "train", "val")) == 1 + 49 + 5


def test_an_address_with_other_files_is_left_alone(no_cluster: None, s3: str, shop: Path, tmp_path: Path) -> None:
    target = f"{s3}/{tmp_path.name}/thesis"
    Store(target).write("chapter.txt", b"three years of work")
    for force in (False, True):
        with pytest.raises(ValueError, match=r"contains other files \(chapter.txt\); give an empty URL"):
            prepare_with_ray(source_of(shop), target, SETTINGS, RAY, overwrite=force)
    assert Store(target).names("") == ["chapter.txt"]


def test_invalid_rows(no_cluster: None, shop: Path, tmp_path: Path) -> None:
    table(
        shop / "queries" / "zbad.parquet",
        [
            {"query_id": "q1", "split": "train", "image": None, "text": "again", "product_id": ["p1"]},
            {"query_id": "r1", "split": "train", "image": None, "text": "x", "product_id": ["nowhere"]},
            {"query_id": "r2", "split": "train", "image": None, "text": None, "product_id": ["p1"]},
            {
                "query_id": "r3",
                "split": "train",
                "image": str(tmp_path / "gone.jpg"),
                "text": None,
                "product_id": ["p1"],
            },
            {"query_id": "", "split": "train", "image": None, "text": "x", "product_id": ["p1"]},
        ],
    )
    folder = tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"2 rows are invalid so far, the first is .*zbad.parquet, row 3: the query has nei"
    ):
        prepare_with_ray(source_of(shop), folder, SETTINGS, RAY)
    with pytest.raises(
        ValueError, match=r"of 45 rows of the queries table are invalid so far, which exceeds data.*max_invalid=4"
    ):
        prepare_with_ray(source_of(shop), folder, SETTINGS, RAY, ValidationSettings(on_invalid="drop", max_invalid=4))
    assert not folder.exists() and staging_path(folder).exists()
    prepared = prepare_with_ray(
        source_of(shop), folder, SETTINGS, RAY, ValidationSettings(on_invalid="drop", max_invalid=5)
    )
    with (folder / "skipped.csv").open(newline="") as file:
        skipped = list(csv.DictReader(file))
    assert {row["id"]: row["column"] for row in skipped} == {
        "": "query_id",
        "q1": "query_id",
        "r1": "product_id",
        "r2": "",
        "r3": "image",
    }
    assert all("zbad.parquet, row " in row["row"] for row in skipped)
    for path in (shop / "queries").glob("zbad.parquet"):
        path.unlink()
    here = prepare_shards(source_of(shop), tmp_path / "here", SETTINGS)
    assert contents(prepared)["train"] == contents(here)["train"]


def test_of_repeated_rows_the_first_by_number_is_kept(no_cluster: None, shop: Path, tmp_path: Path) -> None:
    names = [f"z{number}" for number in range(1, 9)] + ["twice", "twice"]
    table(shop / "products" / "zz.parquet", [{"product_id": name, "title": name, "image": []} for name in names])
    validation = ValidationSettings(on_invalid="drop", max_invalid=1)
    prepare_with_ray(source_of(shop), tmp_path / "out", SETTINGS, RAY, validation)
    with (tmp_path / "out" / "skipped.csv").open(newline="") as file:
        (skipped,) = csv.DictReader(file)
    assert skipped["id"] == "twice" and skipped["row"].endswith("zz.parquet, row 10")  # as text, it is before row 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shop: (shop / "products" / "0.parquet").write_bytes(b"x" * 99), r"products/0.parquet: not a"),
        (lambda shop: table(shop / "products" / "0.parquet", [{"product_id": "p"}]), "missing column 'image'"),
        (
            lambda shop: table(shop / "products" / "0.parquet", [{"product_id": "p", "title": "x", "image": b"y"}]),
            "contains encoded images; engine=ray reads",
        ),
    ],
)
def test_a_table_that_cannot_be_read(no_cluster: None, shop: Path, tmp_path: Path, change: Any, message: str) -> None:
    change(shop)
    with pytest.raises(ValueError, match=message) as caught:
        prepare_with_ray(source_of(shop), tmp_path / "out", SETTINGS, RAY)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there(shop: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: False)
    with pytest.raises(ValueError, match=rf"ray.address={address}: no cluster answers there"):
        prepare_with_ray(source_of(shop), tmp_path / "out", SETTINGS, RaySettings(address=address))


def test_a_missing_extra_is_an_error(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"engine=ray needs an extra: pip install 'mim-lightning\[ray\]'"):
        prepare_with_ray(source_of(shop), tmp_path / "out", SETTINGS, RAY)
