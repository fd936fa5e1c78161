"""A version of prepared data has the rows of data prepared from the changed tables; former versions stay."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim_lightning.config import compose
from mim_lightning.data.manifest import row_store
from mim_lightning.data.manifest.manifest import Manifest, ManifestSource
from mim_lightning.data.manifest.row_store import current_store
from mim_lightning.data.preparation.opened_data import OpenedData, find_versions
from mim_lightning.data.preparation.plan import PlannedSet
from mim_lightning.data.preparation.preparation import Validation, prepare_shards
from mim_lightning.data.preparation.prepared import CATALOG, PreparedData, ShardSettings, open_prepared
from mim_lightning.data.preparation.staging import staging_path
from mim_lightning.data.shards import set_index
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.data.shards.mixture_set import MixtureEntry
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.splits import ProductDisjointSplits, Protocol
from mim_lightning.data.validation.settings import ValidationSettings
from mim_lightning.data.versions import next_version as changing
from mim_lightning.data.versions import version_plan
from mim_lightning.data.versions.change import Change, Deletion, Tables
from mim_lightning.data.versions.changed_rows import ChangePlanner, ProductChange, SetChange
from mim_lightning.data.versions.next_version import change_data
from mim_lightning.data.versions.unchanged_rows import without_unchanged
from mim_lightning.ids import hash_id
from mim_lightning.prepare import prepare
from tests.data.conftest import jpeg, write_csv
from tests.data.stores import serving

Row = dict[str, str]
SETTINGS = ShardSettings(samples_per_shard=3)
QUIET = Validation(write_report=lambda report, folder, reader: None)


def product(number: int, **others: str) -> Row:
    name = f"p{number}"
    row = {"product_id": name, "image": f"{name}.jpg", "title": f"Product {number}", "category": f"c{number % 3}"}
    return {**row, "price": str(number), **others}


def query(number: int, products: str, split: str = "train", **others: str) -> Row:
    row = {"query_id": f"q{number}", "split": split, "image": f"q{number}.jpg", "text": f"text {number}"}
    return {**row, "product_id": products, "place": "aisle" if number % 2 else "shelf", "weight": "", **others}


PRODUCTS = [product(number) for number in range(7)]
QUERIES = [
    *(query(number, f"p{number % 5}") for number in range(8)),
    query(8, "p0|p1", weight="2"),
    query(9, "p2|p3"),
    query(10, "p5", split="val"),
    query(11, "p0|p4", split="val"),
    query(12, "p1", split="val"),
]


class Shop:
    """Tables in a folder, their images, and the data prepared from them."""

    def __init__(self, root: Path, protocol: Protocol | None = None) -> None:
        self.root, self.protocol = root, protocol
        for number in range(40):
            (root / f"p{number}.jpg").write_bytes(jpeg(number))
            (root / f"q{number}.jpg").write_bytes(jpeg(100 + number))

    def tables(self, name: str, products: Sequence[Row], queries: Sequence[Row]) -> Tables:
        paths = {}
        for kind, rows in (("products", products), ("queries", queries)):
            if rows:
                paths[kind] = str(write_csv(self.root / f"{name}-{kind}.csv", rows))
        return Tables(**paths)

    def prepare(self, name: str, products: Sequence[Row], queries: Sequence[Row]) -> Path:
        tables = self.tables(name, products, queries)
        source = ManifestSource(tables.products, tables.queries, segments=["place"])
        prepare_shards(source, self.root / name, SETTINGS, self.protocol, validation=QUIET, num_workers=1)
        return self.root / name


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def change(folder: Path, tables: Tables | None = None, validation: Validation = QUIET, **others: Any) -> PreparedData:
    return change_data(folder, Change(tables or Tables(), **others), validation, num_workers=1)


def contents(prepared: PreparedData, names: Iterable[str] = ()) -> dict[str, list[str]]:
    """Return every sample of every set, or of some, in no order."""
    found = {}
    for name in names or prepared.content():
        shards = prepared.open_set(name)
        samples = zip(shards.read(range(len(shards))), map(shards.read_facts, range(len(shards))), strict=True)
        found[name] = sorted(f"{sorted(one.inputs.items())} {sorted(facts.items())}" for one, facts in samples)
        for column in ("keys", "product_keys", "category_keys", "weights"):
            assert shards.column(column).shape == (len(shards),)
        assert [key_of(shards, number) for number in range(len(shards))] == shards.keys.tolist()
    return found


def key_of(shards: ShardSet, number: int) -> int:
    facts = shards.read_facts(number)
    return hash_id(facts.get("query_id") or facts["product_id"])


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and content of every shard file and column."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".tar", ".npy")]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


NEW_PRODUCTS = [product(20), product(21, category="c9"), product(22)]
NEW_QUERIES = [
    query(20, "p20"),
    query(21, "p0"),  # of a product that is there
    query(22, "p21|p3"),
    query(23, "p22|p1", split="val"),
    query(24, "p6", split="test"),
]


def test_an_addition_has_the_rows_of_both_tables(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    before, old = files_of(folder), contents(open_prepared(folder))
    change(folder, shop.tables("new", NEW_PRODUCTS, NEW_QUERIES))
    said = capsys.readouterr().out
    assert "added 3 products and 5 queries" in said
    assert "catalog: 10 rows (0 removed, 3 new)" in said
    grown = open_prepared(folder)
    assert grown.version == 2
    assert grown.splits() == ["test", "train", "val"]
    assert contents(grown) == contents(
        open_prepared(shop.prepare("both", PRODUCTS + NEW_PRODUCTS, QUERIES + NEW_QUERIES))
    )
    assert contents(open_prepared(folder, version=1)) == old
    assert {name: found for name, found in files_of(folder).items() if name in before} == before, "nothing is rewritten"
    assert open_prepared(folder).verify(print).startswith(str(folder))
    names = [name for name in os.listdir(folder / "queries" / "train") if name.endswith(".tar")]
    assert len(names) == len(set(names)) == 4 + 2
    with pytest.raises(ValueError, match=f"{folder}: has no version 3; it has 1, 2"):
        open_prepared(folder, version=3).catalog()
    change(folder, shop.tables("more", [product(30)], []))
    assert open_prepared(folder).version == 3
    assert open_prepared(folder).queries("train").digest == grown.queries("train").digest, "unchanged"
    more = shop.prepare("all", [*PRODUCTS, *NEW_PRODUCTS, product(30)], QUERIES + NEW_QUERIES)
    assert contents(open_prepared(folder)) == contents(open_prepared(more))
    assert ShardSet(folder / "catalogue").version == 3, "a set alone is its newest version"


def test_deleted_products_leave_their_queries(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.data.shards.shard_set.MAX_ROWS", 1)
    for name in ("MAX_JOINED", "KEYS_AT_ONCE"):  # columns of many samples are joined in a file, in parts
        monkeypatch.setattr(f"mim_lightning.data.shards.shard_set.{name}", 2)
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    old = contents(open_prepared(folder))
    change(folder, delete=Deletion(products=["p0", "p5", "no such"], queries=["q7", "q12"]))
    kept = [row for row in PRODUCTS if row["product_id"] not in ("p0", "p5")]
    queries = []
    for row in QUERIES:
        targets = [name for name in row["product_id"].split("|") if name not in ("p0", "p5")]
        if targets and row["query_id"] not in ("q7", "q12"):
            queries.append({**row, "product_id": "|".join(targets)})
    assert contents(open_prepared(folder)) == contents(open_prepared(shop.prepare("other", kept, queries)))
    assert contents(open_prepared(folder, version=1)) == old
    prepared = open_prepared(folder)
    assert isinstance(prepared.queries("train").keys, np.memmap)
    assert prepared.verify(print)
    assert contents(prepared)
    assert len(prepared.queries("train")._rows) == 1


def test_a_split_without_rows_can_get_some_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    change(folder, shop.tables("new", [product(20)], [query(20, "p20", split="val")]))
    versions = {version: contents(open_prepared(folder, version=version)) for version in (1, 2)}
    change(folder, delete=Deletion(queries=["q10", "q11", "q12", "q20"]))
    assert open_prepared(folder).splits() == ["train"]
    with pytest.raises(ValueError, match=r"queries/val: is not in version 3 of the prepared data"):
        ShardSet(folder / "queries" / "val")
    rows = [query(21, "p20", split="val"), query(22, "p1", split="test")]
    tables, write = shop.tables("more", [], rows), changing.atomic_write

    def written_last(path: Path) -> Any:
        assert (folder / "queries" / "test" / "index.json").is_file(), "or a kill leaves a set without it"
        return write(path)

    monkeypatch.setattr(changing, "atomic_write", written_last)
    change(folder, tables)
    kept = [row for row in QUERIES if row["split"] != "val"]
    both = shop.prepare("both", [*PRODUCTS, product(20)], [*kept, *rows])
    assert contents(open_prepared(folder)) == contents(open_prepared(both))
    assert versions == {version: contents(open_prepared(folder, version=version)) for version in (1, 2)}
    with pytest.raises(ValueError, match=f"{folder}: this change would leave no product"):
        change(folder, delete=Deletion(products=[*(row["product_id"] for row in PRODUCTS), "p20"]))
    assert open_prepared(folder).version == 4


def test_queries_keep_their_references() -> None:
    rows: Any = None
    new: Any = {}
    planner = ChangePlanner(rows, Manifest({}, [], "", None), ProductChange(new, (), {"p1"}), (), SETTINGS)
    facts = {"asked_ids": [], "asked_grades": [], "shown_ids": ["p0", "p1"], "category": "c0"}
    assert planner._changed_query(facts) == {**facts, "shown_ids": ["p0"]}
    assert planner._changed_query({**facts, "shown_ids": ["p1"]}) is None
    assert planner._changed_query({**facts, "shown_ids": ["p0"]}) == {**facts, "shown_ids": ["p0"]}


def test_samples_of_added_rows_are_planned_as_they_are_written(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    plans, plan = [], changing.plan_version

    def keep(*given: Any) -> Any:
        plans.append(plan(*given))
        return plans[-1]

    monkeypatch.setattr(changing, "plan_version", keep)
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    change(folder, shop.tables("new", [product(20)], [query(20, "p20|p1"), query(21, "p20", split="val")]))
    assert [(part.name, len(part.samples)) for part in plans[0].sets] == [
        ("catalogue", 1),
        ("queries/train", 2),
        ("queries/val", 1),
    ]
    assert all(isinstance(part.samples, PlannedSet) for part in plans[0].sets)


def test_a_new_query_cannot_name_a_product_that_is_deleted(shop: Shop) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    tables = shop.tables("new", [], [query(20, "p0"), query(21, "p1")])
    with pytest.raises(ValueError, match=r"the validation found 1 error.*p0"):
        change(folder, tables, delete=Deletion(products=["p0"]))


def test_replaced_rows_are_no_conflict_with_themselves(shop: Shop) -> None:
    """And the rows of a change are compared where its data are, in the memory that is given."""
    folder, reports, places = shop.prepare("shop", PRODUCTS, QUERIES), [], []

    def keep(report: Any, where: Path, reader: Any) -> None:
        reports.append(report)
        places.append(row_store._place.get())

    loud = Validation(ValidationSettings(memory_limit="300MB"), write_report=keep)
    tables = shop.tables("new", [product(2, image="p30.jpg")], [query(10, "p5", text="other"), query(12, "p2")])
    change(folder, replace(tables, replace=True), loud)
    assert not {"product_in_two_splits", "image_in_two_splits"} & {one.kind for one in reports[0].findings}
    assert places[0].folder == staging_path(folder)
    assert {store.memory for store in places[0].stores} == {300_000_000}
    assert len(places[0].stores) == 1


def test_replaced_rows(shop: Shop) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    new = [product(0, image="p30.jpg", title="Other", category="c8"), product(20)]
    queries = [query(3, "p20", text="other"), query(10, "p0", split="train"), query(21, "p0")]
    tables = shop.tables("new", new, queries)
    with pytest.raises(ValueError, match=r"'p0' is already in .*, version 1; add.replace=true replaces it"):
        change(folder, tables)
    assert open_prepared(folder).version == 1
    change(folder, Tables(tables.products, tables.queries, replace=True))
    ids = {row["product_id"] for row in new}, {row["query_id"] for row in queries}
    products = [*(row for row in PRODUCTS if row["product_id"] not in ids[0]), *new]
    rows = [*(row for row in QUERIES if row["query_id"] not in ids[1]), *queries]
    assert contents(open_prepared(folder)) == contents(open_prepared(shop.prepare("other", products, rows)))


def test_a_table_of_everything_changes_what_is_new(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    whole = replace(shop.tables("whole", PRODUCTS, QUERIES), replace=True)
    assert change(folder, whole).version == 1
    assert "nothing to change, version 1 stays" in capsys.readouterr().out
    catalogs, tables = [], list[str]()

    def plan(part: SetChange, *words: Any) -> SetChange:
        found = without_unchanged(part, *words)
        catalogs.extend([found] if part.name == CATALOG else [])
        tables.extend(name.rstrip("0123456789_") for (name,) in current_store().run("SHOW TABLES"))
        return found

    monkeypatch.setattr(version_plan, "without_unchanged", plan)
    products = [product(0, title="Other"), *PRODUCTS[1:], product(20)]
    queries = [*QUERIES[:-1], query(12, "p1", split="val", text="other"), query(20, "p20")]
    change(folder, replace(shop.tables("more", products, queries), replace=True))
    said = capsys.readouterr().out
    assert "catalog: 8 rows (1 removed, 2 new)" in said
    assert "val: 3 rows (1 removed, 1 new)" in said
    # the queries of the product that is another now, and the new one
    assert "train: 13 rows (3 removed, 4 new)" in said
    assert contents(open_prepared(folder)) == contents(open_prepared(shop.prepare("other", products, queries)))
    (catalog,) = catalogs
    assert isinstance(catalog.samples, PlannedSet), "the samples of a catalog of any size are in memory"
    kept = {name: tables.count(name) / tables.count("queries") for name in ("products", "rows", "dropped", "changed")}
    assert kept == {"products": 1, "rows": 0, "dropped": 0, "changed": 0}, "tables that were used up are still there"


def test_compaction_writes_the_rows_that_are_left(shop: Shop) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    assert change(folder, compact=0.5).version == 1, "nothing to do"
    change(folder, delete=Deletion(products=["p0", "p1", "p4"], queries=["q2", "q3"]))
    before, size = contents(open_prepared(folder)), open_prepared(folder).queries("train").index.num_rows
    compacted = change(folder, compact=0.3)
    assert compacted.version == 3
    assert contents(compacted) == before
    train = compacted.queries("train")
    assert all(
        shard.size - size <= 0.3 * shard.size
        for shard, size in zip(map(train.index.shard, range(len(train.sizes))), train.sizes, strict=True)
    )
    assert train.index.num_rows > size
    assert open_prepared(folder).verify(print)


def test_old_readers_refuse_changed_data(shop: Shop) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    change(folder, delete=Deletion(products=["p0"]))
    for path in folder.rglob("index.json"):
        assert json.loads(path.read_text())["version"] == set_index.CHANGED_FORMAT > set_index.FORMAT_VERSION
    # the first format that knows versions names them, the indexes of later versions too
    assert json.loads((folder / "catalogue" / "index-000002.json").read_text())["version"] == 3


def test_an_open_set_goes_on_with_its_version(shop: Shop) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    opened, expected = open_prepared(folder), contents(open_prepared(folder))
    shards = opened.queries("train")
    assert len(shards)  # the index is read, no shard
    digest = shards.digest
    change(folder, shop.tables("new", NEW_PRODUCTS, NEW_QUERIES))
    assert contents(opened) == expected
    assert open_prepared(folder, version=1).queries("train").digest == digest
    later = open_prepared(folder)
    expected = contents(open_prepared(folder))
    change(folder, delete=Deletion(products=["p0"]))
    assert contents(later) == expected


def test_an_addition_is_checked_like_a_preparation(shop: Shop) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    (shop.root / "p25.jpg").write_bytes(b"no image")
    bad = [query(21, "no such"), query(22, "p25"), query(0, "p1")]
    tables = shop.tables("bad", [product(24), product(25), product(3)], bad)
    with pytest.raises(ValueError, match="the validation found 5 errors in 2 rows of products, 3 rows of queries"):
        change(folder, tables)
    assert not any((folder / "catalogue").glob("index-*"))
    reports = []
    drop = Validation(
        ValidationSettings(on_invalid="drop", max_invalid="100%"),
        write_report=lambda report, where, reader: reports.append(report),
    )
    change(
        folder, shop.tables("bad", [product(24), product(25), product(3)], [*bad, query(23, "p3", split="val")]), drop
    )
    (report,) = reports
    assert {finding.kind for finding in report.errors} == {
        *("duplicate_id", "unknown_product", "unreadable_image", "answer_left_out"),
    }
    assert dict(report.num_rows) == {"products": 3, "queries": 4}, "of the addition alone"
    assert report.counts["product_in_two_splits"] == 1
    added = shop.prepare("other", [*PRODUCTS, product(24)], [*QUERIES, query(23, "p3", split="val")])
    assert contents(open_prepared(folder)) == contents(open_prepared(added))


def test_images_that_are_there_are_found(shop: Shop) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    new = [
        query(20, "p6", split="val", image="q1.jpg"),  # that of a query to train on
        query(21, "p5", image="p5.jpg"),  # of its own product, which the addition knows
        query(22, "p5", image="p2.jpg"),  # of another product
        query(23, "p6", image="q2.jpg"),  # in the same split
    ]
    reports = []
    loud = Validation(write_report=lambda report, where, reader: reports.append(report))
    change(folder, shop.tables("new", [], new), loud)
    found = {(finding.kind, finding.row_id) for finding in reports[0].findings}
    assert found >= {("image_in_two_splits", "q20"), ("photo_in_catalogue", "q21"), ("reference_in_catalogue", "q22")}
    assert not {row_id for kind, row_id in found if kind != "product_in_two_splits"} - {"q20", "q21", "q22"}
    assert reports[0].counts["photo_in_catalogue"] == reports[0].counts["image_in_two_splits"] == 1
    dropping = ValidationSettings(treat_as_invalid=["image_in_two_splits"])
    with pytest.raises(ValueError, match=r"the same image is in split 'train' of .*: q1"):
        change(folder, shop.tables("bad", [], [query(30, "p6", split="val", image="q1.jpg")]), Validation(dropping))


@pytest.mark.slow
def test_folds_keep_their_products(tmp_path: Path) -> None:
    folds = [ProductDisjointSplits(2, fold, "") for fold in range(2)]
    new = [*(query(13 + number, f"p{number}") for number in range(7)), *(query(20 + n, f"p{20 + n}") for n in range(9))]
    held_out = []
    for fold in folds:
        root = tmp_path / str(fold.fold)
        root.mkdir()
        shop = Shop(root, fold)
        folder = shop.prepare("shop", PRODUCTS, QUERIES)
        before = {name for row in evaluated_products(folder) for name in row}
        change(folder, shop.tables("new", [product(20 + number) for number in range(9)], new))
        after = {name for row in evaluated_products(folder) for name in row}
        trained = open_prepared(folder).queries("train")
        names = {trained.read_facts(number)["product_id"] for number in range(len(trained))}
        assert not names & after
        assert before <= after
        assert names | after == {*(f"p{number}" for number in range(7)), *(f"p{20 + number}" for number in range(9))}
        held_out.append(after)
    assert not held_out[0] & held_out[1], "a new product is in one fold"
    assert all(any(name in held for name in ("p20", "p21", "p22", "p23", "p24", "p25", "p26")) for held in held_out)


def evaluated_products(folder: Path) -> list[list[str]]:
    shards = open_prepared(folder).queries("val")
    return [shards.read_facts(number)["asked_ids"] for number in range(len(shards))]


def die_at(event: int) -> list[int]:
    """Kill this process before a file is put in place for the `event`-th time; return a list that grows with each."""
    events: list[int] = []

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(events) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            events.append(event)
            return function(*arguments, **options)

        return call

    for name in ("link", "replace", "rename", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    return events


def run_killed(folder: Path, tables: Tables, event: int, **others: Any) -> int:
    """Make a change in a process that is killed at an event; return how the process ended."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            die_at(event)
            change(folder, tables, **others)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_killed_change_leaves_one_version_whole(shop: Shop) -> None:
    folder, tables = shop.prepare("shop", PRODUCTS, QUERIES), shop.tables("new", NEW_PRODUCTS, NEW_QUERIES)
    both = contents(open_prepared(shop.prepare("both", PRODUCTS + NEW_PRODUCTS, QUERIES + NEW_QUERIES)))
    old, event, step, outcomes = contents(open_prepared(folder)), 3, 29, []
    ids = open_prepared(folder).content()
    while True:
        ended = run_killed(folder, tables, event)
        prepared = open_prepared(folder)
        outcomes.append(prepared.version)
        assert contents(prepared) == (old if prepared.version == 1 else both)
        if ended == 0 or prepared.version == 2:
            break
        event += step
    assert outcomes.count(1) > 3, "it was killed at several points"
    change(folder, tables)
    assert open_prepared(folder).version == 2, "the same change again is none"
    assert contents(open_prepared(folder)) == both
    assert contents(open_prepared(folder, version=1)) == old
    assert open_prepared(folder, version=1).content() == ids


def test_two_changes_at_once_exclude_each_other(shop: Shop) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    tables = [shop.tables(f"new{number}", [product(20 + number)], []) for number in range(2)]
    entered, go_on = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        write = changing._write

        def wait(*arguments: Any) -> None:
            go_on.send("entered")
            go_on.recv()
            write(*arguments)

        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            changing._write = wait
            change(folder, tables[0])
        finally:
            os._exit(0)
    entered.recv()
    with pytest.raises(ValueError, match=f"{folder}: process {pid} on .* is preparing it with add.products=") as caught:
        change(folder, tables[1])
    assert "wait for it" in str(caught.value)
    entered.send("go on")
    os.waitpid(pid, 0)
    assert change(folder, tables[1]).version == 3
    assert len(open_prepared(folder).catalog()) == len(PRODUCTS) + 2


def test_a_change_that_was_overtaken_is_not_lost(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    tables = [shop.tables(f"new{number}", [product(20 + number)], []) for number in range(2)]
    wait = changing.staging_dir

    def overtaken(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(changing, "staging_dir", wait)
        change(folder, tables[0])
        return wait(*arguments, **options)

    monkeypatch.setattr(changing, "staging_dir", overtaken)
    with pytest.raises(ValueError, match=f"{folder}: another process made version 2 of it meanwhile"):
        change(folder, tables[1])
    assert change(folder, tables[1]).version == 3
    monkeypatch.setattr(changing, "staging_dir", overtaken)
    tables[0] = shop.tables("same", [product(22)], [])
    assert change(folder, tables[0]).version == 4, "the same change, made by the other"


def test_a_version_that_is_made_again_is_downloaded_again(shop: Shop, tmp_path: Path) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    shutil.copytree(folder, tmp_path / "copy")
    cache = CacheSettings(str(tmp_path / "cache"), timeout=20)
    with serving(folder) as store:
        for number in (20, 21):
            change(folder, shop.tables(f"new{number}", [product(number)], []))
            served = ShardSet(f"{store.address}/catalogue", cache)
            assert served.keys.tolist() == open_prepared(folder).catalog().keys.tolist()
            assert served.read([7])[0].product_id == f"p{number}"
            assert served.read([0])
            if number == 20:
                shutil.rmtree(folder)
                shutil.copytree(tmp_path / "copy", folder)
        assert store.asked["catalogue/000000.tar"] == 1, "the first version's files are the same"


def test_versions_at_an_address(shop: Shop, tmp_path: Path) -> None:
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    cache = CacheSettings(str(tmp_path / "cache"), timeout=20)
    with serving(folder) as store:
        first = open_prepared(store.address, cache)
        old = contents(open_prepared(folder))
        read = {name: first.open_set(name).read(range(3)) for name in ("queries/train", "queries/val", "catalogue")}
        change(folder, shop.tables("new", NEW_PRODUCTS, NEW_QUERIES), delete=Deletion(["p2"]))
        store.asked.clear()
        assert contents(first, old) == old, "an open version goes on"
        assert contents(open_prepared(store.address, cache)) == contents(open_prepared(folder))
        assert max(store.asked[name] for name in store.asked if name.endswith(".tar")) == 1, "one copy for all versions"
        assert not [name for name in read if store.asked[f"{name}/000000.tar"]], "downloaded for the first version"
        assert ShardSet(f"{store.address}/catalogue", cache).version == 2
        with pytest.raises(ValueError, match=r"has no version 3; it has 1, 2"):
            open_prepared(store.address, cache, version=3)
        assert contents(open_prepared(store.address, cache, version=1)) == old


@pytest.mark.slow
def test_data_of_several_sets_have_a_version_each(shop: Shop) -> None:
    folder, web = (shop.prepare(name, PRODUCTS, QUERIES) for name in ("shop", "web"))
    change(folder, shop.tables("new", NEW_PRODUCTS, NEW_QUERIES))
    mixture = {"web": MixtureEntry(str(folder), 0.5, "shared"), "late": MixtureEntry(str(folder), 0.1, "shared")}
    data = {"folder": str(web), "mixture": {name: {"folder": entry.folder} for name, entry in mixture.items()}}
    assert find_versions(data) == {"main": 1, "web": 2, "late": 2}
    assert find_versions({**data, "version": {"web": 1}}) == {"main": 1, "web": 1, "late": 2}
    opened = OpenedData(web, "train", "val", mix=mixture, versions={"web": 1})
    assert opened.versions == {"main": 1, "web": 1, "late": 2}
    lengths = [len(part) for part in opened.train.sets.values()]
    assert lengths == [12, 12, 16]
    with pytest.raises(ValueError, match=r"data\.version\.other: there are no such data; there are main, web, late"):
        find_versions({**data, "version": {"other": 1}})
    with pytest.raises(ValueError, match=r"data\.version=two: give a whole number from 1"):
        find_versions({**data, "version": "two"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add.replace=true"], "add.replace=true: give add.products or add.queries"),
        (["add.products=a.csv", "overwrite=true"], "overwrite=true: not together with add, delete or compact"),
        (["delete.products=[a]", "engine=ray"], "engine=ray: prepares data as a whole"),
        (["delete.products=[a]", "compact=0.5"], "compact: not together with add or delete"),
        (["list_versions=true", "overwrite=true"], "overwrite=true: not together with list_versions"),
        (["prune.keep=1", "engine=ray"], "engine=ray: not together with prune"),
        (["compact=2.0"], "compact=2.0: give a fraction of removed rows"),
        (["add.products=nowhere.csv"], "nowhere.csv: no such file"),
    ],
)
def test_wrong_keys_are_named(shop: Shop, words: list[str], message: str) -> None:
    folder = shop.prepare("shop", PRODUCTS[:2], [])
    with pytest.raises(Exception, match=re.escape(message)):
        prepare(compose("prepare", ["data=shards", f"data.folder={folder}", *words]))


def test_an_address_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.folder=s3://shop/set: only a local folder can be changed"):
        change_data("s3://shop/set", Change(delete=Deletion(["p0"])), QUIET)
