"""A Ray cluster writes the same data as the processes of one machine, to a folder and to a store, and resumes."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mim_lightning.data.preparation import ray_engine
from mim_lightning.data.preparation.preparation import Validation, prepare_shards
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings, open_prepared
from mim_lightning.data.preparation.ray_cluster import RaySettings
from mim_lightning.data.preparation.ray_engine import prepare_with_ray
from mim_lightning.data.preparation.staging import staging_path
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.shards.verify import verify_sets
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.versions.change import Change, Deletion, Tables
from mim_lightning.data.versions.next_version import change_data
from mim_lightning.io.store import Store
from tests.data.preparation.ray_shop import shard_bytes, source_of, table

SETTINGS = ShardSettings(samples_per_shard=8)
SETS = ["catalogue", "queries/train", "queries/val", "queries/test"]
RAY = RaySettings(rows_per_part=40)


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


def test_the_cluster_writes_what_one_machine_writes(cluster: None, root: Path, tmp_path: Path) -> None:
    here = prepare_shards(source_of(root), tmp_path / "here", SETTINGS)
    folder = tmp_path / "cluster"
    there = prepare_with_ray(source_of(root), folder, SETTINGS, RAY)
    assert contents(there) == contents(here)
    known = "source", "settings", "protocol"  # the rows are in other shards
    assert [there.describe()[key] for key in known] == [here.describe()[key] for key in known]
    assert len(there.queries("train")) > 40 and len(there.queries("train").sizes) == len(here.queries("train").sizes)
    assert verify_sets(folder, SETS).damaged == ()
    # what is there is opened, by either engine
    assert prepare_shards(source_of(root), folder, SETTINGS) == there
    assert {path.name for path in folder.iterdir()} == {"catalogue", "queries", "settings.json", "skipped.csv"}


def test_from_a_store_to_a_store(cluster: None, s3: str, root: Path, tmp_path: Path) -> None:
    import s3fs

    address = f"{s3}/{tmp_path.name}"
    s3fs.S3FileSystem().put(str(root), f"{address}/tables", recursive=True)
    prepared = prepare_with_ray(source_of(f"{address}/tables"), f"{address}/out", SETTINGS, RAY)
    here = prepare_shards(source_of(root), tmp_path / "here", SETTINGS)
    assert prepared.folder == f"{address}/out"
    assert contents(open_prepared(f"{address}/out", cache_in(tmp_path))) == contents(here)
    assert [Store(f"{address}/out").names(name) for name in ("receipts", "making.json")] == [[], []]
    assert verify_sets(f"{address}/out", SETS).damaged == ()


def test_rows_of_one_query_are_its_products_and_no_split_is_needed(
    no_cluster: None, root: Path, tmp_path: Path
) -> None:
    (path,) = (root / "queries" / "part=0").rglob("*.parquet")
    rows = pyarrow.parquet.read_table(path, partitioning=None).to_pylist()
    more = [rows[0] | {"product_id": [name], "weight": 7.0} for name in ("p9", "p11")]
    for split in ("train", "val"):
        table(path, [row | {"split": split} if row["query_id"] == "q0" else row for row in [*rows, *more]])
        here = prepare_shards(source_of(root), tmp_path / f"here-{split}", SETTINGS)
        there = prepare_with_ray(source_of(root), tmp_path / f"there-{split}", SETTINGS, RAY)
        assert contents(there) == contents(here)
        found = [facts for facts, *_ in map(json.loads, content(there.queries(split))) if facts["query_id"] == "q0"]
        assert [facts["asked_ids"] for facts in found] == [["p0", "p9", "p11"]] * (3 if split == "train" else 1)
    for path in (root / "queries").rglob("*.parquet"):
        table(
            path, [row | {"split": "test"} for row in pyarrow.parquet.read_table(path, partitioning=None).to_pylist()]
        )
    assert prepare_with_ray(source_of(root), tmp_path / "tests", SETTINGS, RAY).splits() == ["test"]


def test_the_order_of_rows_and_tasks_does_not_matter(no_cluster: None, root: Path, tmp_path: Path) -> None:
    prepare_with_ray(source_of(root), tmp_path / "one", SETTINGS, RAY)
    for path in (root / "queries").rglob("*.parquet"):
        rows = pyarrow.parquet.read_table(path, partitioning=None)
        pyarrow.parquet.write_table(rows.take(list(range(rows.num_rows))[::-1]), path)
    prepare_with_ray(source_of(root), tmp_path / "two", SETTINGS, RaySettings(rows_per_part=3))
    one, two = shard_bytes(tmp_path / "one"), shard_bytes(tmp_path / "two")
    assert one == two and len(one) > 6


@pytest.mark.parametrize("is_far", [False, True])
def test_an_interrupted_conversion_resumes(
    no_cluster: None, s3: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_far: bool
) -> None:
    target = f"{s3}/{tmp_path.name}/out" if is_far else tmp_path / "out"
    work = Store(target if is_far else staging_path(tmp_path / "out"))

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "finish_set", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_with_ray(source_of(root), target, SETTINGS, RAY)
    with pytest.raises(ValueError, match="no prepared data here"):
        open_prepared(target)
    with pytest.raises(ValueError, match=r"unfinished preparation with samples_per_shard=8, this command has 9"):
        prepare_with_ray(source_of(root), target, ShardSettings(samples_per_shard=9), RAY)
    with pytest.raises(ValueError, match=r"layout=by_product: engine=ray writes shuffled rows; give engine=processes"):
        prepare_with_ray(source_of(root), target, ShardSettings(layout="by_product"), RAY)
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
    prepare_with_ray(source_of(root), target, SETTINGS, RAY)
    assert len(written) == 2
    here = prepare_shards(source_of(root), tmp_path / "here", SETTINGS)
    assert contents(open_prepared(target, cache_in(tmp_path))) == contents(here)
    assert prepare_with_ray(source_of(root), target, SETTINGS, RAY).folder == target
    assert len(written) == 2  # nothing was left to write
    with pytest.raises(ValueError, match="was prepared with samples_per_shard=8, this command has 9"):
        prepare_with_ray(source_of(root), target, ShardSettings(samples_per_shard=9), RAY)
    forced = prepare_with_ray(source_of(root), target, ShardSettings(samples_per_shard=9), RAY, overwrite=True)
    assert sum(len(forced.queries(split)) for split in ("test", "train", "val")) == 1 + 49 + 5


def test_an_address_with_other_files_is_left_alone(no_cluster: None, s3: str, root: Path, tmp_path: Path) -> None:
    target = f"{s3}/{tmp_path.name}/thesis"
    Store(target).write("chapter.txt", b"three years of work")
    for force in (False, True):
        with pytest.raises(ValueError, match=r"contains other files \(chapter.txt\); give an empty URL"):
            prepare_with_ray(source_of(root), target, SETTINGS, RAY, overwrite=force)
    assert Store(target).names("") == ["chapter.txt"]


def test_invalid_rows(no_cluster: None, root: Path, tmp_path: Path) -> None:
    table(
        root / "queries" / "zbad.parquet",
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
        prepare_with_ray(source_of(root), folder, SETTINGS, RAY)
    with pytest.raises(
        ValueError, match=r"of 45 rows of the queries table are invalid so far, which exceeds data.*max_invalid=4"
    ):
        prepare_with_ray(source_of(root), folder, SETTINGS, RAY, ValidationSettings(on_invalid="drop", max_invalid=4))
    assert not folder.exists() and staging_path(folder).exists()
    prepared = prepare_with_ray(
        source_of(root), folder, SETTINGS, RAY, ValidationSettings(on_invalid="drop", max_invalid=5)
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
    for path in (root / "queries").glob("zbad.parquet"):
        path.unlink()
    here = prepare_shards(source_of(root), tmp_path / "here", SETTINGS)
    assert contents(prepared)["train"] == contents(here)["train"]


def test_of_repeated_rows_the_first_by_number_is_kept(no_cluster: None, root: Path, tmp_path: Path) -> None:
    names = [f"z{number}" for number in range(1, 9)] + ["twice", "twice"]
    table(root / "products" / "zz.parquet", [{"product_id": name, "title": name, "image": []} for name in names])
    validation = ValidationSettings(on_invalid="drop", max_invalid=1)
    prepare_with_ray(source_of(root), tmp_path / "out", SETTINGS, RAY, validation)
    with (tmp_path / "out" / "skipped.csv").open(newline="") as file:
        (skipped,) = csv.DictReader(file)
    assert skipped["id"] == "twice" and skipped["row"].endswith("zz.parquet, row 10")  # as text, it is before row 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "products" / "0.parquet").write_bytes(b"x" * 99),
            r"products/0.parquet: not a",
        ),
        (
            lambda root: table(root / "products" / "0.parquet", [{"product_id": "p"}]),
            "missing column 'image'",
        ),
        (
            lambda root: table(root / "products" / "0.parquet", [{"product_id": "p", "title": "x", "image": b"y"}]),
            "contains encoded images; engine=ray reads",
        ),
    ],
)
def test_a_table_that_cannot_be_read(no_cluster: None, root: Path, tmp_path: Path, change: Any, message: str) -> None:
    change(root)
    with pytest.raises(ValueError, match=message) as caught:
        prepare_with_ray(source_of(root), tmp_path / "out", SETTINGS, RAY)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there(root: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: False)
    with pytest.raises(ValueError, match=rf"ray.address={address}: no cluster answers there"):
        prepare_with_ray(source_of(root), tmp_path / "out", SETTINGS, RaySettings(address=address))


def test_a_missing_extra_is_an_error(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"engine=ray needs an extra: pip install 'mim-lightning\[ray\]'"):
        prepare_with_ray(source_of(root), tmp_path / "out", SETTINGS, RAY)


def test_what_ray_prepared_is_changed_like_other_data(no_cluster: None, root: Path, tmp_path: Path) -> None:
    here = prepare_shards(source_of(root), tmp_path / "here", SETTINGS).folder
    there = prepare_with_ray(source_of(root), tmp_path / "there", SETTINGS, RAY).folder
    products = [{"product_id": name, "image": [], "title": f"new {name}", "category": "c9"} for name in ("p3", "p77")]
    queries = [
        {"query_id": name, "split": split, "image": None, "text": f"text {name}", "product_id": ["p77", "p4"]}
        for name, split in (("q3", "val"), ("q88", "train"), ("q99", "val"))
    ]
    table(tmp_path / "new" / "products.parquet", products)
    table(tmp_path / "new" / "queries.parquet", queries)
    tables = Tables(f"{tmp_path}/new/products.parquet", f"{tmp_path}/new/queries.parquet", replace=True)
    quiet = Validation(write_report=lambda report, folder, reader: None)
    for change in (Change(add=tables), Change(delete=Deletion(["p5", "p77"], ["q1"])), Change(compact=0.1)):
        for folder in (here, there):
            change_data(folder, change, quiet, num_workers=1)
        assert contents(open_prepared(there)) == contents(open_prepared(here))
    assert open_prepared(there).verify(print) and open_prepared(there).version == 4
    with pytest.raises(ValueError, match="only a local folder can be changed"):
        change_data("s3://bucket/shop", Change(compact=0.1), quiet)
