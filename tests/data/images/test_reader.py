"""An image is the same bytes from every kind of reference; an unreadable one is an error of one line."""

from __future__ import annotations

import pickle
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from mim_lightning.data.images import table_cells as cells
from mim_lightning.data.images.download import DownloadSettings
from mim_lightning.data.images.reader import ImageReader, ImageRef, TableCell, TarMember
from tests.data.conftest import jpeg

PICTURES = [jpeg(number, 8, 8) for number in range(10)]
HELD = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@pytest.fixture
def reader(tmp_path: Path) -> ImageReader:
    return ImageReader(DownloadSettings(cache=str(tmp_path / "cache")))


def write_parquet(path: Path, values: list[Any], kind: Any, row_group_size: int = 3) -> Path:
    table = pyarrow.table({"number": range(len(values)), "image": pyarrow.array(values, kind)})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def write_arrow(path: Path, values: list[Any], kind: Any) -> Path:
    table = pyarrow.table({"image": pyarrow.array(values, kind)})
    with pyarrow.ipc.new_stream(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=3)
    return path


KINDS = {
    "binary": (pyarrow.binary(), PICTURES),
    "large binary": (pyarrow.large_binary(), PICTURES),
    "struct": (HELD, [{"bytes": data, "path": None} for data in PICTURES]),
}


@pytest.mark.parametrize("is_fetched", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_of_parquet(tmp_path: Path, reader: ImageReader, kind: str, is_fetched: bool) -> None:
    path = write_parquet(tmp_path / "t.parquet", KINDS[kind][1], KINDS[kind][0])
    refs: list[ImageRef] = [TableCell(str(path), row, "image") for row in (9, 0, 4, 3, 8, 2)]
    if is_fetched:
        assert reader.fetch_all(refs) == {}
        assert len(list((tmp_path / "cache" / "tables").iterdir())) == 1
    assert [reader.read(ref) for ref in refs] == [PICTURES[row] for row in (9, 0, 4, 3, 8, 2)]


def test_unpacked_columns_are_read_instead_of_row_groups(
    tmp_path: Path, reader: ImageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "t.parquet", PICTURES, pyarrow.binary())
    refs: list[ImageRef] = [TableCell(str(path), row, "image") for row in range(10)]
    reader.fetch_all(refs)
    (unpacked,) = (tmp_path / "cache" / "tables").iterdir()
    written = unpacked.stat().st_mtime_ns
    monkeypatch.delattr(cells, "_read_group")
    again = pickle.loads(pickle.dumps(reader))
    assert again.fetch_all(refs) == {} and unpacked.stat().st_mtime_ns == written
    assert [again.read(ref) for ref in refs] == PICTURES


def test_a_rewritten_table_is_read_again(tmp_path: Path, reader: ImageReader) -> None:
    cell = TableCell(str(tmp_path / "t.parquet"), 0, "image")
    for number in (1, 2):
        write_parquet(tmp_path / "t.parquet", PICTURES[number:], pyarrow.binary())
        reader.fetch_all([cell])
        assert reader.read(cell) == PICTURES[number]
        assert ImageReader().read(cell) == PICTURES[number]


def test_arrow_cells_and_lists_of_images(tmp_path: Path, reader: ImageReader) -> None:
    values = [PICTURES[:2], PICTURES[2:5], [], PICTURES[5:6]]
    for path in (
        write_arrow(tmp_path / "t.arrow", values, pyarrow.list_(pyarrow.binary())),
        write_parquet(tmp_path / "t.parquet", values, pyarrow.list_(pyarrow.binary()), 2),
    ):
        refs = [TableCell(str(path), row, "image", item) for row, item in [(0, 0), (0, 1), (1, 2), (3, 0)]]
        assert [reader.read(ref) for ref in refs] == [PICTURES[number] for number in (0, 1, 4, 5)]
        with pytest.raises(ValueError, match="damaged"):
            reader.read(TableCell(str(path), 3, "image", 1))


def test_a_cell_may_hold_a_path_or_nothing(tmp_path: Path, reader: ImageReader) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURES[0])
    values = [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}, {"bytes": b"", "path": "gone.jpg"}]
    path = str(write_parquet(tmp_path / "t.parquet", values, HELD))
    assert reader.read(TableCell(path, 0, "image")) == PICTURES[0]
    for row in (1, 2):
        with pytest.raises(ValueError, match="the cell is empty"):
            reader.read(TableCell(path, row, "image"))


@pytest.mark.parametrize("is_fetched", [False, True])
def test_damaged_tables(tmp_path: Path, reader: ImageReader, is_fetched: bool) -> None:
    path = write_parquet(tmp_path / "t.parquet", PICTURES, pyarrow.binary())
    data = bytearray(path.read_bytes())
    place = data.find(PICTURES[4][:20])
    cell = TableCell(str(path), 4, "image")
    if is_fetched:
        path.write_bytes(data[: place + 30])
        with pytest.raises(ValueError, match="the table is damaged") as caught:
            reader.fetch_all([cell])
        assert str(path) in str(caught.value) and not (tmp_path / "cache").exists()
    else:
        path.write_bytes(data[: place + 30])
        with pytest.raises(ValueError, match="the table is damaged"):
            reader.read(cell)
        with pytest.raises(FileNotFoundError):
            reader.read(TableCell(str(tmp_path / "gone.parquet"), 0, "image"))


def test_members_of_tar_files_here_and_in_a_store(tmp_path: Path, reader: ImageReader) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for number, data in enumerate(PICTURES):
            entry = tarfile.TarInfo(f"{number}.jpg")
            entry.size = len(data)
            tar.addfile(entry, BytesIO(data))
    store = fsspec.filesystem("memory")
    store.pipe("/tars/t.tar", (tmp_path / "t.tar").read_bytes())
    with tarfile.open(tmp_path / "t.tar") as tar:
        for place in (str(tmp_path / "t.tar"), "memory://tars/t.tar"):
            refs = [TarMember(place, entry.name, entry.offset_data, entry.size) for entry in tar.getmembers()]
            assert [reader.read(ref) for ref in refs] == PICTURES
    store.rm("/tars", recursive=True)
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[: refs[5].offset + 10])
    with pytest.raises(ValueError, match="ends inside the image"):
        reader.read(TarMember(str(tmp_path / "t.tar"), "5.jpg", refs[5].offset, refs[5].size))


def test_files_addresses_and_what_failed(tmp_path: Path, reader: ImageReader) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURES[0])
    store = fsspec.filesystem("memory")
    store.pipe("/shop/b.jpg", PICTURES[1])
    refs: list[ImageRef] = [tmp_path / "a.jpg", "memory://shop/b.jpg", "memory://shop/c.jpg", tmp_path / "gone.jpg"]
    assert reader.fetch_all(refs) == {"memory://shop/c.jpg": "no such file"}
    store.rm("/shop", recursive=True)
    copy = pickle.loads(pickle.dumps(reader))
    assert [copy.read(ref) for ref in refs[:2]] == PICTURES[:2]
    with pytest.raises(OSError, match=r"^no such file$"):
        copy.read(refs[2])
    with pytest.raises(FileNotFoundError):
        copy.read(refs[3])


def test_references_are_keys() -> None:
    refs = [
        TableCell("t.parquet", 4, "image"),
        TableCell("t.parquet", 4, "image", 1),
        TableCell("t.parquet", 5, "image"),
        TarMember("t.tar", "a.jpg", 512, 9),
        TarMember("t.tar", "a.jpg", 1536, 9),
    ]
    assert len({*refs, *pickle.loads(pickle.dumps(refs))}) == 5
    assert len({str(ref) for ref in refs}) == 5
    assert str(refs[0]) == "t.parquet, row 5, column 'image'"
