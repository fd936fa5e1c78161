"""Train the same encoders on the same rows by this project and by what people use instead; evaluate all models alike.

    python -m benchmarks.neighbours --output runs/neighbours
    python -m benchmarks.neighbours --output /tmp/toy --steps 2 --families 8 --seeds 1     to see that everything runs

A folder an arm and seed: results.json and evaluation/ of this project's evaluation, and cost.json, what training took.
Each is trained in a process of its own, one after another; folders that are complete are left as they are.
"""

from __future__ import annotations

import argparse
import ast
import csv
import inspect
import json
import multiprocessing
import os
import platform
import re
import shutil
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine
from benchmarks.training import clip, metric_learning, rows
from benchmarks.training.arms import Arm
from benchmarks.training.ours import train_ours
from benchmarks.training.pace import Pace, Segment
from benchmarks.training.sentences import train_sentence_transformers
from benchmarks.training.setup import Setup
from mim_lightning.config import compose
from mim_lightning.evaluate import evaluate
from mim_lightning.model.checkpoint import PREFIX, SECTION, describe_checkpoint
from mim_lightning.model.matcher import Matcher

READING = (rows.RowDataset, rows.RowCollate, rows.open_image, rows.image_transform, rows.tokenize)
READING += (rows.ShuffledRows, rows._endless, rows.row_loader)
MEASURING = re.compile(r"pace|Segments|def on_epoch_")  # lines of an arm that only measure it
PACKAGES = ("torch", "lightning", "timm", "open_clip_torch", "sentence-transformers", "open-metric-learning")


def leave_untrained(setup: Setup, pace: Pace) -> None:
    pace.watch(setup.build(setup.config())[0])


# its guide advises the sampler; the schedule is that of the others, whose default is a linear fall without a rise
train_sentences = partial(
    train_sentence_transformers, batch_sampler="no_duplicates_hashed", lr_scheduler_type="cosine", warmup_steps=0.05
)


@dataclass(frozen=True)
class Neighbour:
    """An arm.

    Attributes:
        model: of this project, whose towers are trained.
        code: what its user writes; of ours it is the command.
    """

    train: Arm
    model: str
    code: tuple[Any, ...] = ()


OML = (metric_learning.LabeledPictures, rows.open_image, rows.image_transform)
OML += (metric_learning.train_open_metric_learning, metric_learning._endless)
CLIP = (*READING, rows.TitledImages, clip.ClipForm, clip.ClipCollate, clip.ClipData, clip.train_open_clip)
NEIGHBOURS = {
    "untrained": Neighbour(leave_untrained, "2tower"),
    "ours, 3 towers": Neighbour(train_ours, "3tower"),
    "ours, 2 towers": Neighbour(train_ours, "2tower"),
    "sentence-transformers": Neighbour(train_sentences, "3tower", (*READING[1:5], train_sentence_transformers)),
    "open_clip": Neighbour(partial(clip.train_open_clip, has_titles=True), "3tower", CLIP),
    "open-metric-learning": Neighbour(metric_learning.train_open_metric_learning, "2tower", OML),
    "open-metric-learning, its rate": Neighbour(
        partial(metric_learning.train_open_metric_learning, lr=1e-4), "2tower", OML
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=[""], help="how their names begin; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64, help="rows")
    parser.add_argument("--families", type=int, help="of each split; default: all")
    parser.add_argument("--config", nargs="+", default=[], help="overrides of all arms, as optim.lr=3e-4")
    options = parser.parse_args()
    options.output = options.output.resolve()
    tables = write_tables(Path(os.environ.get("MIM_DATA_DIR", "external")) / "data/emoji", options)
    context = multiprocessing.get_context("fork")
    for seed in options.seeds:
        for name in filter(lambda name: name.startswith(tuple(options.arms)), NEIGHBOURS):
            folder = options.output / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{seed}"
            if (folder / "cost.json").is_file():
                continue
            process = context.Process(target=train_one, args=(name, seed, folder, [*tables, *options.config], options))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name}, seed {seed}: ended with {process.exitcode}")


def write_tables(source: Path, options: argparse.Namespace) -> list[str]:
    """Write the products, and the queries that are pictures alone; return the overrides that name them."""
    products = read_table(source / "products.csv")
    families = {name: list[str]() for name in ("train", "val", "test")}
    for row in products:
        if row["family"] not in families[row["split"]]:
            families[row["split"]].append(row["family"])
    chosen = {family for names in families.values() for family in names[: options.families]}
    products = [row for row in products if row["family"] in chosen]
    ids = {row["product_id"] for row in products}
    queries = [row for row in read_table(source / "queries.csv") if row["kind"] == "image" and row["product_id"] in ids]
    overrides = [f"data.folder={options.output / 'prepared'}", f"data.source.image_root={source.resolve()}"]
    options.output.mkdir(parents=True, exist_ok=True)
    for name, table in (("products", products), ("queries", queries)):
        path = options.output / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*table[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
        overrides.append(f"data.source.{name}={path}")
    return overrides


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class WholeRun(Pace):
    """One segment, which is all of training, and the matcher that was trained."""

    def __init__(self) -> None:
        self.segment: Segment = {}
        super().__init__(lambda: True, self.segment.update, "cpu")

    def watch(self, matcher: Matcher) -> None:
        super().watch(matcher)
        self.matcher = matcher


def train_one(name: str, seed: int, folder: Path, tables: Sequence[str], options: argparse.Namespace) -> None:
    """Train an arm, evaluate its model and write the folder."""
    arm = NEIGHBOURS[name]
    overrides = (
        "experiment=emoji", f"model={arm.model}", f"seed={seed}", "data.val_split=test", "results_from=last",
        f"data.rows_per_epoch={options.steps * options.batch_size}", "data.reference_products=false", *tables,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=options.output) as scratch:
        quiet = "callbacks.progress_bar=null"
        setup = Setup(
            (*overrides, quiet), options.batch_size, options.steps, options.batch_size, 0, "cpu", Path(scratch), 1
        )
        pace = WholeRun()
        arm.train(setup, pace)
        if recorded := next(Path(scratch).glob("runs/*/results.json"), None):  # ours evaluates itself
            shutil.copytree(recorded.parent / "evaluation", folder / "evaluation")
            shutil.copy(recorded, folder)
        else:
            evaluate_matcher(pace.matcher, setup, name, folder)
    lines = sum(map(count_lines, arm.code)) if arm.code else len(overrides) if arm.train is train_ours else 0
    facts = {"arm": name, "seed": seed, "lines": lines, "machine": describe_machine(), "versions": versions()}
    (folder / "cost.json").write_text(json.dumps(facts | pace.segment, indent=1) + "\n")


def evaluate_matcher(matcher: Matcher, setup: Setup, name: str, folder: Path) -> None:
    config = setup.config(f"run.id={re.sub(r'[^a-z0-9]+', '-', name.lower())}")
    checkpoint = setup.scratch / "last.ckpt"
    state = {f"{PREFIX}{key}": value for key, value in matcher.state_dict().items()}
    torch.save({"state_dict": state, SECTION: describe_checkpoint(matcher, config)}, checkpoint)
    words = [f"checkpoint={checkpoint}", f"output={folder}", "trainer=cpu", "trainer.precision=32-true"]
    evaluate(compose("evaluate", [*words, "save_interval=null"]))


def count_lines(item: Any) -> int:
    """Return the lines of a function or class as `ast.unparse` writes it, without docstrings and what only measures."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(item)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) and len(node.body) > 1:
            del node.body[0]
    return sum(bool(line.strip()) and not MEASURING.search(line) for line in ast.unparse(tree).splitlines())


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


if __name__ == "__main__":
    main()
