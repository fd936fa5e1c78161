"""Every kind of file that the project writes, damaged in every way: one error that names it, never another.

A run is trained, indexed and exported once; each test damages a copy of one of its files.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.analysis.embeddings import read_embeddings
from mim_lightning.analysis.figures.training_log import read_log
from mim_lightning.analysis.query_history import read_tracked
from mim_lightning.analysis.record import read_record
from mim_lightning.build_index import build_index
from mim_lightning.config import compose
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.data.shards import shard_set
from mim_lightning.data.shards.verify import verify_sets
from mim_lightning.errors import read_error
from mim_lightning.export import export
from mim_lightning.inference.loading import load
from mim_lightning.io.damaged_file import DamagedFileError, describe_error, errors_as_damaged_file
from mim_lightning.model.checkpoint import load_matcher, verify_checkpoint
from mim_lightning.online.event_log import EventLog
from mim_lightning.run import Run, identify
from mim_lightning.search.golden_samples import read_golden_samples
from mim_lightning.search.index.factory import open_index
from mim_lightning.stored_config import validate_assets
from mim_lightning.sweep.job_log import JobLog, JobRecord
from mim_lightning.train import train
from tests.shop import small, write_shop

Read = Callable[[Path], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each."""
    folder = tmp_path_factory.mktemp("made")
    write_shop(folder / "shop", num_products=7)
    config = compose("train", small(folder, "trainer.max_epochs=1", "run.id=run"))
    train(config)
    checkpoint = f"checkpoint={folder}/runs/run/checkpoints/best.ckpt"
    build_index(compose("build_index", [checkpoint, f"output={folder}/index", "trainer=cpu"]))
    export(compose("export", [checkpoint, f"output={folder}/export"]))
    (folder / "sweep").mkdir()
    JobLog(folder / "sweep", ["seed"]).write(JobRecord(0, {"seed": "1"}, "running", "run"))
    (folder / "failed.json").write_text(json.dumps({"kind": "ValueError", "reason": "diverged"}))
    EventLog(str(folder / "events.sqlite"))
    return folder


def read_set(set_folder: Path) -> None:
    shard_set._OPEN._forget()  # or a shard that was read once stays open
    shards = open_prepared(set_folder.parents[1]).queries(set_folder.name)
    for name in ("keys", "product_keys", "category_keys", "weights"):
        assert len(shards.column(name)) == len(shards)
    shards.read(range(len(shards)))


def verify(prepared: Path) -> None:
    """Raise what verifying names, as one error."""
    found = verify_sets(prepared, ["catalogue", "queries/train"])
    if found.damaged:
        raise ValueError("; ".join(found.damaged))


@dataclass(frozen=True)
class Kind:
    """A kind of file: a pattern within the made folder, and what reads it, given a path of which it is part."""

    pattern: str
    read: Read
    level: int = 0  # how many folders above the file `read` is given
    may_be: tuple[str, ...] = ()  # damages that leave a file of the same kind


# half a line, as a writer that was killed leaves it, counts for nothing
TORN = ("empty", "cut to 1", "cut to 9", "cut", "null", "[]", "{}", "nested", "long header")
KINDS = {
    "checkpoint": Kind("runs/run/checkpoints/best.ckpt", load_matcher),
    "checkpoint to resume": Kind("runs/run/checkpoints/last.ckpt", verify_checkpoint),
    "config": Kind("runs/run/config.yaml", lambda folder: same_run(folder), 1, ("cut",)),  # it is written again
    "results": Kind("runs/run/results.json", lambda folder: Run("run", folder).read_results(), 1),
    "record": Kind("runs/run/evaluation/record.json", read_record, 1),
    "record of a direction": Kind("runs/run/evaluation/image_to_image.parquet", read_record, 1),
    "embeddings of a record": Kind("runs/run/evaluation/embeddings.safetensors", read_embeddings, 1),
    "history": Kind("runs/run/browser/history.jsonl", read_tracked, 1, TORN),
    "log": Kind("runs/run/csv/version_0/metrics.csv", read_log, 3, TORN),
    "export facts": Kind("export/config.json", load, 1),
    "export fingerprint": Kind("export/fingerprint", load, 1),
    "export weights": Kind("export/model.safetensors", load, 1),
    "index card": Kind("index/card.json", open_index, 1),
    "index": Kind("index/main_index*.faiss", open_index, 1),
    "index rows": Kind("index/main_rows*.npy", open_index, 1),
    "index products": Kind("index/main_products*.arrow", open_index, 1),
    "golden samples": Kind("index/canaries*", read_golden_samples),
    "set index": Kind("prepared/manifest/queries/train/index.json", read_set, 1),
    "column": Kind("prepared/manifest/queries/train/product_keys.npy", read_set, 1),
    "byte index": Kind("prepared/manifest/queries/train/000000.npy", read_set, 1),
    "shard": Kind("prepared/manifest/queries/train/000000.tar", read_set, 1),
    "settings of a set": Kind("prepared/manifest/settings.json", lambda folder: open_prepared(folder).describe(), 1),
    "verified set index": Kind("prepared/manifest/queries/train/index.json", verify, 3),
    "verified column": Kind("prepared/manifest/queries/train/product_keys.npy", verify, 3),
    "verified byte index": Kind("prepared/manifest/queries/train/000000.npy", verify, 3),
    "verified shard": Kind("prepared/manifest/queries/train/000000.tar", verify, 3),
    "job record": Kind("sweep/jobs/*.json", lambda folder: JobLog(folder).read(), 2),
    "note of a failure": Kind("failed.json", read_error),
    "events": Kind("events.sqlite", lambda path: EventLog(str(path), create=False).close()),
}


def same_run(folder: Path) -> None:
    shop = folder.parents[1]
    identify(compose("train", small(shop, "trainer.max_epochs=1", "run.id=run")))


@functools.cache
def find_undamaged(kind: str, made: Path) -> Path:
    """Return the file of a kind, which can be read."""
    what = KINDS[kind]
    path = min(made.glob(what.pattern))
    what.read(path.parents[what.level - 1] if what.level else path)
    return path


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def cut(length: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(length if length >= 1 else len(content) * length)])

    return damage


def write(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": cut(0),
    "cut to 1": cut(1),
    "cut to 9": cut(9),
    "cut": cut(0.6),
    "random": lambda path: path.write_bytes(random.Random(0).randbytes(max(64, path.stat().st_size))),
    "picture": write(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "null": write(b"null"),
    "[]": write(b"[]"),
    "{}": write(b"{}"),
    "nested": write(b"[" * 100_000),
    "array of many": write(
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 2, 2), }".ljust(117)
        + b"\n"
    ),
    "long header": write((2**60).to_bytes(8, "little") + bytes(100)),
    "folder": as_folder,
    "pipe": as_pipe,
    "device": as_device,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named(kind: str, damage: str, made: Path) -> None:
    what, path = KINDS[kind], find_undamaged(kind, made)
    place = path.parents[what.level - 1] if what.level else path
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        shutil.copyfile(aside, path)
        DAMAGES[damage](path)
        try:
            what.read(place)
        except (ValueError, OSError) as error:
            assert path.stem in str(error) and "\n" not in str(error), error
            assert len(str(error)) < 600
        else:
            assert damage in what.may_be
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        aside.rename(path)


@pytest.mark.parametrize("text", ["", "{", "null", "[" * 100_000, "\x00\x01"])
def test_a_damaged_asset_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"best\.ckpt, query_text/tokenizer\.json: damaged"):
        validate_assets({"query_text": {"tokenizer.json": text}}, Path("best.ckpt"))


@pytest.mark.parametrize("kind", [ValueError, KeyError])
def test_messages_of_a_reader_are_one_harmless_line(kind: type[Exception]) -> None:
    said = describe_error(kind("\x1b[2J", "a\nb\u202e", "x" * 1_000) if kind is ValueError else kind("\x9b" * 1_000))
    assert said.isprintable() and len(said) < 250


def test_an_error_keeps_its_parts_between_processes() -> None:
    error = DamagedFileError("a/b.npy", "cut short", "build it again")
    make, arguments = error.__reduce__()
    assert str(make(*arguments)) == str(error) == "a/b.npy: damaged (cut short); build it again"


def test_disk_errors_stay_os_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"), errors_as_damaged_file(tmp_path / "gone"):
        pass
    path = tmp_path / "there"
    path.touch()
    with pytest.raises(OSError, match=r"Input/output error: '.*there'"), errors_as_damaged_file(path):
        raise OSError(5, "Input/output error")
