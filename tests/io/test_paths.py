"""Paths and URLs as one type."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from mim_lightning.io import paths
from mim_lightning.io.paths import PathOrUrl, find_files, io_errors_as_value_error, join, suffix, to_path_or_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("a/b.csv", Path("a/b.csv")), ("file:///a%20b.csv", Path("/a b.csv")), ("FILE:///a.csv", Path("/a.csv"))],
        *[
            ("s3://shop/a.csv", "s3://shop/a.csv"),
            ("https://x/a?b=c", "https://x/a?b=c"),
            ("c:/a.csv", Path("c:/a.csv")),
        ],
    ],
)
def test_texts_become_paths_or_urls(text: str, expected: PathOrUrl) -> None:
    assert to_path_or_url(text) == expected


def test_relative_paths_start_at_the_root() -> None:
    assert join(Path("/shop"), "a.jpg") == Path("/shop/a.jpg")
    assert join(Path("/shop"), "/b/a.jpg") == join("s3://shop", "/b/a.jpg") == Path("/b/a.jpg")
    assert join("s3://shop/", "a b.jpg") == "s3://shop/a b.jpg"
    assert join(Path("/shop"), "https://cdn/a.jpg") == "https://cdn/a.jpg"


def test_suffixes() -> None:
    assert [suffix(Path("a.Parquet")), suffix("https://x/a.CSV?sig=b.c"), suffix("s3://x/a")] == [
        ".parquet",
        ".csv",
        "",
    ]


def test_files_of_a_folder_here_and_in_a_store(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in ("b.csv", "in/a.csv", "_SUCCESS.csv", ".hidden/a.csv", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
        store.pipe(f"/found/{name}", b"x")
    assert find_files(tmp_path, (".csv",)) == [tmp_path / "b.csv", tmp_path / "in" / "a.csv"]
    assert find_files("memory://found", (".csv",)) == ["memory:///found/b.csv", "memory:///found/in/a.csv"]
    assert find_files(tmp_path / "a.txt", (".csv",)) == [tmp_path / "a.txt"], "a file is taken whatever its suffix"
    assert find_files(tmp_path / "*.csv", ()) == sorted(tmp_path.glob("*.csv"))
    assert find_files(tmp_path / "missing", (".csv",)) == find_files("memory://missing", (".csv",)) == []
    store.rm("/found", recursive=True)


def test_io_errors_name_the_file_and_bugs_stay_bugs() -> None:
    class StoreError(Exception):
        pass

    for error in (OSError("disk\nfull"), StoreError("disk full")):
        with (
            pytest.raises(ValueError, match=r"^s3://a: cannot be read \(disk full\)$"),
            io_errors_as_value_error("s3://a"),
        ):
            raise error
    for bug in (FileNotFoundError("gone"), KeyError("a"), ValueError("b")):
        with pytest.raises(type(bug)) as caught, io_errors_as_value_error("s3://a"):
            raise bug
        assert caught.value is bug


def test_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert paths.irregular_kind((tmp_path / "file").stat().st_mode) == ""
    assert paths.irregular_kind(tmp_path.stat().st_mode) == "a folder"
    assert paths.irregular_kind(Path("/dev/null").stat().st_mode) == "a pipe, socket or device"
