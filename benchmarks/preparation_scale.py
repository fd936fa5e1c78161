"""Measure the memory and time of a preparation by its number of rows: made-up tables without images.

Half of the rows are products, half queries, nine of ten of which train. Each preparation runs in a process of its own;
its peak memory is that of the process and its children, sampled: what cannot be given back to other processes (files in
memory are left out). With `--no-shards` every sample is planned, in order, and none is written: shards of 50 million
rows are 100 GB. `--baseline` names the src folder of another version, which takes turns. Prints a table; `--output`
also writes JSON, `--tables` prints the table of such a file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from machine import Peak, describe_machine, run_measurement, tree_bytes
from record import add_output, read_record, table, write_record, write_tables

ROWS_PER_FILE = 1_000_000
HELD = "RssAnon"  # memory that cannot be given back to other processes
MATERIALS = ("oak", "steel", "glass", "linen")
CHUNK = 100_000  # rows of a table in memory


def main() -> None:
    wishes = read_wishes()
    if wishes.measure:
        print(json.dumps(measure(wishes.measure, wishes.folder, wishes)))
        return
    if wishes.tables:
        write_tables(wishes.tables.parent, table=table_of(read_record(wishes.tables)))
        return
    results = []
    for rows in wishes.rows:
        tables = wishes.folder / f"tables-{rows}"
        write_manifest(tables, rows // 2)
        for _ in range(wishes.repeats):
            for name, source in (("this version", None), ("baseline", wishes.baseline))[: 2 if wishes.baseline else 1]:
                results.append({"version": name, "rows": rows, **measure_in_process(rows, source, wishes)})
                print(results[-1], file=sys.stderr)
        shutil.rmtree(tables)
    facts = {
        "machine": describe_machine(),
        "python": platform.python_version(),
        "memory_limit": wishes.memory_limit,
        "shards": not wishes.no_shards,
        "processes": wishes.processes,
    }
    record = {"runs": [*read_record(wishes.output).get("runs", []), {"facts": facts, "results": results}]}
    write_record(wishes.output, record)
    if wishes.output:
        write_tables(wishes.output.parent, table=table_of(record))


def read_wishes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="of both tables together")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/preparation_scale"), help="for tables and shards")
    parser.add_argument("--memory-limit", default="1GB", help="data.validation.memory_limit")
    parser.add_argument("--processes", type=int, default=1, help="that write shards")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--no-shards", action="store_true", help="plan every sample and write none")
    parser.add_argument("--baseline", type=Path, help="src folder of another version")
    add_output(parser, "JSON file to which the results are added", tables=True)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_manifest(folder: Path, num: int) -> None:
    """Write Parquet files of products and queries, at most a million rows each."""
    import pyarrow
    import pyarrow.parquet

    complete = folder / "complete"
    if complete.exists():  # a preparation of them failed
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in (("products", products), ("queries", queries)):
        for part, first in enumerate(range(0, num, ROWS_PER_FILE)):
            path, writer = folder / name / f"{part:05d}.parquet", None
            path.parent.mkdir(exist_ok=True)
            for start in range(first, min(num, first + ROWS_PER_FILE), CHUNK):
                table = pyarrow.table(columns(range(start, min(num, start + CHUNK)), num))
                writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
            if writer is not None:
                writer.close()
    complete.touch()


def scattered(number: int, num: int) -> int:
    """Return a number below `num`, another for every number: the factor is a prime that divides no round number."""
    return number * 7_368_787 % num


def products(rows: range, num: int) -> dict[str, list[Any]]:
    return {
        "product_id": [f"sku-{scattered(row, num):011d}" for row in rows],
        "image": [None for _ in rows],
        "title": [f"{MATERIALS[row % 4]} item {row * 2654435761 % 2**32:x}" for row in rows],
        "category": [f"category {row % 997}" for row in rows],
    }


def queries(rows: range, num: int) -> dict[str, list[Any]]:
    return {
        "query_id": [f"query-{row:011d}" for row in rows],
        "split": ["val" if row % 10 == 0 else "train" for row in rows],
        "image": [None for _ in rows],
        "text": [f"looking for item {row * 2654435761 % 2**32:x}" for row in rows],
        "product_id": [f"sku-{row * 48_271 % num:011d}" for row in rows],
    }


def measure_in_process(rows: int, source: Path | None, wishes: argparse.Namespace) -> dict[str, Any]:
    options = ["--memory-limit", wishes.memory_limit, "--processes", str(wishes.processes)]
    options += ["--no-shards"] if wishes.no_shards else []
    return run_measurement(__file__, "--measure", rows, "--folder", wishes.folder, *options, source=source)


def measure(rows: int, folder: Path, wishes: argparse.Namespace) -> dict[str, Any]:
    """Prepare in this process; return seconds, peak memory and disk, and a digest of the plan or the shards."""
    from mim_lightning.data.manifest.manifest import ManifestSource
    from mim_lightning.data.preparation import preparation
    from mim_lightning.data.preparation.prepared import ShardSettings
    from mim_lightning.data.validation.settings import ValidationSettings

    tables, target = folder / f"tables-{rows}", folder / "prepared"
    shutil.rmtree(target, ignore_errors=True)
    limits = {"memory_limit": wishes.memory_limit} if "memory_limit" in ValidationSettings.__dataclass_fields__ else {}
    seconds: dict[str, float] = {}
    before = tree_bytes(HELD), time.perf_counter(), sum(os.times()[:4])
    validate, digests = preparation.validate_source, []

    def timed(*arguments: Any) -> Any:
        found = validate(*arguments)
        seconds["validated"] = time.perf_counter() - before[1]
        return found

    def plan_only(sets: Any, *_: Any) -> None:
        digests.extend(task.content_id for planned in sets for task in planned.shards(2_000, 512))
        raise PlannedError

    preparation.validate_source = timed
    if wishes.no_shards:
        preparation.write_sets = plan_only
    source = ManifestSource(str(tables / "products"), str(tables / "queries"))
    with (
        Peak(lambda: tree_bytes(HELD), 0.05) as memory,
        Peak(lambda: sum(scratch_sizes(folder)), 5.0) as disk,
        suppress(PlannedError),
    ):
        preparation.prepare_shards(
            source,
            target,
            ShardSettings(),
            num_workers=wishes.processes,
            validation=preparation.Validation(ValidationSettings(**limits)),
        )
    seconds["all"], seconds["cpu"] = time.perf_counter() - before[1], sum(os.times()[:4]) - before[2]
    content = digest(digests or [path.read_text() for path in sorted(target.rglob("index.json"))])
    shutil.rmtree(target, ignore_errors=True)
    return {
        "seconds": seconds,
        "start_bytes": before[0],
        "peak_bytes": memory.value,
        "disk_bytes": disk.value,
        "content": content,
    }


class PlannedError(Exception):
    """Everything was planned, and is not to be written."""


def digest(texts: Sequence[str]) -> str:
    import hashlib

    return hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()


def scratch_sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob(".scratch-rows-*/*"):
        try:
            yield path.stat().st_blocks * 512
        except OSError:
            continue


COLUMNS = {
    "rows": lambda result, facts: f"{result['rows']:,}",
    "version": lambda result, facts: result["version"],
    "shards": lambda result, facts: "written" if facts["shards"] else "planned",
    "limit": lambda result, facts: facts["memory_limit"] if result["version"] == "this version" else "none",
    "peak MiB": lambda result, facts: f"{result['peak_bytes'] / 2**20:,.0f}",
    "GB of scratch": lambda result, facts: f"{result['disk_bytes'] / 1e9:,.2f}",
    "minutes": lambda result, facts: f"{result['seconds']['all'] / 60:,.1f}",
    "CPU minutes": lambda result, facts: f"{result['seconds']['cpu'] / 60:,.1f}",
    "rows/s": lambda result, facts: f"{result['rows'] / result['seconds']['all']:,.0f}",
}


def table_of(record: dict[str, Any]) -> list[str]:
    rows = [
        [cell(result, run["facts"]) for cell in COLUMNS.values()] for run in record["runs"] for result in run["results"]
    ]
    notes = dict.fromkeys(f"{run['facts']['machine']}, Python {run['facts']['python']}" for run in record["runs"])
    return table(tuple(COLUMNS), rows, "; ".join(notes), num_left=0)


if __name__ == "__main__":
    main()
