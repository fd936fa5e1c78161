"""The line that a command prints at its end is the next command: each test gives it as it is printed."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mim_lightning import next_command
from mim_lightning.artifact_paths import INDEX_CARD
from mim_lightning.cli import compose_arguments
from mim_lightning.config import compose
from mim_lightning.evaluate import VERBATIM_KEYS
from mim_lightning.export import _print_next as print_next_of_exported
from mim_lightning.inference.export_format import ExportFacts
from mim_lightning.metric_names import MetricKey, sampled_name
from mim_lightning.mine import _print_next as print_next_of_mined
from mim_lightning.run import Run
from mim_lightning.search.searcher import open_searcher
from mim_lightning.train import _print_next as print_next_of_trained
from tests.preloaded import PYTHON
from tests.shop import small, write_shop

START = "next: "


def give(line: str, *more: str, cwd: Path) -> subprocess.CompletedProcess:
    """Paste a line into a shell, with further arguments."""
    return subprocess.run(["/bin/sh", "-c", f"{line} {shlex.join(more)}"], cwd=cwd, capture_output=True, text=True)


def next_of(ended: subprocess.CompletedProcess) -> str:
    """Return the next command, which is the last line of what is printed."""
    assert ended.returncode == 0, ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith(START)]
    assert ended.stdout.splitlines()[-1] == line
    return line.removeprefix(START)


def mim(*words: str) -> str:
    return shlex.join([os.environ[PYTHON], "-m", "mim_lightning", *words])


def prepare_command(folder: Path) -> str:
    """Write tables, and return the command that prepares them; splits and folders have names that need care."""
    products, queries = write_shop(folder / "my tables, all", num_products=7)
    queries.write_text(queries.read_text().replace("train,", "training,").replace("val,", "held out,"))
    given = [f"data.source.{name}='{path}'" for name, path in (("products", products), ("queries", queries))]
    place = f"data.folder='{folder}/a shop'"
    return mim("prepare", "data=manifest", *given, place, "data.shards.train_split=training", "num_workers=1")


def small_model(folder: Path) -> str:
    """Return arguments of train after those that its data need."""
    smaller = [word for word in small(folder) if not word.startswith(("data", "trainer.max_epochs"))]
    more = ["data.batch_size=8", "data.num_workers=0", "model=4tower", "trainer.num_sanity_val_steps=0"]
    return shlex.join([*smaller, *more])


@pytest.mark.slow  # the quickstart goes the same way in the default suite
def test_from_tables_to_a_service_by_the_printed_commands(tmp_path: Path) -> None:
    train = next_of(give(prepare_command(tmp_path), cwd=tmp_path))
    data = ["data=shards", f"data.folder='{tmp_path}/a shop'"]
    assert train == mim("train", *data, "data.shards.train_split=training", "data.val_split='held out'")
    build = next_of(give(f"{train} {small_model(tmp_path)} trainer.max_epochs=1", cwd=tmp_path))
    (run,) = (tmp_path / "runs").iterdir()
    checkpoint = f"checkpoint={run}/checkpoints/best.ckpt"
    assert build == mim("build_index", checkpoint, f"output={run}/index")
    assert next_of(give(mim("evaluate", checkpoint), "trainer=cpu", cwd=tmp_path)) == build
    serve = next_of(give(build, "trainer=cpu", cwd=tmp_path))
    assert serve == mim("serve", f"index={run}/index") and num_served(serve, tmp_path) == 7
    assert next_of(give(mim("search", f"index={run}/index", "text=red"), cwd=tmp_path)) == serve
    exported = next_of(give(mim("export", checkpoint, "output=exported"), cwd=tmp_path))
    assert exported == f"{serve} checkpoint=exported" and num_served(exported, tmp_path) == 7


@pytest.mark.slow
def test_what_was_tried_limited_or_finished_goes_on_by_the_printed_commands(tmp_path: Path) -> None:
    prepare = prepare_command(tmp_path)
    assert next_of(give(prepare, "validate_only=true", cwd=tmp_path)) == prepare
    train = next_of(give(prepare, cwd=tmp_path))
    assert next_of(give(prepare, "verify=true", cwd=tmp_path)) == train
    train = f"{train} {small_model(tmp_path)}"
    assert next_of(give(train, "trainer.fast_dev_run=1", cwd=tmp_path)) == train
    unlimited = next_of(give(train, "trainer.max_epochs=2000", "trainer.max_time={seconds: 1}", cwd=tmp_path))
    assert unlimited == f"{train} trainer.max_epochs=2000 trainer.max_time=null"
    (run,) = (tmp_path / "runs").iterdir()
    two = f"{train} trainer.max_epochs=2"
    build = next_of(give(two, cwd=tmp_path))
    assert next_of(give(two, cwd=tmp_path)) == build, "a finished run says it again"
    (run,) = {*(tmp_path / "runs").iterdir()} - {run}
    index = next_of(give(mim("tune_index", f"{run}", "--max-loss", "1", "--output", "curve"), cwd=tmp_path))
    assert "curve=curve/index_curve.json" in index
    assert "this size costs" in give(index, "trainer=cpu", cwd=tmp_path).stdout
    assert next_of(give(mim("plot", f"{run}", "--output", "figures"), cwd=tmp_path)) == build
    tuned = next_of(give(mim("tune_fusion", f"{run}", "--store", f"{run}/checkpoints/best.ckpt"), cwd=tmp_path))
    assert next_of(give(tuned, "trainer=cpu", cwd=tmp_path)).startswith(mim("build_index"))
    embedded = next_of(give(mim("embed", build.split()[-2], "output=vectors"), "trainer=cpu", cwd=tmp_path))
    assert "embedding 0" not in give(embedded, "trainer=cpu", cwd=tmp_path).stdout
    few = "mining.depth=5", "mining.num_candidates=5"
    mined = mim("mine", build.split()[-2], "index=vectors/index", "output=negatives.parquet", *few)
    again = next_of(give(mined, cwd=tmp_path))
    assert "data/sampling=hard_negatives" in again
    next_of(give(again, cwd=tmp_path))


def num_served(line: str, folder: Path) -> int:
    """Return the number of products that a command would serve."""
    words = shlex.split(line)
    config = compose("serve", words[words.index("serve") + 1 :])
    with contextlib.chdir(folder):
        return open_searcher(str(config["index"]), config["checkpoint"]).index.card.num_products


def test_a_line_is_printed_where_a_command_was_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    next_command.print_next("serve", "index=a")
    assert capsys.readouterr().out == "", "a call from Python goes on in Python"
    monkeypatch.setattr(next_command, "is_entry_point", lambda: True)
    monkeypatch.setattr(next_command, "program", lambda folder: ["mim"])
    next_command.print_next("serve", "index=a b's", 3)
    assert capsys.readouterr().out == """next: mim serve 'index=a b'"'"'s' 3\n"""
    next_command.print_next("serve", "index=a\x1b[2J")
    assert capsys.readouterr().out == "", "a line that cannot be shown as it is"


def test_an_export_beside_a_damaged_index_ends_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder is written: an index that nobody asked for must not turn that into a failure."""
    monkeypatch.setattr(next_command, "is_entry_point", lambda: True)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / INDEX_CARD).write_text("{")
    facts = ExportFacts("f" * 16, "f" * 16, "float32", 16, (), {}, {}, {})
    print_next_of_exported(tmp_path / "checkpoints" / "best.ckpt", tmp_path / "exported", facts)
    given = f"checkpoint={tmp_path}/exported output={tmp_path}/index-exported"
    assert capsys.readouterr().out.endswith(f"build_index {given}\n")


def test_what_is_mined_for_a_run_whose_command_is_damaged_ends_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(next_command, "is_entry_point", lambda: True)
    checkpoint, command = tmp_path / "runs" / "one" / "checkpoints" / "best.ckpt", tmp_path / "runs/one/command.txt"
    command.parent.mkdir(parents=True)
    for damaged in (b"mim train 'a", b"\xff\xfe", b"cd /a\0b && mim train\n"):
        command.write_bytes(damaged)
        print_next_of_mined(checkpoint, tmp_path / "negatives.parquet")
    assert capsys.readouterr().out == ""
    command.write_text(f"cd {tmp_path} && mim train data=shards\n")
    print_next_of_mined(checkpoint, tmp_path / "negatives.parquet")
    line = capsys.readouterr().out.removeprefix(START)
    given = f"train data=shards data/sampling=hard_negatives data.sampling.table={tmp_path}/negatives.parquet"
    assert line.startswith(f"cd {tmp_path} && ") and line.endswith(f"{given}\n")


def test_after_a_sampled_gallery_the_whole_one_is_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(next_command, "is_entry_point", lambda: True)
    run, key = Run("one", tmp_path / "my runs, all" / "one"), MetricKey("val", "image_to_image", "hit@1")
    sampled = {str(key._replace(metric=sampled_name(key.metric, 100))): 0.5}
    print_next_of_trained(run, sampled, {"results_from": "best"})
    words = shlex.split(capsys.readouterr().out.removeprefix(START))
    name, *arguments = words[-4:]
    assert name == "evaluate"
    config = compose_arguments("evaluate", arguments, VERBATIM_KEYS)
    assert config["whole_gallery"] is True and config["checkpoint"] == f"{run.best_checkpoint}"
    assert config["output"] == f"{run.folder}/whole_gallery"
    print_next_of_trained(run, {str(key): 0.5}, {"results_from": "best"})
    assert "build_index" in capsys.readouterr().out


def test_the_program_is_named_as_the_shell_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "env" / "bin" / "mim"
    script.parent.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next_command.program(tmp_path) == [sys.executable, "-m", "mim_lightning"]
    script.touch(mode=0o755)
    assert next_command.program(tmp_path) == ["env/bin/mim"]
    assert next_command.program(tmp_path / "else where") == [str(script)]
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{tmp_path}")
    assert next_command.program(tmp_path) == ["mim"]
    other = tmp_path / "mim"
    other.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next_command.program(tmp_path / "else where") == [str(script)], "another installation comes first"
