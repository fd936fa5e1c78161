"""Measure evaluate and build_index in one process and in two: `PYTHONPATH=. python benchmarks/processes.py`.

Writes made-up catalogs (a product has a picture of random patches and a text), 2,000 queries (the picture of a product
in another light), and a checkpoint of small towers that were never trained; then starts the commands as users do.
Seconds are those of a CPU that a process took, which other work on the machine hardly changes, and of the clock. Memory
is the largest resident set that a process reached, watched ten times a second: of the processes that embed, and of the
one that was started.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import cpu, memory_bytes, process_seconds, process_tree
from PIL import Image
from record import add_output, read_record, write_record

from mim_lightning.config import build_matcher, compose
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.model.checkpoint import PREFIX, SECTION, describe_checkpoint
from tests.shard_sets import write_shard_set
from tests.shop import COLOURS, small

NUM_QUERIES, SHARD_ROWS = 2_000, 1_000
COMMANDS = ("evaluate", "build_index")


def records(num_rows: int, field: str) -> Iterator[Record]:
    """Yield the products of a catalog, or queries of the first of them."""
    for number in range(num_rows):
        colour = list(COLOURS)[number % 5]
        facts = {"product_id": f"{number:07d}", "category": colour, "title": f"{colour} disc {number}"}
        facts |= {"product_text": f"{colour} disc {number}", "metadata": {"price": number % 97}}
        if field == "query_image":
            facts |= {"query_id": f"q{number}", "query_text": colour}
            facts |= {key: [facts["product_id"]] for key in ("asked_ids", "shown_ids")}
        yield Record({field: photo(number, 0.8 if field == "query_image" else 1.0)}, facts)


def photo(number: int, light: float) -> bytes:
    """Return a JPEG of random patches, others for each number."""
    patches = np.random.default_rng(number).integers(0, 256, (5, 6, 3)) * light
    Image.fromarray(patches.astype(np.uint8)).resize((48, 40), Image.Resampling.BILINEAR).save(
        file := BytesIO(), "jpeg"
    )
    return file.getvalue()


def write(folder: Path, num_rows: int) -> Path:
    """Write a prepared set and the checkpoint of a model, and return the checkpoint."""
    data = folder / "data" / "manifest"
    write_shard_set(data / "catalogue", records(num_rows, "product_image"), num_rows, SHARD_ROWS)
    write_shard_set(data / "queries" / "val", records(NUM_QUERIES, "query_image"), NUM_QUERIES, SHARD_ROWS)
    (data / "settings.json").write_text("{}")  # as of a folder that `prepare` wrote
    words = [
        *small(folder),
        "model=4tower",
        "embed_dim=256",
        "data.eval_batch_size=256",
        "trainer.precision=32-true",
        f"data.folder={data}",
    ]
    config = compose("train", [*words, "data.source=null"])
    torch.manual_seed(0)
    matcher = build_matcher(config)
    state = {PREFIX + name: value for name, value in matcher.state_dict().items()}
    config["run"]["id"] = "never-trained"
    torch.save({"state_dict": state, SECTION: describe_checkpoint(matcher, config)}, folder / "model.ckpt")
    return folder / "model.ckpt"


def start(command: str, checkpoint: Path, num_processes: int) -> dict[str, Any]:
    """Run a command, and return its seconds and the largest memory of its processes in bytes."""
    output = checkpoint.parent / command
    shutil.rmtree(output, ignore_errors=True)
    words = [f"checkpoint={checkpoint}", f"output={output}", "trainer=cpu", f"trainer.devices={num_processes}"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"mim_lightning.{command}", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    peaks, spent = dict[int, int](), dict[int, float]()
    while process.poll() is None:
        for pid in process_tree(process.pid):
            with suppress(OSError):
                peaks[pid], spent[pid] = max(peaks.get(pid, 0), memory_bytes(pid=pid)), process_seconds(pid)
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{command} in {num_processes} processes ended with code {process.returncode}")
    others = sorted(peaks.keys() - {process.pid}, key=peaks.__getitem__)
    embedding = others[-num_processes:] if num_processes > 1 else [process.pid]
    return {
        "command": command,
        "processes": num_processes,
        "seconds": seconds,
        "cpu_seconds": [spent[pid] for pid in embedding],
        "memory": [peaks[pid] for pid in embedding],
        "first_cpu_seconds": spent[process.pid],
        "first_memory": peaks[process.pid],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000], help="of the catalogs")
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS)
    add_output(parser, "a JSON file; starts that it has of other commands and sizes stay")
    wishes = parser.parse_args()
    for num_rows in wishes.rows:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = write(Path(folder), num_rows)
            for command in wishes.commands:
                for num_processes in (1, 2):
                    found = {"rows": num_rows, **start(command, checkpoint, num_processes)}
                    print(json.dumps(found), flush=True)
                    keep(found, wishes.output)


def keep(found: dict[str, Any], path: Path | None) -> None:
    """Add a start to the record, in place of the former one of its kind."""
    known = read_record(path).get("starts", [])
    starts = [*(one for one in known if order_of(one) != order_of(found)), found]
    write_record(path, {"machine": cpu(), "cpus": os.cpu_count(), "starts": sorted(starts, key=order_of)})


def order_of(start: dict[str, Any]) -> tuple[str, int, int]:
    return start["command"], start["rows"], start["processes"]


if __name__ == "__main__":
    main()
