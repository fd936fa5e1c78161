"""A file is the former one until the new one is whole, and nothing else is left beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mim_lightning.whole_file import whole_file


def test_a_reader_sees_the_former_content_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("former")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "former"
        assert partial.parent == tmp_path  # renaming needs the same disk
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("former")
    with pytest.raises(error), whole_file(path) as partial:
        partial.write_text("half of it")
        raise error
    assert path.read_text() == "former" and list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with whole_file(path) as one:
        with whole_file(path) as other:
            one.write_text("one")
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one"


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "rows.csv"):
        pass
    assert not list(tmp_path.iterdir())
