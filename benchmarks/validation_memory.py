"""Measure memory and time of an evaluation against the rows of its gallery, in one process and in two.

Every measurement starts new processes. They collect made-up embeddings of two query and two product towers, batch by
batch as a validation pass does, and rank a direction of towers and one of fusions. Memory is the largest resident size
of a process beyond that before the first batch, from Linux's /proc. `--source` measures another commit's code.

    python benchmarks/validation_memory.py --output results.json
    python benchmarks/validation_memory.py --source <worktree>/src --label before --output results.json
    python benchmarks/validation_memory.py --tables results.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from machine import cpu, memory_bytes
from record import add_output, read_record, table, write_record, write_tables

GIB = 2**30
BATCH = 1000
QUERY_TOWERS, PRODUCT_TOWERS = ("query_image", "query_text"), ("product_image", "product_text")
FUSIONS = {
    "query": {"query_image": 1.0, "query_text": 1.0},
    "product": {"product_image": 1.0, "product_text": 1.0},
}


def main() -> None:
    sizes = read_sizes()
    if sizes.tables:
        record = read_record(sizes.tables)
        write_tables(sizes.tables.parent, table=measured_table(record), ten_million=extrapolated_table(record))
    elif sizes.rank is not None:
        print(json.dumps(measure(sizes)))
    else:
        kept = read_record(sizes.output)
        for world_size in sizes.processes:
            for rows in sizes.rows:
                found = start(sizes, rows, world_size)
                print(found, flush=True)
                kept[f"{sizes.label}/{world_size}/{rows}/{sizes.dtype}"] = found
        kept["machine"] = f"{cpu()}, {os.cpu_count()} cores; one thread a process; torch {torch.__version__}"
        write_record(sizes.output, kept)


def read_sizes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 500_000, 1_000_000], help="of the gallery")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of what is kept")
    parser.add_argument("--label", default="after", help="of the code that is measured")
    parser.add_argument("--source", type=Path, help="src folder of other code; default: the installed one")
    add_output(parser, "JSON file, whose other results are kept", tables=True)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    return parser.parse_args()


def start(sizes: argparse.Namespace, rows: int, world_size: int) -> dict[str, Any]:
    """Return what the process with the largest memory found, and its seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sizes.source:
        environment["PYTHONPATH"] = str(sizes.source.resolve())
    with tempfile.TemporaryDirectory() as folder:
        options = ["--rows", str(rows), "--processes", str(world_size), "--store", f"{folder}/store"]
        options += ["--queries", str(sizes.queries), "--dim", str(sizes.dim), "--dtype", sizes.dtype]
        commands = [[sys.executable, __file__, *options, "--rank", str(rank)] for rank in range(world_size)]
        started = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE, text=True) for c in commands]
        answers = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process failed")
    return max((json.loads(answer) for answer in answers), key=lambda found: found["peak_bytes"])


def measure(sizes: argparse.Namespace) -> dict[str, Any]:
    from mim_lightning.metrics import EmbeddingCollector
    from mim_lightning.metrics.directions import evaluate_countable
    from mim_lightning.types import Direction

    torch.set_num_threads(1)
    (num_rows,), (world_size,), rank = sizes.rows, sizes.processes, sizes.rank
    if world_size > 1:
        init = f"file://{sizes.store}"
        dist.init_process_group(
            "gloo", init_method=init, rank=rank, world_size=world_size, timeout=timedelta(minutes=10)
        )
    is_present = hasattr(EmbeddingCollector, "take_table")  # what is measured before: another interface
    sides = {"query": (sizes.queries, QUERY_TOWERS), "product": (num_rows, PRODUCT_TOWERS)}
    directions = {"towers": Direction("query_image", "product_image"), "fusions": Direction("query", "product")}
    # a small set first: what libraries allocate once counts before
    for counted, scale in ((False, 100), (True, 1)):
        if counted and world_size > 1:
            dist.barrier()
        before, started = memory_bytes(), time.perf_counter()
        tables = []
        for side, (rows, towers) in sides.items():
            starts = range(0, rows // scale, BATCH)[rank::world_size]
            own = [range(first, min(first + BATCH, rows // scale)) for first in starts]
            options: dict[str, Any] = {}
            if is_present:
                options = {"num_rows": sum(map(len, own)), "device": "cpu", "dtype": getattr(torch, sizes.dtype)}
            collector = EmbeddingCollector(towers, columns_of(side, num_rows), **options)
            for part in own:
                collector.update(**batch_of(part, side, towers, sizes, num_rows))
            tables.append(collector.take_table() if is_present else collector.compute())
            del collector
        collected = time.perf_counter() - started
        reports, _ = evaluate_countable(directions, *tables, FUSIONS)
        seconds = time.perf_counter() - started
        peak = memory_bytes("VmHWM") - before
    row_bytes = sizes.dim * getattr(torch, sizes.dtype).itemsize
    found = {
        "rows": num_rows,
        "processes": world_size,
        "dim": sizes.dim,
        "queries": sizes.queries,
        "dtype": sizes.dtype,
        "payload_bytes": num_rows * 2 * row_bytes,
        "peak_bytes": peak,
        "collect_seconds": collected,
        "seconds": seconds,
        "mrr": reports["fusions"].values["mrr"],
    }
    if is_present:
        found["stated_bytes"] = stated_bytes(num_rows, sizes.queries, world_size, row_bytes // sizes.dim, sizes.dim)
    if world_size > 1:
        dist.destroy_process_group()
    return found


def stated_bytes(num_rows: int, num_queries: int, world_size: int, value_bytes: int, width: int) -> int:
    """Return what an evaluation states before it starts, of one process."""
    from mim_lightning.metrics.memory import EvaluationMemory

    own = -(-num_queries // world_size), -(-num_rows // world_size)
    ids = [1 + len(columns_of(side, num_rows)) for side in ("query", "product")]
    memory = EvaluationMemory(num_queries, num_rows, *own, 2, 2, width, value_bytes, *ids, 2, 3 * 2**28)
    return memory.kept_bytes + memory.ranking_bytes


def batch_of(
    rows: range, side: str, towers: tuple[str, ...], sizes: argparse.Namespace, num_rows: int
) -> dict[str, Any]:
    """Return what a collector takes: query n asks for product 7 n, whose vectors are near."""
    keys = torch.arange(rows.start, rows.stop)
    products = keys if side == "product" else keys * 7 % num_rows
    vectors = {}
    for idx, tower in enumerate(towers):
        generator = torch.Generator().manual_seed(rows.start * 2 + idx)
        noise = torch.randn(len(rows), sizes.dim, generator=generator)
        noise[:, :16] += 8 * torch.sin(products[:, None] * torch.arange(1, 17) * 0.618)
        vectors[tower] = torch.nn.functional.normalize(noise, dim=1)
    none = torch.full_like(keys, -1)
    columns = dict.fromkeys(all_columns(), none)
    columns |= {"query_keys": keys, "product_keys": products, "category_keys": products % 9}
    columns |= {"asked_keys": products[:, None], "asked_grades": torch.ones_like(keys)[:, None]}
    columns |= {"shown_keys": products[:, None]} | {name: keys * 0 + 1 for name in columns if name.startswith("has_")}
    present = {tower: torch.ones(len(rows), dtype=torch.bool) for tower in towers}
    return {
        "row_keys": keys,
        "vectors": vectors,
        "present": present,
        "columns": columns,
        "valid": torch.ones(len(rows), dtype=torch.bool),
    }


def all_columns() -> tuple[str, ...]:
    from mim_lightning.metrics.directions import COLUMNS

    return COLUMNS


def columns_of(side: str, num_rows: int) -> tuple[str, ...]:
    """Return the columns that an evaluation collects: of a gallery that is not kept with the record, a few."""
    from mim_lightning.metrics import directions

    is_kept = side == "query" or num_rows <= 200_000
    return all_columns() if is_kept else getattr(directions, "GALLERY_COLUMNS", all_columns())


def measured_table(record: dict[str, Any]) -> list[str]:
    starts = [(name.split("/")[0], found) for name, found in record.items() if name != "machine"]
    rows = []
    for label, found in sorted(starts, key=lambda pair: _order(*pair)):
        own, peak = found["payload_bytes"] / found["processes"], found["peak_bytes"]
        sizes = [f"{own / GIB:.2f}", f"{peak / GIB:.2f}", f"{peak / own:.2f}", f"{peak / found['payload_bytes']:.2f}"]
        stated = f"{found['stated_bytes'] / GIB:.2f}" if "stated_bytes" in found else "-"
        seconds = f"{found['seconds']:.0f}, {found['collect_seconds']:.0f}"
        rows.append([label, found["dtype"], found["processes"], f"{found['rows']:,}", *sizes, stated, seconds])
    headings = ["code", "kept as", "processes", "gallery rows", "own payload, GiB", "peak, GiB", "peak / own payload"]
    headings += ["peak / whole payload", "stated before, GiB", "s, of which collecting"]
    return table(headings, rows, record["machine"], num_left=2)


def extrapolated_table(record: dict[str, Any]) -> list[str]:
    """Return a table of what ten million rows of two towers, 512 wide, would need, by the growth between two sizes."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for name, found in record.items():
        if name != "machine" and found["processes"] == 1:  # two were measured below the size of a whole block
            key = name.split("/")[0], found["dtype"], found["processes"]
            groups.setdefault(key, []).append(found)
    rows = []
    for (label, dtype, processes), found in sorted(groups.items(), key=lambda item: (item[0][0] == "after", item[0])):
        *_, small, large = sorted(found, key=lambda one: one["rows"])
        growth = large["peak_bytes"] - small["peak_bytes"]
        ratio = growth / (large["payload_bytes"] - small["payload_bytes"]) * processes
        payload = 10_000_000 * 2 * 512 * getattr(torch, dtype).itemsize / processes
        fixed = large["peak_bytes"] - ratio * large["payload_bytes"] / processes
        sizes = [f"{payload / GIB:.1f}", f"{ratio:.2f}", f"{(ratio * payload + fixed) / GIB:.1f}"]
        rows.append([label, dtype, processes, *sizes])
    headings = ["code", "kept as", "processes", "own payload, GiB", "grows with own payload, by 1 GiB"]
    return table([*headings, "extrapolated peak, GiB"], rows, record["machine"], num_left=2)


def _order(label: str, found: dict[str, Any]) -> tuple[Any, ...]:
    return label == "after", found["dtype"] == "float16", found["processes"], found["rows"]


if __name__ == "__main__":
    main()
