"""Measure evaluate, embed and build_index in one process and in several.

    PYTHONPATH=. python benchmarks/processes.py --output experiments/scale/processes/results.json

Writes made-up catalogs (a product has a picture of random patches and a text), 2,000 queries (the picture of a product
in another light), and a checkpoint of small towers that were never trained; then starts the commands as users do.
Seconds are those of a CPU that a process took, which other work on the machine hardly changes, and of the clock. Memory
is the largest resident set that a process reached, watched ten times a second: of the processes that embed, and of the
one that was started. The vectors and ids that each start wrote are compared with those of one process, to the last bit,
and so are the metrics of an evaluation, of which the largest difference is kept.
"""

from __future__ import annotations

import argparse
import hashlib
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
from record import add_output, read_record, table, write_record, write_tables
from safetensors.torch import load_file

from mim_lightning.config import build_matcher, compose
from mim_lightning.data.shards.shard_writer import Record
from mim_lightning.model.checkpoint import PREFIX, SECTION, describe_checkpoint
from tests.shard_sets import write_shard_set
from tests.shop import COLOURS, small

NUM_QUERIES, SHARD_ROWS = 2_000, 1_000
COMMANDS = ("evaluate", "embed", "build_index")
MIB = 2**20


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


def write_catalog(folder: Path, num_rows: int) -> Path:
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
    """Run a command, and return its seconds, the memory of its processes at most, and a digest of what it wrote."""
    output = checkpoint.parent / command
    shutil.rmtree(output, ignore_errors=True)
    words = [f"checkpoint={checkpoint}", f"output={output}", "trainer=cpu", f"trainer.devices={num_processes}"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"mim_lightning.{command}", *words],
        # with bytecode switched off each start would compile its imports
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""},
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
        "digest": digest(output),
        "metrics": read_metrics(output / "results.json") if command == "evaluate" else {},
    }


def read_metrics(path: Path) -> dict[str, float]:
    """Return the results that are metrics between 0 and 1, and neither ends of intervals nor counts and ranks."""
    results = json.loads(path.read_text())
    measures = {name: name.rsplit("/", 1)[-1] for name in results}
    return {name: results[name] for name, measure in measures.items() if "@" in measure or measure in ("mrr", "map")}


def digest(output: Path) -> str:
    """Return a digest of all vectors and ids that a command wrote."""
    names = ("*.parquet", "embeddings/rows.parquet", "embeddings/*.safetensors", "evaluation/embeddings.safetensors")
    found = hashlib.blake2b(digest_size=8)
    for path in sorted({path for name in names for path in output.glob(name)}):
        found.update(path.name.encode())
        if path.suffix == ".parquet":
            found.update(path.read_bytes())
            continue
        for name, values in sorted(load_file(path).items()):  # their order in the file differs between processes
            found.update(name.encode() + values.numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000], help="of the catalogs")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS)
    add_output(parser, "a JSON file; starts that it has of other commands and sizes stay", tables=True)
    wishes = parser.parse_args()
    if wishes.tables:
        write(read_record(wishes.tables), wishes.tables.parent)
        return
    for num_rows in wishes.rows:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = write_catalog(Path(folder), num_rows)
            start(wishes.commands[0], checkpoint, 1)  # compiles what is imported, on a fresh installation
            for command in wishes.commands:
                for num_processes in wishes.processes:
                    found = {"rows": num_rows, **start(command, checkpoint, num_processes)}
                    print(json.dumps(found), flush=True)
                    keep(found, wishes.output)
    if wishes.output:
        write(read_record(wishes.output), wishes.output.parent)


def keep(found: dict[str, Any], path: Path | None) -> None:
    """Add a start to the record, in place of the former one of its kind."""
    known = read_record(path).get("starts", [])
    starts = [*(one for one in known if order_of(one) != order_of(found)), found]
    machine = f"{cpu()}, {os.cpu_count()} cores; one thread a process; torch {torch.__version__}"
    write_record(path, {"machine": machine, "starts": sorted(starts, key=order_of)})


def order_of(start: dict[str, Any]) -> tuple[int, int, int]:
    return COMMANDS.index(start["command"]), start["rows"], start["processes"]


def write(record: dict[str, Any], folder: Path) -> None:
    starts = {order_of(found): found for found in record["starts"]}
    headings = [
        "command",
        "products",
        "processes",
        "s",
        "CPU s of the busiest",
        "CPU s of all",
        "peak MiB of the largest",
    ]
    headings += ["peak MiB of the first", "vectors of one", "metrics differ by"]
    rows, growth = [], []
    for (command_idx, num_rows, num_processes), found in starts.items():
        one = starts.get((command_idx, num_rows, 1))
        equal = ["-", "-"] if one is None or one is found else comparison(one, found)
        rows.append(
            [found["command"], f"{num_rows:,}", num_processes, f"{found['seconds']:.0f}", *cells_of(found), *equal]
        )
    smallest, largest = min(rows for _, rows, _ in starts), max(rows for _, rows, _ in starts)
    for (command_idx, num_rows, num_processes), found in starts.items():
        small = starts.get((command_idx, smallest, num_processes))
        if num_rows == largest > smallest and small is not None:
            added = (largest - smallest) / 10_000
            busiest, memory = ((max(found[key]) - max(small[key])) / added for key in ("cpu_seconds", "memory"))
            first = (found["first_memory"] - small["first_memory"]) / added
            growth.append(
                [found["command"], num_processes, f"{busiest:.1f}", f"{memory / MIB:.0f}", f"{first / MIB:.0f}"]
            )
    by_rows = ["command", "processes", "CPU s of the busiest", "MiB of the largest", "MiB of the first"]
    note = f"For each 10,000 products more, between {smallest:,} and {largest:,}" if growth else "One size was measured"
    write_tables(folder, table=table(headings, rows, record["machine"]), growth=table(by_rows, growth, note))


def comparison(one: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return whether vectors are those of one process, and the largest difference of a metric, if there are any."""
    distances = [abs(found["metrics"][name] - value) for name, value in one["metrics"].items()]
    largest = "-" if not distances else "0" if max(distances) == 0 else f"{max(distances):.0e}"
    return ["yes" if one["digest"] == found["digest"] else "no", largest]


def cells_of(found: dict[str, Any]) -> list[str]:
    others = found["first_cpu_seconds"] if found["processes"] > 1 else 0.0
    spent = found["cpu_seconds"]
    memory = [f"{max(found['memory']) / MIB:,.0f}", f"{found['first_memory'] / MIB:,.0f}"]
    return [f"{max(spent):.1f}", f"{sum(spent) + others:.1f}", *memory]


if __name__ == "__main__":
    main()
