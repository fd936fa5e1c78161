"""Every command on a small shop: what it leaves where nothing disturbs it, and what it says where something does."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from tests.campaign.starved import BALLAST, NOTES, PLAN, Plan, kind_of
from tests.preloaded import PYTHON
from tests.shop import picture, small, write_shop, write_table

ROOT = Path(__file__).parents[2]
PATIENCE = 280  # seconds that a command may take, on a machine with more to do
PREPARED, CHECKPOINT = "{disk}/prepared/manifest", "{run}/checkpoints/best.ckpt"


@dataclass(frozen=True)
class Command:
    """A command and the one whose state of the disk it starts from.

    Args:
        module: of the entry point.
        words: arguments; {disk} and {run} are replaced.
        after: name of another command; "": the shop alone.
    """

    module: str
    words: tuple[str, ...]
    after: str = ""


DATA = [word for word in small(Path("{disk}")) if word.startswith(("data", "paths")) and "batch_size" not in word]
DATA += ["data.shards.samples_per_shard=8"]
TRAIN = [*small(Path("{disk}"), "model=2tower", "data.shards.samples_per_shard=8"), "trainer.max_epochs=1"]
INDEX = ("checkpoint=" + CHECKPOINT, "output={disk}/index", "trainer=cpu")
REMOTE = [word for word in TRAIN if not word.startswith(("data=", "data.source", "data.shards"))]
REMOTE += ["data=shards", "data.cache.retries=1"]
CHANGE = ("data=shards", f"data.folder={PREPARED}")
COMMANDS = {
    "prepare": Command("prepare", tuple(DATA)),
    "validate": Command("prepare", (*DATA, "validate_only=true")),
    "add": Command(
        "prepare",
        (*CHANGE, "add.products={disk}/shop/new.csv", "add.queries={disk}/shop/more.csv"),
        "prepare",
    ),
    "delete": Command("prepare", (*CHANGE, "delete.products=[000,003]"), "prepare"),
    "compact": Command("prepare", (*CHANGE, "compact=0.01"), "delete"),
    "train": Command("train", tuple(TRAIN), "prepare"),
    "remote": Command("train", tuple(REMOTE)),
    "loggers": Command("train", (*TRAIN, "logger=tensorboard"), "prepare"),
    "frozen": Command(
        "train",
        (
            *TRAIN,
            "model.towers.query_image.train=frozen",
            "data.augment=null",
            "schedule=constant",
            "data.feature_cache.enabled=true",
            "data.feature_cache.folder={disk}/features",
        ),
        "prepare",
    ),
    "sweep": Command("train", ("-m", *TRAIN, "seed=1,2"), "prepare"),
    "optuna": Command(
        "train",
        (
            "-m",
            *TRAIN,
            "hydra/sweeper=optuna",
            "optim.lr=choice(1e-3, 2e-3, 3e-3)",
            "hydra.sweeper.n_trials=3",
            # each value once, in any order: a search that is started again draws by other random numbers
            "hydra.sweeper.sampler={_target_: optuna.samplers.BruteForceSampler, seed: 1}",
        ),
        "prepare",
    ),
    "evaluate": Command("evaluate", ("checkpoint=" + CHECKPOINT, "output={disk}/evaluated", "trainer=cpu"), "train"),
    "build_index": Command("build_index", INDEX, "train"),
    "index_pq": Command("build_index", (*INDEX, "index.kind=sq8", "index.min_recall=0"), "train"),
    "index_delete": Command("build_index", ("checkpoint=", "output={disk}/index", "delete=[000]"), "build_index"),
    "index_update": Command(
        "build_index",
        (
            "checkpoint=" + CHECKPOINT,
            "output={disk}/index",
            "update=true",
            "embeddings={disk}/more",
            "data=manifest",
            "data.source.products={disk}/shop/new.csv",
            "data.source.queries=null",
            "data.folder={disk}/more-shards",
            "data.num_workers=0",
            "trainer=cpu",
        ),
        "build_index",
    ),
    "export": Command("export", ("checkpoint=" + CHECKPOINT, "output={disk}/exported"), "train"),
    "onnx": Command("export", ("checkpoint=" + CHECKPOINT, "output={disk}/exported", "onnx=true"), "train"),
    "search": Command(
        "search",
        ("index={disk}/index", "image={disk}/shop/street3-0.jpg", "output_image={disk}/pictures/found.png"),
        "build_index",
    ),
    "compare": Command("compare", ("{run}", "{disk}/evaluated", "--output", "{disk}/compared"), "evaluate"),
    "plot": Command("plot", ("{run}", "--output", "{disk}/figures"), "train"),
    "four_towers": Command("train", (*TRAIN, "model=4tower"), "prepare"),
    "tune_fusion": Command("tune_fusion", ("{run}", "--output", "{disk}/tuned"), "four_towers"),
}

VOLATILE = (
    "seconds",
    "created",
    "since",
    "time",
    "updated",
    "wait",
    "per_second",
    "written",
    "process",
    "num_workers",
)  # in the names of keys

CACHES = ("tmp/torchinductor_", "tmp/.ses")  # of torch and of onnxruntime, which stay


class Bench:
    """A shop in a folder, and what each command leaves there where nothing disturbs it.

    Args:
        folder: a disk of its own where `is_mounted`.
        states: folder for copies of it.
    """

    def __init__(self, folder: Path, states: Path, is_mounted: bool = False) -> None:
        self.folder, self.states, self.is_mounted = folder, states, is_mounted
        self.kinds: dict[str, Counter[str]] = {}  # of each command: how often it opens a kind of file
        self._contents: dict[str, dict[str, Any]] = {}
        states.mkdir(exist_ok=True)
        write_shop(folder / "shop", num_products=7)
        picture("grey", "bar", 3).save(folder / "shop" / "new.jpg")
        picture("grey", "bar", 5).save(folder / "shop" / "photo.jpg")
        products = [{"product_id": "100", "image": "new.jpg", "title": "grey bar", "category": "bar"}]
        rows = (("train", "100"), ("val", "100"), ("train", "003"))
        queries = [{"split": split, "image": "photo.jpg", "text": "grey", "product_id": name} for split, name in rows]
        write_table(folder / "shop" / "new.csv", products)
        write_table(folder / "shop" / "more.csv", queries)
        for name in ("tmp", "home", "pictures"):
            (folder / name).mkdir()
        self._save("")

    def start(
        self, name: str, *more: str, plan: Plan | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command with further words, short of what a plan says; without a plan its writes are noted."""
        notes = self.states / f"{name}.notes"
        notes.unlink(missing_ok=True)
        plan = plan or Plan(disk=self.filled_at())
        folders = {"TMPDIR": "tmp", "HOME": "home", "XDG_CACHE_HOME": "home/.cache"}
        variables = {name: str(self.folder / place) for name, place in folders.items()}
        variables |= {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            PLAN: json.dumps(asdict(plan)),
            NOTES: str(notes),
        }
        words = [COMMANDS[name].module, *self.words(name), *more]
        return subprocess.Popen(
            [os.environ[PYTHON], "-m", "tests.campaign.starved", *words],
            cwd=self.folder / "tmp", env={**os.environ, **variables, **(environment or {})},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, name: str, *more: str, plan: Plan | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as `start` does, to its end."""
        return finish(self.start(name, *more, plan=plan, **options))[0]

    def words(self, name: str, run: Path | None = None) -> list[str]:
        """Return the arguments of a command; `run` is the folder of the run that is there or will be."""
        if run is None and any("{run}" in word for word in COMMANDS[name].words):
            run = next((self.folder / "runs").glob("*/config.yaml")).parent
        return [word.replace("{disk}", str(self.folder)).replace("{run}", str(run)) for word in COMMANDS[name].words]

    def filled_at(self, kind: str = "", nth: int = 1) -> dict[str, Any]:
        """Return the part of a plan in which the disk is full from the nth opening of a kind of file on."""
        return {"folder": str(self.folder), "kind": kind, "nth": nth, "is_mounted": self.is_mounted}

    def expected(self, name: str, *more: str) -> dict[str, Any]:
        """Return what a command leaves if nothing disturbs it; without further words others may start from there."""
        called = " ".join((name, *more))
        if called not in self._contents:
            self.reset(name)
            ended = self.run(name, *more)
            assert ended.returncode == 0, f"{called}: {ended.stderr[-3000:]}"
            self._contents[called] = contents(self.folder)
            if not more:
                notes = (self.states / f"{name}.notes").read_text().splitlines()
                self.kinds[name] = Counter(line.split("\t")[0] for line in notes)
                self._save(name)
        return self._contents[called]

    def reset(self, name: str) -> None:
        """Put the disk into the state from which a command starts."""
        after = COMMANDS[name].after
        if after:
            self.expected(after)
        clear(self.folder)
        shutil.copytree(self.states / f"state-{after}", self.folder, dirs_exist_ok=True)

    def _save(self, name: str) -> None:
        clear(self.states / f"state-{name}")
        shutil.copytree(self.folder, self.states / f"state-{name}", dirs_exist_ok=True)


def finish(*processes: subprocess.Popen[str]) -> list[subprocess.CompletedProcess[str]]:
    """Wait for the end of processes that `start` returned; kill all of them where one takes too long."""
    ended = []
    try:
        for process in processes:
            stdout, stderr = process.communicate(timeout=PATIENCE)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    return ended


def clear(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def contents(folder: Path) -> dict[str, Any]:
    """Return what is in the files of a folder, by kind; without clocks, temporary files and other programs' caches."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (
            not path.is_file()
            or name.split("/")[0] in ("tmp", "home", "shop", "cache", BALLAST)
            or path.name in (".lock", "lock")
        ):
            continue
        values = found.setdefault(kind_of(name), [])
        value = content(path)
        if "/tensorboard/" not in name or not values:  # each start of a run has another folder there
            values.append(value)
    return {kind: sorted(values, key=str) for kind, values in found.items()}


def content(path: Path) -> Any:
    """Return what two runs of a command have in common in a file; raise an error if it is not whole."""
    data = path.read_bytes()
    if path.suffix == ".ckpt":
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return flat({key: stored[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")})
    if path.suffix == ".safetensors":  # each process writes the metadata in another order
        with safe_open(path, "pt") as file:
            names = file.keys()
            return flat({name: file.get_tensor(name) for name in names} | {"metadata": file.metadata() or {}})
    if path.suffix in (".json", ".jsonl"):
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        found = [steady(json.loads(line)) for line in lines if line]
        return [once(job, path) for job in found] if path.parent.name == "jobs" else found
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        assert not any(None in row or None in row.values() for row in rows), f"{path}: half a line"
        # the last means of an epoch are logged after its checkpoint: a run that resumes from there has them no more
        is_log = path.name == "metrics.csv"
        if path.name == "ledger.csv":
            jobs = [once(steady(row), path) for row in rows]
            return sorted(jobs, key=str) if is_search(path) else jobs
        rows = [{key: cell for key, cell in row.items() if not is_log or not key.startswith("train/")} for row in rows]
        return [steady(row) for row in rows if not is_log or any(cell for key, cell in row.items() if "/" in key)]
    if path.suffix == ".yaml":
        return steady(yaml.safe_load(data))
    if path.name == "command.txt":
        return re.sub(r"^cd .* && (MIM_\w+=\S+ )*| (hydra\.job\.num|data\.num_workers)=\d+", "", data.decode())
    if path.suffix == ".html":
        assert data.rstrip().endswith(b"</html>"), f"{path}: half a page"
        return "page"
    if path.suffix == ".png":
        Image.open(io.BytesIO(data)).load()
    if path.suffix == ".tar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.getmembers()
    if path.suffix == ".npy":
        np.load(io.BytesIO(data))
    if ".tfevents." in path.name or path.suffix == ".onnx" or path.name == "study.journal":
        return "binary"
    return hashlib.sha256(data).hexdigest()


def once(job: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what is said of a job, started once or twice; its place counts where the sweep has an order."""
    free = ("job", "was_resumed") if is_search(path) else ("was_resumed",)
    return {key: value for key, value in job.items() if key not in free}


def is_search(path: Path) -> bool:
    """Is a file one of a search, which may draw the same trials in another order?"""
    return any(part.startswith("optuna-") for part in path.parts)


def steady(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: steady(part) for key, part in value.items() if not any(word in key for word in VOLATILE)}
        if {"number", "study"} <= kept.keys():  # of a trial: a search may draw the same in another order
            del kept["number"]
        return kept
    if isinstance(value, str) and value.endswith((".faiss", ".npy", ".arrow")):
        return kind_of(value)
    return [steady(part) for part in value] if isinstance(value, list) else value


def error_line(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the line that a command ended with; raise an error if it said more, or did not end as an error does."""
    # torch's own line about a bus error ends with NUL instead of a line end
    lines = [line for line in ended.stderr.replace("\0", "\n").splitlines() if line.strip()]
    assert ended.returncode > 0, f"exit code {ended.returncode}: {lines[-1:]}"
    assert "Traceback" not in ended.stderr, f"a call stack: {lines[-1]}"
    said = [line for line in lines if line.startswith("error: ")]
    # a sweep says of each job that failed why
    said = [line for line in said if not re.match(r"error: job \d+: ", line)] or said[-1:]
    assert len(said) == 1, f"{len(said)} lines of errors: {said or lines[-1:]}"
    return said[0]


def leftovers(folder: Path) -> list[str]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    names = [name for name in names if not name.startswith(("home/", "shop/", *CACHES))]
    return [
        name
        for name in names
        if name.startswith("tmp/")
        # what an evaluation has embedded is kept until it ends well
        or re.search(r"(^|/)\.scratch-(?!embedded(/|$))", name)
        or (re.search(r"\.(partial|former|try\d+)$", name) and not re.fullmatch(r"(prepared/)?\.[\w-]+\.partial", name))
    ]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the tensors and numbers of a checkpoint by name, tensors as a hash of their bytes."""
    if isinstance(value, torch.Tensor):
        return {prefix: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {prefix: value}
    return {key: leaf for name, part in items for key, leaf in flat(part, f"{prefix}.{name}").items()}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    return f"differ: {[name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]}"
