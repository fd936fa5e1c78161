"""Old versions go with the files that only they name; nobody's version is taken away, and a kill loses nothing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import yaml

from mim_lightning.config import compose
from mim_lightning.data.preparation.prepared import PreparedData, open_prepared
from mim_lightning.data.preparation.staging import LOCK_FILE, staging_path
from mim_lightning.data.versions.change import Deletion
from mim_lightning.data.versions.pruning import prune_versions
from mim_lightning.data.versions.version_list import list_versions
from mim_lightning.io.locks import lock_for_removal, release, try_lock
from mim_lightning.prepare import prepare
from tests.data.versions.test_next_version import (
    NEW_PRODUCTS,
    NEW_QUERIES,
    PRODUCTS,
    QUERIES,
    Shop,
    change,
    contents,
    die_at,
    product,
    query,
)


@pytest.fixture(scope="module")
def four_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of four versions: prepared, added to, without a split and most products, compacted."""
    shop = Shop(tmp_path_factory.mktemp("versions"))
    folder = shop.prepare("shop", PRODUCTS, QUERIES)
    change(folder, shop.tables("new", NEW_PRODUCTS, NEW_QUERIES))
    change(folder, delete=Deletion(["p0", "p1", "p2"], ["q24", "q10", "q11", "q12", "q23"]))
    change(folder, compact=0.3)
    return folder


@pytest.fixture
def folder(four_versions: Path, tmp_path: Path) -> Path:
    return shutil.copytree(four_versions, tmp_path / "shop")


def shards_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.tar")}


def read_elsewhere(folder: Path, version: int, is_lazy: bool) -> tuple[int, int]:
    """Start a process that has a version open until it gets a byte; return it, and where the byte goes."""
    go_on, write, ready, said = *os.pipe(), *os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(write)
            opened = open_prepared(folder, version=version)
            kept = None if is_lazy else opened.catalog()
            opened = opened if is_lazy else None
            os.write(said, b"1")
            os.read(go_on, 1)
            assert kept is not opened
        finally:
            os._exit(0)
    os.read(ready, 1)
    for descriptor in (go_on, ready, said):
        os.close(descriptor)
    return pid, write


def test_versions_are_listed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = list_versions(folder)
    assert [one.number for one in found] == [1, 2, 3, 4]
    assert [one.is_newest for one in found] == [False, False, False, True]
    assert found[0].rows["catalogue"] == {"added": 7, "removed": 0, "samples": 7}
    assert found[2].rows["catalogue"] == {"removed": 3, "added": 0, "samples": 7}
    assert found[0].created <= found[1].created <= found[3].created
    files = [path for path in folder.rglob("*") if path.suffix in (".tar", ".npy") or path.name.startswith("index-")]
    emptied = {folder / "queries" / split / "index-000003.json" for split in ("val", "test")}
    assert sum(one.num_bytes for one in found) == sum(path.stat().st_size for path in {*files} - emptied)
    for name, number in (("one", 1), ("two", 2)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        versions = {"data_versions": {"main": number}} if number > 1 else {}
        config = {"data": {"folder": str(folder)}, "run": {"id": name, **versions}}
        (tmp_path / "runs" / name / "config.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    words = ["data=shards", f"data.folder={folder}", f"paths.runs={tmp_path / 'runs'}"]
    prepare(compose("prepare", [*words, "list_versions=true"]))
    lines = capsys.readouterr().out.splitlines()
    assert "version 1, " in lines[0] and "catalog +7 = 7" in lines[0] and lines[0].endswith("read by 1 run: one")
    assert "catalog -3 = 7" in lines[2] and "run" not in lines[2]
    assert "version 4 (the newest), " in lines[3]
    with pytest.raises(ValueError, match="version 1 is that of run one; keep more versions"):
        prepare(compose("prepare", [*words, "prune.keep=1"]))
    with pytest.raises(ValueError, match="version 2 is that of run two"):
        prune_versions(folder, 2, {2: ["two"]})
    assert len(list_versions(folder)) == 4
    prepare(compose("prepare", [*words, "prune.keep=2", "prune.force=true"]))
    assert "removed versions 1, 2; " in capsys.readouterr().out
    assert [one.number for one in list_versions(folder)] == [3, 4]


def test_what_no_kept_version_names_is_removed(folder: Path, tmp_path: Path) -> None:
    newest, before = contents(open_prepared(folder)), shards_of(folder)
    third = contents(open_prepared(folder, version=3))
    free = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    prune_versions(folder, 2)
    assert contents(open_prepared(folder, version=3)) == third, "both versions are whole"
    pruned = prune_versions(folder, 1)
    assert pruned.versions == [3] and pruned.num_bytes > 0
    assert contents(open_prepared(folder)) == newest
    assert open_prepared(folder).verify(print)
    assert not open_prepared(folder).find_damage(is_thorough=True)
    with pytest.raises(ValueError, match="has no version 3; it has 4"):
        open_prepared(folder, version=3)
    left = shards_of(folder)
    read = {
        str(Path(shards.shard_name(idx)).relative_to(folder))
        for name in open_prepared(folder).content()
        for shards in [open_prepared(folder).open_set(name)]
        for idx in range(len(shards.sizes))
    }
    assert left == read < before
    assert not (folder / "queries" / "val").exists() and not (folder / "queries" / "test").exists()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < free
    assert str(prune_versions(folder, 1)) == "nothing to remove"
    # the data can be changed on: also a split that is gone
    shop = Shop(tmp_path)
    rows = [query(30, "p30", split="val"), query(31, "p3")]
    change(folder, shop.tables("more", [product(30)], rows))
    names = ("p3", "p4", "p5", "p6", "p20", "p21", "p22", "p30")
    queries = []
    for row in [*QUERIES, *NEW_QUERIES, *rows]:
        targets = [name for name in row["product_id"].split("|") if name in names]
        if targets and row["query_id"] not in ("q24", "q10", "q11", "q12", "q23"):
            queries.append({**row, "product_id": "|".join(targets)})
    products = [row for row in [*PRODUCTS, *NEW_PRODUCTS, product(30)] if row["product_id"] in names]
    assert contents(open_prepared(folder)) == contents(open_prepared(shop.prepare("other", products, queries)))
    assert open_prepared(folder).version == 5


def test_a_version_that_a_process_reads_stays(folder: Path, tmp_path: Path) -> None:
    """Whether it has opened its sets, or not yet; of data that were not changed when it came, too."""
    pid, write = read_elsewhere(folder, 2, is_lazy=True)
    before = shards_of(folder)
    with pytest.raises(ValueError, match=f"{folder}: a running process reads version 2"):
        prune_versions(folder, 1)
    assert shards_of(folder) == before and len(list_versions(folder)) == 4
    os.close(write)
    os.waitpid(pid, 0)
    shop = Shop(tmp_path)
    other = shop.prepare("first", PRODUCTS, QUERIES)
    pid, write = read_elsewhere(other, 1, is_lazy=False)
    change(other, delete=Deletion(["p0"]))
    with pytest.raises(ValueError, match="a running process reads version 1"):
        prune_versions(other, 1)
    pruned = prune_versions(other, 1, is_forced=True)
    assert pruned.versions == [1]
    os.close(write)
    os.waitpid(pid, 0)
    assert prune_versions(folder, 1).versions == [1, 2, 3]


def test_a_version_that_is_being_removed_is_not_opened(folder: Path) -> None:
    late = PreparedData(folder, None, 2)
    assert late.version == 2
    removing = lock_for_removal(folder / "catalogue" / "index-000002.json")
    assert removing is not None
    with pytest.raises(ValueError, match=f"^version 2 of {folder} is being removed; name a version that stays by data"):
        open_prepared(folder, version=2)
    with pytest.raises(ValueError, match=f"^version 2 of {folder}/catalogue is being removed"):
        late.catalog()
    os.close(removing)
    prune_versions(folder, 1)
    with pytest.raises(ValueError, match=f"^version 2 of {folder} is being removed"):
        late.hold()


def test_a_first_version_without_links_is_removed_by_force_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its index is a copy there: nobody who opened it earlier has a lock on it."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ValueError, match=r"without hard links .* version 1; remove it with prune.force=true"):
        prune_versions(folder, 3)
    assert prune_versions(folder, 3, is_forced=True).versions == [1]
    assert prune_versions(folder, 2).versions == [2]


def test_one_process_changes_data_at_a_time(folder: Path) -> None:
    lock = try_lock(staging_path(folder) / LOCK_FILE)
    assert lock is not None
    with pytest.raises(ValueError, match=f"{folder}: process {os.getpid()} on .* is changing it"):
        prune_versions(folder, 1)
    release(lock)
    with pytest.raises(ValueError, match=r"prune\.keep=0: the newest version cannot be removed"):
        prune_versions(folder, 0)
    with pytest.raises(ValueError, match="no prepared data here"):
        prune_versions(folder / "nowhere", 1)


def test_a_killed_removal_is_finished_by_the_next(folder: Path) -> None:
    newest, event, outcomes = contents(open_prepared(folder)), 0, []
    while True:
        pid = os.fork()
        if pid == 0:
            try:
                die_at(event)
                prune_versions(folder, 1)
            finally:
                os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = [one.number for one in list_versions(folder)]
        outcomes.append((len(found), ended))
        assert found in ([1, 2, 3, 4], [4])
        assert contents(open_prepared(folder)) == newest
        if len(found) == 4:
            assert contents(open_prepared(folder, version=1))
        if ended == 0:
            break
        event += 1 if event < 2 else 9
    assert {num for num, _ in outcomes} == {1, 4}, "it was killed before and after"
    assert sum(num == 1 and ended for num, ended in outcomes), "and while files were removed"
    assert str(prune_versions(folder, 1)) == "nothing to remove"
    assert not (folder / "queries" / "val").exists()
