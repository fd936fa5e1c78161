"""Untrusted indexes: files outside the folder and files that contradict the card are refused."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import faiss
import numpy as np
import pytest

from mim_lightning.search.index.card import COST_NUMBERS
from mim_lightning.search.index.factory import open_index
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.size_cost import describe_cost
from tests.search.index.catalog import make_shop

COST = {"direction": "image_to_product", "num_rows": 9, **dict.fromkeys(COST_NUMBERS, 0.5)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_shop(40, 15).build(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def change(folder: Path) -> Callable[..., None]:
    """Change the card, `keys` deep."""

    def call(*keys: str, value: Any) -> None:
        card = place = json.loads((folder / "card.json").read_text())
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / "card.json").write_text(json.dumps(card))

    return call


@pytest.fixture
def swap(folder: Path) -> Callable[[str, bytes], None]:
    """Give a part of the index another content, and let the card say so: size and checksum are right."""

    def call(part: str, content: bytes) -> None:
        card = json.loads((folder / "card.json").read_text())
        stored = card["files"][f"main_{part}"]
        (folder / stored["name"]).write_bytes(content)
        stored |= {"num_bytes": len(content), "crc32": crc32(content)}
        (folder / "card.json").write_text(json.dumps(card))

    return call


def content_of(folder: Path, part: str) -> bytes:
    return next(folder.glob(f"main_{part}-*")).read_bytes()


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/b", "", ".", "..", "a\0b", 7, None, ["a"], "x.py"])
def test_files_are_named_plainly(folder: Path, change: Callable, name: Any) -> None:
    change("files", "main_rows", "name", value=name)
    with pytest.raises(ValueError, match=r"card\.json: .*cannot be the name of a file|is the name of code"):
        open_index(folder)


@pytest.mark.parametrize("part", ["index", "rows", "products"])
def test_links_do_not_lead_out(folder: Path, tmp_path: Path, part: str) -> None:
    path = next(folder.glob(f"main_{part}-*"))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{path.name}: is a link that leads out of"):
        open_index(folder)


def test_a_pipe_is_not_a_file(folder: Path) -> None:
    path = next(folder.glob("main_rows-*"))
    size = path.stat().st_size
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(
        ValueError,
        match=rf"{path.name}: is (a folder|a pipe, socket or device), not a file|has 0 bytes, should have {size}",
    ):
        open_index(folder)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("kind",), "hnsw"),
        (("kind",), "ivf_pq"),
        (("kind",), "unknown"),
        (("kind",), "binary_flat"),
        (("kind",), "int8_hnsw"),
        (("dimension",), 7),
        (("full_dimension",), 6),
        (("full_recall",), 7),
        (("memory_bytes_per_row",), "many"),
        (("settings", "precision"), "int4"),
        (("extra", "trained_widths"), ["8"]),
        (("extra", "crops"), {"grid": "two"}),
        (("extra", "crops"), {"grid": 2, "boxes": "parts"}),
        (("extra", "size_cost"), {}),
        (("extra", "size_cost"), COST | {"ndcg": None}),
        (("extra", "size_cost"), COST | {"num_rows": "many"}),
        (("settings",), {"unknown": 1}),
        (("settings", "nprobe"), "many"),
        (("files",), {}),
        (("files", "main_rows", "num_bytes"), "many"),
        (("recall",), None),
        (("num_rows",), None),
        (("num_rows",), "many"),
        (("num_products",), {}),
        (("recall", "value"), "good"),
        (("created",), 7),
        (("extra",), 7),
        (("extra", "catalogues"), 7),
        (("extra", "catalogues"), [{}]),
        (("extra", "model"), ["x"]),
        (("extra", "facets"), {"price": {"min": 1, "max": "x"}}),
        (("extra", "facets"), {"price": 1}),
        (("extra", "facets"), {"price": {"values": [{}]}}),
    ],
)
def test_a_card_that_contradicts_the_index_is_one_line(folder: Path, change: Callable, keys: Any, value: Any) -> None:
    change(*keys, value=value)
    with pytest.raises(ValueError, match=str(folder)) as caught:
        open_index(folder)
    assert "\n" not in str(caught.value)


def test_the_cost_of_too_few_queries_for_an_interval_is_read(folder: Path, change: Callable) -> None:
    change(
        "extra", "size_cost", value=COST | dict.fromkeys(("low", "high", "difference_low", "difference_high"), np.nan)
    )
    cost = describe_cost(open_index(folder).card)
    assert cost == "nDCG@10 0.500 of image_to_product, +0.500 from whole vectors; 0 queries/s of 9 rows"


def test_faiss_sees_only_what_the_card_promises(folder: Path, swap: Callable) -> None:
    right = content_of(folder, "index")
    assert struct.unpack("<4siq", right[:16]) == (b"IxFI", 6, 40)
    hostile = {
        "another class": b"IxMp" + right[4:],
        "another dimension": right[:4] + struct.pack("<i", 2**30) + right[8:],
        "more rows": right[:8] + struct.pack("<q", 2**40) + right[16:],
        "fewer rows": right[:8] + struct.pack("<q", -1) + right[16:],
        "nothing": b"",
        "text": b"not an index at all",
    }
    for content in hostile.values():
        swap("index", content)
        with pytest.raises(ValueError, match=r"main_index-\w+\.faiss: not readable .*no flat index of 40 rows"):
            open_index(folder)
    swap("index", right[:-8])  # fewer numbers than rows
    with pytest.raises(ValueError, match=r"main_index-\w+\.faiss: damaged .*rebuild the index"):
        open_index(folder)
    swap("index", right)
    open_index(folder)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_pq", "sq8"])
def test_headers_are_those_of_faiss(tmp_path: Path, kind: str) -> None:
    shop = make_shop(400, 400)
    shop.build(tmp_path / "index", IndexSettings(kind=kind, min_recall=0, nlist=4))
    assert open_index(tmp_path / "index").card.kind == kind
    assert faiss.read_index(str(next((tmp_path / "index").glob("main_index-*")))).ntotal == 400


def array(values: np.ndarray) -> bytes:
    import io

    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


@pytest.mark.parametrize(
    "rows",
    [
        np.full(40, 15, np.int32),
        np.full(40, -1, np.int32),
        np.zeros(40, np.int64),
        np.zeros((40, 1), np.int32),
        np.zeros(40, np.float32),
    ],
)
def test_rows_point_at_products(folder: Path, swap: Callable, rows: np.ndarray) -> None:
    swap("rows", array(rows))
    with pytest.raises(ValueError, match="do not match each other"):
        open_index(folder)


def test_pickled_arrays_are_not_read(folder: Path, swap: Callable, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    objects = np.empty(40, dtype=object)
    objects[:] = [Touch()] * 40
    content = array(objects)
    swap("rows", content)
    with pytest.raises(ValueError, match=r"main_rows-\w+\.npy: "):
        open_index(folder)
    assert not (tmp_path / "ran").exists()
