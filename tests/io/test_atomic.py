"""A file has its former content until the new one is complete, and nothing else is left beside it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mim_lightning.io.atomic import (
    atomic_write,
    atomic_write_folder,
    remove_abandoned,
    restore_former,
    write_errors_named,
)


def test_a_reader_sees_the_former_content_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("former")
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "former"
        assert partial.parent == tmp_path  # renaming needs the same disk
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("former")
    with pytest.raises(error), atomic_write(path) as partial:
        partial.write_text("half of it")
        raise error
    assert path.read_text() == "former" and list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with atomic_write(path) as one:
        with atomic_write(path) as other:
            one.write_text("one")
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one"


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "rows.csv"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_gets_the_mode_of_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    former = os.umask(0o027)
    try:
        with atomic_write(path) as partial:
            save_file({"a": np.zeros(3)}, partial)  # leaves a file for its owner alone
    finally:
        os.umask(former)
    assert path.stat().st_mode & 0o777 == 0o640


def test_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    kill = "import os, sys; from pathlib import Path; from mim_lightning.io.atomic import atomic_write\n"
    kill += "with atomic_write(Path(sys.argv[1])) as partial: partial.write_text('half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", kill, str(path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    with atomic_write(path) as mine:
        mine.write_text("one")
        elsewhere = tmp_path / f".last.ckpt.00000000-{os.getpid()}-00000000.partial"  # on another machine
        elsewhere.write_text("another")
        remove_abandoned(tmp_path)
        assert set(tmp_path.iterdir()) == {mine, elsewhere}
        two_days_ago = time.time() - 2 * 86400
        os.utime(elsewhere, (two_days_ago, two_days_ago))
        remove_abandoned(tmp_path)
        assert set(tmp_path.iterdir()) == {mine}
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "not there" / "rows.csv"
    with pytest.raises(FileNotFoundError, match=re.escape(f"No such file or directory: '{path}'")), atomic_write(path):
        pass


def test_errors_that_name_no_file_name_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "record"
    for named in (None, lambda partial: str(partial / "inner")):
        with pytest.raises(OSError) as caught, atomic_write_folder(path) as partial:
            raise OSError(errno.ENOSPC, "no more", *([named(partial)] if named else []))
        assert caught.value.filename == str(path) and caught.value.strerror == os.strerror(errno.ENOSPC)
    with pytest.raises(OSError) as caught, write_errors_named(path):
        raise OSError(errno.EIO, "of another", str(tmp_path / "other"))
    assert caught.value.filename == str(tmp_path / "other")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_replaced_is_there_until_the_new_is_in_its_place(
    tmp_path: Path, is_folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "last.ckpt", Path.rename
    with atomic_write_folder(path) as partial:
        (partial / "part").write_text("former")

    def replace() -> None:
        if is_folder:
            with atomic_write_folder(path) as partial:
                (partial / "part").write_text("new")
        else:
            with atomic_write(path, replaces_folder=True) as partial:
                partial.write_text("new")

    def stop(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        replace()
    assert (path / "part").read_text() == "former" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    path.rename(tmp_path / ".last.ckpt.00000000-1-00000000.former")  # as a kill leaves it
    restore_former(path)
    assert (path / "part").read_text() == "former" and list(tmp_path.iterdir()) == [path]
    replace()
    assert (path / "part" if is_folder else path).read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with atomic_write_folder(path) as partial:
        (partial / "part").write_text("newer")
    assert (path / "part").read_text() == "newer" and list(tmp_path.iterdir()) == [path]
