"""A prepared folder is complete or missing, is written once, and contains the rows of the manifest."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import tarfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim_lightning.analysis.html.validation_page import write_validation_report
from mim_lightning.config import compose
from mim_lightning.data.images.codec import decode_image
from mim_lightning.data.manifest.manifest import Manifest, ManifestSource
from mim_lightning.data.manifest.row_store import rows_in
from mim_lightning.data.manifest.rows import OnIssue, raise_issue
from mim_lightning.data.preparation.opened_data import OpenedData
from mim_lightning.data.preparation.plan import plan_sets
from mim_lightning.data.preparation.preparation import Validation, prepare_shards
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings, open_prepared
from mim_lightning.data.preparation.staging import staging_path
from mim_lightning.data.sampling.grouped import GroupedSettings
from mim_lightning.data.sampling.order import EpochSettings
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.prepare import prepare
from mim_lightning.types import Sample
from tests.data.conftest import encoded, jpeg, picture, write_csv

SETTINGS = ShardSettings(samples_per_shard=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "shop"


def rows(prepared: PreparedData, split: str) -> list[Sample]:
    shards = prepared.queries(split)
    return sorted(shards.read(range(len(shards))), key=lambda sample: (sample.query_id, sample.product_id))


def test_a_missing_split_to_train_on_is_answered_with_the_one_that_was_prepared(
    shop: ManifestSource, folder: Path
) -> None:
    prepare_shards(shop, folder, SETTINGS)
    with pytest.raises(
        ValueError, match=r"no split 'trian'.*; it was prepared to train on data.shards.train_split=train$"
    ):
        _ = OpenedData(folder, "trian", "val").train
    other = folder.with_name("other")
    prepare_shards(shop, other, replace(SETTINGS, train_split="nothing"))
    with pytest.raises(ValueError, match=r"no split 'trian'.* can be evaluated, not trained on; name the split"):
        _ = OpenedData(other, "trian", "val").train


def test_the_catalog_has_a_row_for_each_image(shop: ManifestSource, folder: Path) -> None:
    shards = prepare_shards(shop, folder, SETTINGS).catalog()
    samples = shards.read(range(len(shards)))
    assert [sample.product_id for sample in samples] == ["0012", "0012", "7", "x-9"]
    assert [sample.inputs.get("product_image") for sample in samples] == [jpeg(0), jpeg(1), jpeg(2), None]
    assert [sample.inputs["product_text"] for sample in samples] == [
        *["Red mug. 300 ml"] * 2,
        "Blue cup",
        "Gift card",
    ]
    assert [sample.category for sample in samples] == ["mugs", "mugs", "cups", None]
    assert {sample.query_id for sample in samples} == {None}


def test_a_catalog_without_queries_has_no_splits(shop: ManifestSource, folder: Path) -> None:
    prepared = prepare_shards(ManifestSource(str(shop.products), None), folder, SETTINGS)
    assert prepared.splits() == []
    assert len(prepared.catalog()) == 4
    facts = prepared.catalog().read_facts(0)
    assert (facts["title"], facts["metadata"], facts["product_text"]) == ("Red mug", {}, "Red mug. 300 ml")


def write_queries(shop: ManifestSource, queries: list[dict[str, str]], **options: Any) -> ManifestSource:
    """Return the shop with another table of queries; a cell that a row lacks is empty."""
    columns = dict.fromkeys(
        ("query_id", "split", "image", "text", "product_id", *(key for row in queries for key in row)), ""
    )
    path = write_csv(Path(str(shop.queries)).with_name("others.csv"), [columns | row for row in queries])
    return ManifestSource(str(shop.products), str(path), **options)


def test_a_set_without_a_training_split_is_prepared_unless_that_is_needed(shop: ManifestSource, folder: Path) -> None:
    source = write_queries(shop, [{"query_id": "t", "split": "test", "image": "q3.jpg", "product_id": "7"}])
    with pytest.raises(ValueError, match=r"others\.csv: column 'split' has no row 'train'; it has \['test'\]"):
        prepare_shards(source, folder, SETTINGS, needed=["train"])
    assert not folder.exists()
    assert [sample.query_id for sample in rows(prepare_shards(source, folder, SETTINGS, needed=["test"]), "test")] == [
        "t"
    ]
    missing = write_queries(shop, [{"query_id": "t", "split": "test", "image": "gone.jpg", "product_id": "7"}])
    with pytest.raises(ValueError, match=r"others\.csv: no query is valid"):
        prepare_shards(
            missing,
            folder,
            SETTINGS,
            overwrite=True,
            validation=Validation(ValidationSettings(on_invalid="drop", max_invalid="100%")),
        )


def test_training_rows_keep_their_segments(shop: ManifestSource, folder: Path) -> None:
    queries = [{"query_id": "a", "split": "train", "image": "q0.jpg", "product_id": "7", "device": "phone"}]
    prepared = prepare_shards(write_queries(shop, queries, segments=["device"]), folder, SETTINGS)
    assert prepared.queries("train").read_facts(0)["segments"] == {"device": "phone"}


def test_rows_of_one_query_are_its_products_each_with_grade_and_weight(shop: ManifestSource, folder: Path) -> None:
    query = {"query_id": "a", "split": "train", "image": "q0.jpg", "text": "a gift"}
    rows_of_a = [("7", "2", "3"), ("0012", "1", ""), ("x-9", "0", "")]
    judged = [query | {"product_id": p, "grade": g, "weight": w} for p, g, w in [rows_of_a[2], *rows_of_a]]
    shards = prepare_shards(write_queries(shop, judged), folder, SETTINGS).queries("train")
    facts = sorted((shards.read_facts(number) for number in range(len(shards))), key=lambda row: row["product_id"])
    assert [(row["product_id"], row.get("weight", 1.0)) for row in facts] == [("0012", 1.0), ("7", 3.0)]
    assert all(row["asked_ids"] == ["7", "0012"] and row["asked_grades"] == [2, 1] for row in facts)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("text", "other words", "with another text"),
        ("image", "q1.jpg", "with another image"),
        ("split", "val", "with another split"),
        ("shown_product_id", "0012", "with another shown_product_id"),
        ("product_id", "7", "is already in"),
    ],
)
def test_a_row_that_differs_in_more_than_its_product_is_another_query(
    column: str, value: str, message: str, shop: ManifestSource, folder: Path
) -> None:
    query = {"query_id": "a", "split": "train", "image": "q0.jpg", "text": "a gift", "product_id": "7"}
    source = write_queries(shop, [query, query | {"product_id": "x-9", column: value}])
    with pytest.raises(ValueError, match=rf"'a' is already in .*others\.csv, row 2.*{message}|{message} .*row 2"):
        prepare_shards(source, folder, SETTINGS)


def test_training_rows_contain_query_and_product(shop: ManifestSource, folder: Path) -> None:
    samples = rows(prepare_shards(shop, folder, SETTINGS), "train")
    assert [(sample.query_id, sample.product_id) for sample in samples] == [
        ("q0", "0012"),
        ("q1", "0012"),
        ("q1", "7"),
        ("q2", "x-9"),
    ]
    assert [sample.target_ids for sample in samples] == [("0012",), ("7", "0012"), ("7", "0012"), ("x-9",)]
    assert [sample.reference_ids for sample in samples] == [("0012",), ("0012",), ("0012",), ("x-9",)]
    assert [sample.inputs.get("query_image") for sample in samples] == [jpeg(3), jpeg(4), jpeg(4), None]
    assert [sample.inputs.get("query_text") for sample in samples] == [None, "but blue", "but blue", "a gift"]
    assert samples[2].inputs["product_image"] == jpeg(2)
    assert samples[1].inputs["product_image"] in (jpeg(0), jpeg(1))
    assert samples[2].inputs["product_text"] == "Blue cup"
    assert "product_image" not in samples[3].inputs


def test_validation_rows_are_queries_only(shop: ManifestSource, folder: Path) -> None:
    (sample,) = rows(prepare_shards(shop, folder, SETTINGS), "val")
    assert (sample.query_id, sample.product_id, sample.target_ids) == ("q3", None, ("7",))
    assert set(sample.inputs) == {"query_image"}
    assert sample.category == "cups"


def test_training_rows_use_all_images_of_a_product_in_shuffled_order(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(3)]
    for seed, name in enumerate([*names, "q.jpg"]):
        (tmp_path / name).write_bytes(jpeg(seed, 8, 8))
    products = [{"product_id": p, "image": "|".join(names), "title": p} for p in ("a", "b")]
    queries = [
        {"query_id": f"q{n}", "split": "train", "image": "q.jpg", "product_id": "a" if n < 30 else "b"}
        for n in range(60)
    ]

    def prepared(name: str, queries: list[dict[str, str]]) -> list[Sample]:
        source = ManifestSource(
            str(write_csv(tmp_path / "products.csv", products)), str(write_csv(tmp_path / f"{name}.csv", queries))
        )
        return prepare_shards(source, tmp_path / name, ShardSettings()).queries("train").read(range(60))

    def images(samples: list[Sample]) -> dict[str | None, Any]:
        return {sample.query_id: sample.inputs["product_image"] for sample in samples}

    samples = prepared("queries", queries)
    assert images(prepared("reversed", queries[::-1])) == images(samples)
    assert set(Counter(sample.inputs["product_image"] for sample in samples).values()) == {20}
    assert 9 < sum(sample.product_id == "a" for sample in samples[:30]) < 21


def test_reading_a_plan_leaves_no_tables(shop: ManifestSource, tmp_path: Path) -> None:
    with rows_in(tmp_path / "rows", 0):
        manifest = shop.read(tmp_path / "work")
        stored = manifest.stored()
        sets, before = plan_sets(manifest.with_rows(stored), "train", 0), stored.store.run("SHOW TABLES")
        for planned in sets:
            assert list(planned.shards(2, 512))
        assert stored.store.run("SHOW TABLES") == before
        half_read = next(part for part in sets if part.name == "queries/train").read()
        assert next(half_read)
    half_read.close()  # type: ignore[attr-defined]  # without an error, although the store is closed


def test_images_are_stored_upright_and_small(shop: ManifestSource, folder: Path) -> None:
    (shop.queries.parent / "q3.jpg").write_bytes(encoded(picture(5, 60, 200)))
    prepared = prepare_shards(shop, folder, ShardSettings(max_image_side=100))
    data = prepared.queries("val").read([0])[0].inputs["query_image"]
    assert isinstance(data, bytes) and decode_image(data).shape == (30, 100, 3)


class Unread(ManifestSource):
    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        raise AssertionError("the source was read again")


def test_prepared_once_is_opened_after(shop: ManifestSource, folder: Path) -> None:
    prepare_shards(shop, folder, SETTINGS)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = prepare_shards(Unread(str(shop.products), str(shop.queries)), folder, SETTINGS)
    assert rows(again, "train") == rows(open_prepared(folder), "train")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples_per_shard": 3}, "samples_per_shard=2, this command has 3"),
        ({"max_image_side": 64}, "max_image_side=512, this command has 64"),
        ({"seed": 1}, "seed=0, this command has 1"),
    ],
)
def test_other_settings_are_refused(shop: ManifestSource, folder: Path, settings: Any, words: str) -> None:
    prepare_shards(shop, folder, SETTINGS)
    with pytest.raises(ValueError, match=words):
        prepare_shards(shop, folder, ShardSettings(**{"samples_per_shard": 2, **settings}))


def test_another_table_is_refused_unless_overwritten(shop: ManifestSource, folder: Path) -> None:
    old = prepare_shards(shop, folder, SETTINGS)
    assert len(rows(old, "train")) == 4
    queries = shop.queries.read_text()
    shop.queries.write_text(queries.replace("q0,train", "q9,train"))
    with pytest.raises(ValueError, match=r"queries=.*overwrite=true"):
        prepare_shards(shop, folder, SETTINGS)
    prepared = prepare_shards(shop, folder, SETTINGS, overwrite=True)
    assert {sample.query_id for sample in rows(prepared, "train")} == {"q1", "q2", "q9"}
    assert [path.name for path in folder.parent.iterdir()] == ["shop"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_other_files_is_left_alone(shop: ManifestSource, folder: Path, force: bool) -> None:
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("three years of work")
    with pytest.raises(ValueError, match="is not prepared data"):
        prepare_shards(shop, folder, SETTINGS, overwrite=force)
    assert (folder / "thesis.txt").exists()


def test_an_empty_folder_is_filled(shop: ManifestSource, folder: Path) -> None:
    folder.mkdir(parents=True)
    assert len(rows(prepare_shards(shop, folder, SETTINGS), "train")) == 4


@pytest.mark.parametrize(
    ("change", "words"), [("cut", "damaged image"), ("text", "not a readable"), ("gone", "no such")]
)
def test_an_unreadable_image_leaves_no_files(shop: ManifestSource, folder: Path, change: str, words: str) -> None:
    path = shop.queries.parent / "q1.jpg"
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-200] if change == "cut" else b"no picture")
    with pytest.raises(ValueError, match=words) as caught:
        prepare_shards(shop, folder, SETTINGS)
    assert "queries.csv, row 3, column 'image'" in str(caught.value) and "q1.jpg" in str(caught.value)
    assert not folder.exists() and not list(folder.parent.rglob("*.tar"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("force", [False, True])
def test_an_interrupted_write_keeps_the_former_content(
    shop: ManifestSource, folder: Path, error: BaseException, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if force:
        prepare_shards(shop, folder, SETTINGS)
    num_written, add = 0, tarfile.TarFile.addfile

    def addfile(*arguments: Any) -> None:
        nonlocal num_written
        num_written += 1
        if num_written > 9:
            raise error
        add(*arguments)

    monkeypatch.setattr(tarfile.TarFile, "addfile", addfile)
    with pytest.raises(type(error)):
        prepare_shards(shop, folder, SETTINGS, overwrite=force)
    names = [path.name for path in folder.parent.iterdir() if path != staging_path(folder)]
    assert names == (["shop"] if force else [])
    if force:
        assert len(rows(open_prepared(folder), "train")) == 4
    monkeypatch.undo()
    assert len(rows(prepare_shards(shop, folder, SETTINGS, overwrite=force), "train")) == 4
    assert [path.name for path in folder.parent.iterdir()] == ["shop"]


class Raced(ManifestSource):
    """A source during whose reading another machine, which no lock holds back, prepares the same folder."""

    def __init__(self, shop: ManifestSource, folder: Path, others: ShardSettings) -> None:
        super().__init__(str(shop.products), str(shop.queries))
        self.shop, self.folder, self.others = shop, folder, others

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        elsewhere = self.folder.with_name("elsewhere")
        prepare_shards(self.shop, elsewhere, self.others)
        elsewhere.rename(self.folder)
        return super().read(work_dir, on_issue)


def test_another_process_was_faster(shop: ManifestSource, folder: Path) -> None:
    prepared = prepare_shards(Raced(shop, folder, SETTINGS), folder, SETTINGS)
    assert len(rows(prepared, "train")) == 4
    assert [path.name for path in folder.parent.iterdir()] == ["shop"]


def test_another_process_was_faster_with_other_settings(shop: ManifestSource, folder: Path) -> None:
    with pytest.raises(ValueError, match="samples_per_shard=3, this command has 2"):
        prepare_shards(Raced(shop, folder, ShardSettings(samples_per_shard=3)), folder, SETTINGS)


@dataclass
class SimultaneousSource:
    """A source that is described only when every process is about to prepare it."""

    shop: ManifestSource
    barrier: Any

    def read(self, work_dir: Path, on_issue: OnIssue = raise_issue) -> Manifest:
        time.sleep(0.2)  # the others find the folder taken
        return self.shop.read(work_dir, on_issue)

    def describe(self) -> dict[str, Any]:
        self.barrier.wait(timeout=120)
        return self.shop.describe()


def _prepare_and_count(source: SimultaneousSource, folder: Path, results: Any) -> None:
    results.put(len(rows(prepare_shards(source, folder, SETTINGS), "train")))


def test_two_processes_at_once(shop: ManifestSource, folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    source, results = SimultaneousSource(shop, context.Barrier(2)), context.Queue()
    processes = [context.Process(target=_prepare_and_count, args=(source, folder, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [results.get(timeout=5) for _ in processes] == [4, 4]
    assert [path.name for path in folder.parent.iterdir()] == ["shop"]


def test_missing_folder_split_and_senseless_settings(shop: ManifestSource, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no prepared data here; give that of `mim prepare` as data"):
        open_prepared(folder)
    with pytest.raises(ValueError, match=r"no row 'fit'; it has .*'train'"):
        prepare_shards(shop, folder, ShardSettings(train_split="fit"), needed=["fit"])
    prepared = prepare_shards(shop, folder, SETTINGS)
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train', 'val'\]"):
        prepared.queries("test")
    for name in ("samples_per_shard", "max_image_side"):
        with pytest.raises(ValueError, match=f"data.shards.{name}=0"):
            ShardSettings(**{name: 0})


def test_the_same_settings_write_the_same_bytes(shop: ManifestSource, folder: Path, tmp_path: Path) -> None:
    prepare_shards(shop, folder, SETTINGS)
    prepare_shards(shop, tmp_path / "again", SETTINGS)
    for path in sorted(folder.rglob("*.tar")):
        other = tmp_path / "again" / path.relative_to(folder)
        assert path.read_bytes() == other.read_bytes()
        assert np.array_equal(np.load(path.with_suffix(".npy")), np.load(other.with_suffix(".npy")))


def test_invalid_rows_are_left_out_and_listed(shop: ManifestSource, folder: Path) -> None:
    (shop.queries.parent / "q1.jpg").write_bytes(b"no picture")
    (shop.queries.parent / "b.jpg").unlink()
    validation = Validation(
        ValidationSettings(on_invalid="drop", max_invalid="25%"), write_report=write_validation_report
    )
    prepared = prepare_shards(shop, folder, SETTINGS, validation=validation)
    assert {sample.query_id for sample in rows(prepared, "train")} == {"q0", "q2"}
    assert len(prepared.catalog()) == 3  # the product keeps its other image
    with (folder / "skipped.csv").open() as file:
        skipped = list(csv.DictReader(file))
    assert [(row["table"], row["id"], row["column"]) for row in skipped] == [
        ("products", "0012", "image"),
        ("queries", "q1", "image"),
    ]
    assert {path.name for path in folder.iterdir()} == {
        *("catalogue", "queries", "image_hashes", "settings.json", "skipped.csv", "findings.csv", "check.html")
    }
    # what is there is opened, however strict the check would be now
    assert len(rows(prepare_shards(shop, folder, SETTINGS), "train")) == 2


def test_more_invalid_rows_than_allowed(shop: ManifestSource, folder: Path) -> None:
    (shop.queries.parent / "q1.jpg").write_bytes(b"no picture")
    validation = Validation(
        ValidationSettings(on_invalid="drop", max_invalid="24%"), write_report=write_validation_report
    )
    with pytest.raises(ValueError, match=r"1 of 4 rows of the queries table are invalid.*report is in .*shop-check"):
        prepare_shards(shop, folder, SETTINGS, validation=validation)
    assert not folder.exists()
    assert (folder.with_name("shop-check") / "check.html").is_file()
    (shop.queries.parent / "q1.jpg").write_bytes(jpeg(4))
    assert len(rows(prepare_shards(shop, folder, SETTINGS), "train")) == 4
    assert sorted(path.name for path in folder.parent.iterdir()) == ["shop", "shop-check"]


def test_validate_only_writes_no_shards(shop: ManifestSource, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data.source.products={shop.products}", f"data.source.queries={shop.queries}", f"data.folder={folder}"]
    config = compose("prepare", ["data=manifest", *words, "validate_only=true"])
    prepare(config)
    assert str(folder) + "-check" in capsys.readouterr().out
    report = folder.with_name("shop-check")
    assert {path.name for path in report.iterdir()} == {"check.html", "findings.csv", "skipped.csv"}
    assert not folder.exists()
    (shop.queries.parent / "q1.jpg").unlink()
    with pytest.raises(ValueError, match="no such file"):
        prepare(config)
    assert "q1" in (report / "findings.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine=spark"], "engine=spark: give processes or ray"),
        (["overwrite=maybe"], "overwrite=maybe: give true or false"),
        (["validate_only=never"], "validate_only=never: give true or false"),
        (["engine=ray"], "engine=ray: reads tables, not a SyntheticSource; give data=manifest"),
        (["data=shards", "data.folder=nowhere"], "data.source: nothing to prepare from"),
        (["data=shards", "data.folder=nowhere", "verify=true"], "nowhere: no prepared data here"),
        (["data.folder=s3://bucket/shop"], r"data.folder=s3://bucket/shop: .* or give engine=ray"),
        (["num_workers=-1"], "num_workers=-1: must not be negative"),
    ],
)
def test_invalid_arguments_on_the_command_line(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(compose("prepare", words))


def test_weights_and_image_indices_are_written(shop: ManifestSource, folder: Path) -> None:
    table = [
        {"query_id": f"q{n}", "split": "train", "image": "q0.jpg", "product_id": "0012", "weight": n + 1}
        for n in range(6)
    ]
    source = ManifestSource(str(shop.products), str(write_csv(shop.queries.parent / "weighted.csv", table)))
    shards = prepare_shards(source, folder, SETTINGS).queries("train")
    samples = shards.read(range(6))
    assert Counter(sample.inputs["product_image"] for sample in samples) == {jpeg(0): 3, jpeg(1): 3}
    weights = shards.column("weights").tolist()
    assert weights == [int(str(sample.query_id)[1:]) + 1 for sample in samples]


def test_rows_of_a_product_are_adjacent_with_layout_by_product(tmp_path: Path) -> None:
    """A grouped order whose windows are one shard of many finds its groups all the same."""
    (tmp_path / "q.jpg").write_bytes(jpeg(1))
    products = [{"product_id": f"p{i}", "image": "q.jpg", "title": "x", "category": ""} for i in range(30)]
    asked = [f"p{i % 30}" + ("|p7" if i == 0 else "") for i in range(120)]
    queries = [{"query_id": f"q{i}", "split": "train", "image": "q.jpg", "product_id": asked[i]} for i in range(120)]
    paths = write_csv(tmp_path / "products.csv", products), write_csv(tmp_path / "queries.csv", queries)
    source = ManifestSource(*map(str, paths))
    prepared = {
        layout: prepare_shards(source, tmp_path / layout, ShardSettings(samples_per_shard=12, layout=layout))
        for layout in ("shuffled", "by_product")
    }
    shards = {layout: found.queries("train") for layout, found in prepared.items()}
    runs, whole = {}, {}
    for layout, found in shards.items():
        keys = found.column("product_keys")
        runs[layout] = 1 + np.count_nonzero(np.diff(keys))
        order = GroupedSettings(samples_per_product=4).for_shards(
            found, EpochSettings(12, seed=1, num_streams=1, window=2)
        )
        slots = np.concatenate([batch for batch in order.batches(0) if len(batch) == 12]).reshape(-1, 4)
        whole[layout] = np.mean([len(set(keys[slot])) == 1 for slot in slots])
    assert runs["by_product"] == 30 < 90 < runs["shuffled"]
    assert whole["by_product"] > 0.7 and whole["shuffled"] < 0.3
    assert rows(prepared["shuffled"], "train") != [] and [
        (row.query_id, row.product_id) for row in rows(prepared["by_product"], "train")
    ] == [(row.query_id, row.product_id) for row in rows(prepared["shuffled"], "train")]
    first = [shards["by_product"].read([0])[0].product_id, shards["by_product"].read([120])[0].product_id]
    assert first != ["p0", "p29"], "products come in random order"
    with pytest.raises(ValueError, match="prepared with layout=shuffled, this command has by_product; run prepare"):
        prepare_shards(source, tmp_path / "shuffled", ShardSettings(samples_per_shard=12, layout="by_product"))
