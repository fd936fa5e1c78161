"""Tables from the results of benchmarks/index_speed.py, and a billion products by arithmetic on them.

    python experiments/index_speed/tables.py [folder with results.json]

Writes into the folder:

    table.md      queries a second against FAISS, and building, a kind a row
    filters.md    milliseconds of a filtered search, by the fraction of rows that it leaves
    memory.md     bytes a row on disk, opening, resident memory
    billion.md    shards, machines, latency, build hours and money for ASSUMED.products
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Assumed:
    """Assumptions that are not measured here; replace them by your own."""

    products: int = 1_000_000_000
    images_a_product: int = 1
    machine_gib: int = 128  # of memory
    machine_cores: int = 16
    machine_dollars_an_hour: float = 1.0
    usable_memory: float = 0.75  # for rows; the rest is for the system, columns and answers
    largest_shard: int = 100_000_000  # rows; more of short codes would fit, slow to build, move and search
    replicas: int = 2
    network_ms: float = 1.0  # there and back, and waiting for the slowest shard
    load_on_cores: float = 0.5  # so that waiting stays short


ASSUMED = Assumed()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    folder = parser.parse_args().folder
    results = json.loads((folder / "results.json").read_text())
    for name, lines in (
        ("table.md", speed_lines(results)),
        ("filters.md", filter_lines(results)),
        ("memory.md", memory_lines(results)),
        ("billion.md", billion_lines(results)),
    ):
        text = "\n".join([*map(str.rstrip, lines), "", measured_line(results)]) + "\n"
        (folder / name).write_text(text)
        print(text)


def measured_line(results: dict[str, Any]) -> str:
    facts = results["facts"]
    return (
        f"*Measured on {facts['rows']:,} rows of {facts['dimension']} dimensions, threads: {facts['threads']}, "
        f"{facts['cpu']}, load {facts['load']} from other work; faiss {facts['faiss']}, {facts['date']}.*"
    )


def speed_lines(results: dict[str, Any]) -> list[str]:
    batches = [speed["batch"] for speed in next(iter(results["kinds"].values()))["speed"]]
    names = [f"queries/s in {batch}s" if batch > 1 else "queries/s one at a time" for batch in batches]
    heads = "".join(f"{name} | of FAISS's | by CPU | " for name in names)
    lines = [f"| kind | recall@10 | build, s | {heads}", "| --- | " + "---: | " * (2 + 3 * len(batches))]
    for kind, found in results["kinds"].items():
        cells = [kind, f"{found['recall']:.4f}", f"{found['build_seconds']:,.0f}"]
        for speed in found["speed"]:
            clock, cpu = (speed["faiss"][by] / speed["ours"][by] for by in ("clock", "cpu"))
            cells += [f"{1 / speed['ours']['clock']:,.0f}", f"{clock:.2f}", f"{cpu:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def filter_lines(results: dict[str, Any]) -> list[str]:
    lines = [
        "| kind | rows allowed | ours, ms | one by one, ms | by the index, ms | its recall@10 | first time, ms |",
        "| --- | " + "---: | " * 6,
    ]
    for kind, found in results["kinds"].items():
        for row in found["filters"]:
            seconds = (cell(row["seconds"].get(way)) for way in ("ours", "one by one", "index"))
            recall = "" if row["index_recall"] is None else f"{row['index_recall']:.3f}"
            cells = [kind, f"{row['share']:.1%}", *seconds, recall, cell(row["first_seconds"])]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def cell(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}"


def memory_lines(results: dict[str, Any]) -> list[str]:
    lines = [
        "| kind | bytes a row: index | vectors beside it | ids and columns | opened in, s | resident then, MiB | "
        "after all queries, MiB |",
        "| --- | " + "---: | " * 6,
    ]
    rows = results["facts"]["rows"]
    for kind, found in results["kinds"].items():
        sizes = [found["files"].get(part, 0) / rows for part in ("main_index", "main_vectors")]
        rest = sum(found["files"].get(part, 0) for part in ("main_rows", "main_products")) / rows
        memory = (f"{found[key] / 2**20:,.0f}" for key in ("opened_bytes", "searched_bytes"))
        cells = [kind, *(f"{size:,.0f}" for size in (*sizes, rest)), f"{found['open_seconds']:.2f}", *memory]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


@dataclass(frozen=True)
class Plan:
    """A billion products of one kind of index, from figures measured at another size."""

    bytes_a_row: float  # in memory
    disk_bytes_a_row: float
    rows_a_shard: int
    shards: int
    machines: int
    latency_ms: float
    queries_a_second: float  # of all replicas together
    build_hours: float  # every shard on a machine of its own

    @property
    def dollars_a_month(self) -> float:
        return self.machines * ASSUMED.machine_dollars_an_hour * 730

    @property
    def build_dollars(self) -> float:
        return self.shards * self.build_hours * ASSUMED.machine_dollars_an_hour


def plan(kind: str, found: dict[str, Any], facts: dict[str, Any]) -> Plan:
    """Return the plan for a kind; CPU time instead of wall time, since the machine may do other work."""
    measured_rows, rows = facts["rows"], ASSUMED.products * ASSUMED.images_a_product
    bytes_a_row = found["files"]["main_index"] / measured_rows
    fitting = min(ASSUMED.usable_memory * ASSUMED.machine_gib * GIB / bytes_a_row, ASSUMED.largest_shard)
    shards = math.ceil(rows / fitting)
    rows_a_shard = math.ceil(rows / shards)
    query_ms = 1e3 * next(speed["ours"]["cpu"] for speed in found["speed"] if speed["batch"] == 1)
    larger = growth(kind, rows_a_shard) / growth(kind, measured_rows)
    more_rows = rows_a_shard / measured_rows
    # lists are as many as a query's cost grows, and so are the rows to train them with
    build_seconds = found["steps"]["fill_cpu_seconds"] * more_rows * (1 if kind == "flat" else larger)
    build_seconds += found["steps"]["train_cpu_seconds"] * larger**2
    a_replica = 1e3 * ASSUMED.machine_cores * ASSUMED.load_on_cores / (query_ms * larger)
    return Plan(
        bytes_a_row,
        sum(found["files"].values()) / measured_rows,
        rows_a_shard,
        shards,
        shards * ASSUMED.replicas,
        query_ms * larger + ASSUMED.network_ms,
        a_replica * ASSUMED.replicas,
        build_seconds / ASSUMED.machine_cores / 3600,
    )


def growth(kind: str, rows: float) -> float:
    """Return the cost of a query, up to a factor: a graph's depth, lists read times their length, or every row."""
    return {"hnsw": math.log(rows), "flat": rows}.get(kind, math.sqrt(rows))


def billion_lines(results: dict[str, Any]) -> list[str]:
    lines = [
        "| kind | bytes a row in memory (measured) | on disk (measured) | rows a shard | shards | machines | "
        "latency, ms | queries/s | build, h | build, $ | a month, $ |",
        "| --- | " + "---: | " * 10,
    ]
    for kind, found in results["kinds"].items():
        p = plan(kind, found, results["facts"])
        cells = [kind, f"{p.bytes_a_row:,.0f}", f"{p.disk_bytes_a_row:,.0f}", f"{p.rows_a_shard:,}", str(p.shards)]
        cells += [str(p.machines), f"{p.latency_ms:,.1f}", f"{p.queries_a_second:,.0f}", f"{p.build_hours:,.1f}"]
        lines.append(f"| {' | '.join([*cells, f'{p.build_dollars:,.0f}', f'{p.dollars_a_month:,.0f}'])} |")
    a = ASSUMED
    return [
        *lines,
        "",
        f"*Arithmetic on the measured figures, and on assumptions: {a.products:,} products of {a.images_a_product} "
        f"image, {a.replicas} replicas, machines of {a.machine_gib} GiB and {a.machine_cores} cores at "
        f"${a.machine_dollars_an_hour:.2f} an hour, {a.usable_memory:.0%} of memory for rows, at most "
        f"{a.largest_shard:,} rows a shard, cores {a.load_on_cores:.0%} busy, {a.network_ms:.0f} ms of network. CPU "
        "time of a query grows with the logarithm of a shard's rows (hnsw), their square root (lists), or their number "
        "(flat), and putting in a row likewise, except flat; training lists with its square; cores share building "
        "evenly. Reading vectors from disk is not in the latency.*",
    ]


if __name__ == "__main__":
    main()
