"""Runs of the campaign: their command lines, and what an uninterrupted one leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from PIL import Image

from mim_lightning.config import compose
from mim_lightning.run import Run, identify
from tests.campaign.processes import EntryPoint
from tests.flow.entry_points import logged, state, timeless
from tests.shop import small, write_shop

# two epochs of four steps on one process, of two on two; saved every other step and validated after each epoch
OPTIONS = [
    "model=2tower",
    "callbacks=ema",
    "callbacks.ema.decay=0.9",
    "data.batch_size=6",
    "trainer.log_every_n_steps=1",
]
OPTIONS += ["callbacks.last.every_n_train_steps=2"]
PLACES = {  # that change no result: both share what an uninterrupted one leaves
    "1 process": [],
    "1 process, 1 data worker": ["data.num_workers=1"],
    "2 processes": ["trainer.devices=2"],
}

MOMENTS = [  # in the order in which a run that resumes meets them: what is done, the event, and its number
    ("as it starts", "", 1),
    ("before anything is written", "open .config.yaml.partial", 1),
    ("in a step", "training rows/step", 2),
    ("in the backward pass", "training rows/gradients", 1),
    ("in a checkpoint, before it is written", "open checkpoints/.last.ckpt.partial", 1),
    ("in a checkpoint, before it has its name", "rename checkpoints/.last.ckpt.partial", 1),
    ("in a validation", "training rows/validation", 1),
    ("in the checkpoint of a validation", "rename checkpoints/.best.ckpt.partial", 1),
    ("in the last evaluation", "mkdir .evaluation.partial", 1),
    ("before the results have their name", "rename .results.json.partial", 1),
]


@dataclass(frozen=True)
class WholeRun:
    """An uninterrupted run.

    Args:
        cpu: seconds by role of a process.
        events: changes of its files and moments of its training, in order.
        rows: what each rank read, by epoch and batch.
    """

    run: Run
    cpu: dict[str, float]
    events: list[str]
    rows: set[str]


def command(shop: Path, folder: Path, place: str) -> list[str]:
    log = f"callbacks.progress_bar={{_target_: tests.flow.kill_callback.LogRows, path: {folder}/rows}}"
    return small(shop, *OPTIONS, *PLACES[place], f"paths.runs={folder}", log)


def run_whole(shop: Path, place: str) -> WholeRun:
    """Write a shop, prepare it and train on it without a fault."""
    write_shop(shop / "shop", num_products=7)
    # prepared by itself, so that the events are those of the runs to kill
    words = [word for word in small(shop) if word.startswith(("data", "paths.data"))]
    prepared = EntryPoint("prepare", words, shop / "scratch")
    assert prepared.wait() == 0, prepared.stderr
    folder = shop / "whole"
    words = command(shop, folder, place)
    run = identify(compose("train", words))[0]
    whole = EntryPoint("train", words, shop / "scratch", [run.folder, folder])
    assert whole.wait() == 0, whole.stderr
    roles = [role for role in ("main", "rank0", "rank1") if (whole.scratch / f"cpu-{role}").exists()]
    return WholeRun(run, {role: whole.cpu(role) for role in roles}, whole.events(), set(rows_of(folder)))


def rows_of(folder: Path) -> list[str]:
    path = folder / "rows"
    return path.read_text().splitlines() if path.exists() else []


def assert_equal(run: Run, whole: Run) -> None:
    """Check that a run ended bit for bit as another: weights, optimizer, counters, log and results."""
    assert run.run_id == whole.run_id
    found = state(run)
    for name, value in state(whole).items():
        assert torch.equal(found[name], value), f"{name} differs"
    assert timeless(run) == timeless(whole), "results differ"
    assert logged(run) == logged(whole), "the log differs"
    left = [path.name for path in run.folder.rglob(".*") if path.name != ".lock"]
    assert not left, f"left behind: {left}"


def assert_nothing_torn(folder: Path) -> None:
    """Check that every file that has its name in a folder is whole; those still being written have others."""
    for path in folder.rglob("*"):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert yaml.safe_load(path.read_text())
        elif path.suffix in (".png", ".jpg"):
            Image.open(path).load()
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), f"{path.name} is cut"
