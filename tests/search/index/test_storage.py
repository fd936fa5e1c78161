"""The folder of an index: whole after a killed save, and every damaged file is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mim_lightning.search.index import storage
from mim_lightning.search.index.factory import open_index
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.interface import ProductIndex
from tests.preloaded import PYTHON
from tests.search.index.catalog import Shop, as_lists, make_shop, quantized

# opens the index in argv[1], changes it, saves, and stops for good at the function named argv[2]
SAVE_AND_STOP = """
import sys, time
import numpy as np, pyarrow as pa
from mim_lightning.search.index import faiss_index, storage
from mim_lightning.search.index.factory import open_index

index = open_index(sys.argv[1])
index.delete(["p000", "p001"])
index.add(np.ones((1, 6), np.float32), ["new"], pa.table({"product_id": ["new"]}))
def stop(*_):
    print("stopped", flush=True)
    time.sleep(600)
for module in (storage, faiss_index) if sys.argv[2] != "replace" else [storage.os]:
    if hasattr(module, sys.argv[2]):
        setattr(module, sys.argv[2], stop)
index.save()
"""
QUERIES = quantized(3, 5)


@pytest.fixture
def shop() -> Shop:
    return make_shop(40, 15)


@pytest.fixture
def folder(tmp_path: Path, shop: Shop) -> Path:
    shop.build(tmp_path / "index")
    return tmp_path / "index"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def named(folder: Path) -> set[str]:
    """Return the files that should be there."""
    files = json.loads((folder / "card.json").read_text())["files"]
    return {".lock", "card.json", *(stored["name"] for stored in files.values())}


def test_a_process_killed_while_saving_leaves_one_whole_index(tmp_path: Path, shop: Shop) -> None:
    """Killed before the card changes hands, the old one; after, the new one; the next save removes what was left."""
    changed = shop.without(["p000", "p001"]).updated(
        Shop(np.ones((1, 6), np.float32), ["new"], {"new": {"product_id": "new"}})
    )
    stops = {"finalize_file": shop, "replace": shop, "remove_unnamed": changed}
    processes = {}
    for stop in stops:
        index = shop.without(["p003"]).build(tmp_path / stop)
        last = shop.without([i for i in shop.records if i != "p003"])
        index.add(last.vectors, last.ids, last.table)  # so that there is something which the next save replaces
        index.save()
        command = [os.environ[PYTHON], "-c", SAVE_AND_STOP, str(tmp_path / stop), stop]
        processes[stop] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for stop, expected in stops.items():
        process, folder = processes[stop], tmp_path / stop
        assert process.stdout is not None and process.stdout.readline() == "stopped\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert names(folder) > named(folder)
        index = open_index(folder, verify=True)
        assert as_lists(index.search(QUERIES, 20)) == expected.answer(QUERIES, 20)
        index.delete(["p002"])
        index.save()
        assert names(folder) == named(folder)
        assert as_lists(open_index(folder).search(QUERIES, 20)) == expected.without(["p002"]).answer(QUERIES, 20)


def test_a_save_that_fails_changes_nothing(folder: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    index, before = open_index(folder), names(folder)
    index.delete(["p000"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "finalize_file", full)
        with pytest.raises(OSError, match="No space left"):
            index.save()
    assert names(folder) == before
    assert as_lists(open_index(folder).search(QUERIES, 20)) == shop.answer(QUERIES, 20)
    index.save()
    assert as_lists(open_index(folder).search(QUERIES, 20)) == shop.without(["p000"]).answer(QUERIES, 20)


def test_saving_writes_only_what_is_new(folder: Path) -> None:
    """Deleting a product of a large catalog must not write the catalog again."""
    index, before = open_index(folder), names(folder)
    index.delete(["p000"])
    index.save()
    assert before < names(folder) == named(folder)
    assert {name.split("-")[0] for name in names(folder) - before} == {"main_dead"}


def test_foreign_files_stay(folder: Path, shop: Shop) -> None:
    (folder / "other.safetensors").write_bytes(b"not ours")
    shop.build(folder)
    assert names(folder) == named(folder) | {"other.safetensors"}


def test_of_two_that_change_an_index_the_second_must_open_it_again(folder: Path, shop: Shop) -> None:
    first, second = open_index(folder), open_index(folder)
    first.delete(["p000"])
    first.save()
    second.delete(["p001"])
    with pytest.raises(ValueError, match="saved by another process since it was opened; open it again"):
        second.save()
    assert as_lists(open_index(folder).search(QUERIES, 20)) == shop.without(["p000"]).answer(QUERIES, 20)
    assert as_lists(second.search(QUERIES, 20)) == shop.without(["p001"]).answer(QUERIES, 20)


def test_an_open_index_outlives_its_files(folder: Path, shop: Shop) -> None:
    """A service continues with the index that it opened while the index is rebuilt."""
    index = open_index(folder)
    make_shop(30, 10, seed=9).build(folder)
    assert as_lists(index.search(QUERIES, 20)) == shop.answer(QUERIES, 20)
    assert index.products(["p000"]) and index.vectors_of("p000").size


@pytest.mark.parametrize("kind", ["flat", "hnsw", "sq8"])
@pytest.mark.parametrize("part", ["index", "rows", "products", "vectors", "dead"])
def test_a_broken_file_is_named(tmp_path: Path, shop: Shop, kind: str, part: str) -> None:
    index = shop.build(tmp_path, IndexSettings(kind=kind, min_recall=0, nlist=2))
    index.delete(["p000"])
    index.save()
    if part == "vectors" and kind != "sq8":
        assert "main_vectors" not in index.card.files
        return
    path = tmp_path / index.card.files[f"main_{part}"].name
    whole = path.read_bytes()
    flipped = bytes([*whole[:-1], whole[-1] ^ 1])
    for content, message in (
        (whole[: len(whole) // 2], f"has {len(whole) // 2} bytes, should have {len(whole)}"),
        (flipped, "was changed or damaged"),
        (None, "is missing"),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            open_index(tmp_path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damage_in_a_large_file_is_found_when_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_ALWAYS_VERIFIED", 0)
    path = folder / open_index(folder).card.files["main_index"].name
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    open_index(folder)
    with pytest.raises(ValueError, match="was changed or damaged"):
        open_index(folder, verify=True)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"files": {}}', "\ud800"])
def test_a_damaged_card_is_an_error(folder: Path, content: str) -> None:
    (folder / "card.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"card\.json: damaged"):
        open_index(folder)


def test_a_folder_without_an_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"contains no index \(no card.json\)"):
        open_index(tmp_path / "nowhere")


def test_no_file_is_unpickled(tmp_path: Path, shop: Shop) -> None:
    """An array of objects, which NumPy would unpickle, is refused even if the card vouches for it."""
    index = shop.build(tmp_path)
    path = tmp_path / index.card.files["main_rows"].name
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    card = json.loads((tmp_path / "card.json").read_text())
    stored = storage.finalize_file(path)
    card["files"]["main_rows"] |= {"num_bytes": stored.num_bytes, "crc32": stored.crc32}
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"main_rows-.*damaged"):
        open_index(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("kind", "mapped"), [("flat", "index"), ("hnsw", "index"), ("sq8", "vectors")])
def test_vectors_stay_in_their_file(tmp_path: Path, kind: str, mapped: str) -> None:
    index = make_shop(400, 400, levels=90).build(tmp_path, IndexSettings(kind=kind, min_recall=0))
    opened = open_index(tmp_path)
    place = opened._segments[0].vectors.ctypes.data
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    inside = [line[-1] for line in lines if int(line[0].split("-")[0], 16) <= place < int(line[0].split("-")[1], 16)]
    assert inside == [str(tmp_path / index.card.files[f"main_{mapped}"].name)]


def test_searches_see_whole_states_while_the_index_changes(folder: Path, shop: Shop) -> None:
    """Threads search while products come and go: every answer is that of one state, none fails."""
    index: ProductIndex = open_index(folder)
    extra = make_shop(8, 2, 77, prefix="new")
    states = [shop.answer(QUERIES, 20), shop.updated(extra).answer(QUERIES, 20)]
    wrong: list[object] = []
    is_done = threading.Event()

    def search() -> None:
        while not is_done.is_set():
            try:
                answer = as_lists(index.search(QUERIES, 20))
            except Exception as error:
                wrong.append(error)
                return
            if answer not in states:
                wrong.append(answer)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        index.add(extra.vectors, extra.ids, extra.table)
        index.delete(list(extra.records))
    is_done.set()
    for thread in threads:
        thread.join()
    assert not wrong
