"""Files of an interrupted evaluation: none of another's is touched, none is written twice, a full disk is left."""

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mim_lightning.checkpoint_evaluation import CheckpointEvaluation
from mim_lightning.interruption import Interruption
from mim_lightning.lit.callbacks import evaluation_parts
from mim_lightning.lit.callbacks.evaluation_parts import EvaluationParts, _Pending
from mim_lightning.metrics import EmbeddingCollector

FACTS = {"fingerprint": "1234"}
QUERIES = 0


def collected(num_rows: int) -> dict[int, EmbeddingCollector]:
    collector = EmbeddingCollector(["query_image"])
    vectors, present = torch.rand(num_rows, 4), torch.ones(num_rows, dtype=torch.bool)
    collector.update(torch.arange(num_rows), {"query_image": vectors}, {"query_image": present}, {}, present)
    return {QUERIES: collector}


def opened(folder: Path, batches: list[tuple[int, int, int]]) -> EvaluationParts:
    """Return a process that has collected some batches of queries."""
    parts = EvaluationParts(folder, FACTS, interval=60)
    assert parts._open(FACTS) is not None
    parts._pending = {QUERIES: _Pending(0, batches)}
    return parts


def write(folder: Path, *firsts: int) -> EvaluationParts:
    """Write batches of two rows as another process does."""
    parts = opened(folder, [(QUERIES, first, 2) for first in firsts])
    parts._write(collected(2 * len(firsts)))
    return parts


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def fail(path: Path) -> Iterator[Path]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        yield path

    monkeypatch.setattr(evaluation_parts, "atomic_write", fail)


def test_a_folder_with_other_files_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("facts.json", "000001.safetensors"):
        (tmp_path / name).write_text("mine")
    parts = EvaluationParts(tmp_path, FACTS, interval=60)
    assert parts._open(FACTS) is None
    parts.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.safetensors", "facts.json"]
    assert len(caplog.messages) == 1 and "000001.safetensors: is no file of an evaluation" in caplog.text


def test_files_of_another_evaluation_and_leftovers_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    write(folder, 0)
    (name,) = (path.name for path in folder.glob("0-*"))
    (folder / f".{name}.0123abcd-77-0123abcd.partial").touch()
    assert EvaluationParts(folder, {}, 60)._open({"fingerprint": "5678"}) == []
    assert [path.name for path in folder.iterdir()] == ["facts.json"]
    EvaluationParts(folder, {}, 60).remove()
    assert not folder.exists()


def test_no_part_is_written_twice_and_none_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 0, 2)
    write(tmp_path, 0)
    write(tmp_path, 2, 4)
    assert len(list(tmp_path.glob("0-*"))) == 3
    fill_disk(monkeypatch)  # what is there can be read nevertheless
    found = EvaluationParts(tmp_path, FACTS, interval=60)._open(FACTS)
    assert found is not None and [[first for _, first, _ in part.batches] for part in found] == [[0, 2], [2, 4]]


def test_a_process_whose_disk_is_full_removes_its_own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 0)
    (other,) = tmp_path.glob("0-*")
    parts = write(tmp_path, 2)
    parts._pending = {QUERIES: _Pending(2, [(QUERIES, 4, 2)])}
    fill_disk(monkeypatch)
    parts._write(collected(4))
    assert not parts.is_on and list(tmp_path.glob("0-*")) == [other]


def test_an_interruption_writes_what_is_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collectors = collected(5)  # the last row is of a batch that was not finished
    monkeypatch.setattr(evaluation_parts, "find_retrieval_eval", lambda _: SimpleNamespace(collectors=collectors))
    trainer: Any = None
    for interruption, num_files in ((ValueError(), 0), (Interruption(signal.SIGTERM), 1)):
        parts = opened(tmp_path, [(QUERIES, 0, 2), (QUERIES, 2, 2)])
        parts.on_exception(trainer, trainer, interruption)
        assert len(list(tmp_path.glob("0-*"))) == num_files
    (part,) = parts._open(FACTS) or ()
    rows = parts._read(part)
    assert part.num_rows == 4 and rows["row_keys"].tolist() == [0, 1, 2, 3]
    parts = opened(tmp_path, [(QUERIES, 4, 1)])
    collectors[QUERIES].take_table()
    parts.on_exception(trainer, trainer, Interruption(signal.SIGTERM))  # while it ranks
    assert len(list(tmp_path.glob("0-*"))) == 1


@pytest.mark.parametrize("is_on", [True, False])
def test_results_are_written_in_the_room_of_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_on: bool
) -> None:
    parts = write(tmp_path / "parts", 0)
    parts.is_on = is_on
    attempts: list[bool] = []

    def save(*_: Any) -> None:
        attempts.append(parts.folder.exists())
        if parts.folder.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mim_lightning.lit.evaluation.save_evaluation", save)
    given: Any = SimpleNamespace(matcher=None, fingerprint="1234")
    trained: dict[str, Any] = {"run": {"id": "mine"}}
    CheckpointEvaluation("", "", {"val/x/hit@1": 0.5}, given, trained, None, given, given, parts).save(tmp_path)
    assert attempts == ([True, False] if is_on else [False]) and (tmp_path / "results.json").is_file()
