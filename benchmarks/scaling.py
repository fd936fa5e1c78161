"""Plan a catalog: machines, memory, hours and money from a million to a thousand million products.

    python -m benchmarks.scaling                              the plan, from the records of this repository
    python -m benchmarks.scaling --products 3e6 --gpu-rows-per-second 1500 --gpu-dollars 2

Every figure that it starts from is an option. What is not given is read from a record in experiments/, where it was
measured, and named as such; a figure without a record is an assumption, with its source. Costs are linear in rows,
except of an index: a graph is searched in logarithmic time, lists in the square root. All of the plan beyond the size
that a record says is extrapolated.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.scaling_figures import GB, GIB, INPUTS, Figures, read_figures
from mim_lightning.data.loading.rank_sampler import PREFETCH_FACTOR
from mim_lightning.data.shards.cache import CacheSettings
from mim_lightning.metrics.memory import EvaluationMemory
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.index_type import FLAT_ROWS, choose_kind

PRODUCTS = (1e6, 1e7, 1e8, 1e9)
NUM_IDS, WORKING_BYTES = 10, 3 * 2**28  # integers kept of a row, and memory that ranking may take, by default
HOURS_A_MONTH = 730


class Line(NamedTuple):
    part: str
    what: str
    unit: str
    value: float | str


def plan(num_products: float, f: Figures) -> list[Line]:
    """Return the plan for a catalog, line by line."""
    rows = num_products * f.rows_per_product
    return [
        *_plan_data(rows, f),
        *_plan_training(rows, f),
        *_plan_validation(num_products, f),
        *_plan_index(num_products, f),
    ]


def _plan_data(rows: float, f: Figures) -> Iterator[Line]:
    shards, terabytes = math.ceil(rows / f.rows_per_shard), rows * f.row_bytes / 1e12
    core_hours = rows * f.images_per_row * f.prepare_image_ms / 3.6e6
    machines = math.ceil(core_hours / (f.prepare_hours * f.machine_cores))
    hours = core_hours / (machines * f.machine_cores)
    yield Line("data", "rows", "", rows)
    yield Line("data", "shards", "files x 2", shards)
    yield Line("data", "stored", "TB", terabytes)
    yield Line("data", "store", "$ a month", terabytes * 1e3 * f.store_dollars)
    yield Line("preparation", "work", "core-hours", core_hours)
    yield Line("preparation", "machines", f"{f.machine_cores:g} cores", machines)
    yield Line("preparation", "time", "hours", hours)
    yield Line("preparation", "cost", "$", hours * machines * f.machine_dollars)
    yield Line("preparation", "memory", "GiB", f.prepare_peak_gib)
    yield Line("preparation", "adding 1 %", "core-hours", core_hours * f.addition_cost)


def _gpu_hours(rows: float, f: Figures) -> float:
    return rows * f.epochs / f.gpu_rows_per_second / 3600


def _num_gpus(rows: float, f: Figures) -> int:
    """Return how many GPUs train in the wanted time: some of one machine, or all of several."""
    gpus = math.ceil(_gpu_hours(rows, f) / f.train_hours)
    whole = math.ceil(gpus / f.gpus_per_machine) * int(f.gpus_per_machine)
    return gpus if gpus <= f.gpus_per_machine else whole


def _plan_training(rows: float, f: Figures) -> Iterator[Line]:
    gpu_hours, gpus = _gpu_hours(rows, f), _num_gpus(rows, f)
    machines = math.ceil(gpus / f.gpus_per_machine)
    a_machine = min(gpus, f.gpus_per_machine) * f.gpu_rows_per_second  # rows/s
    megabytes = a_machine * f.row_bytes / 1e6
    window = max(8 * f.rows_per_shard, 4 * f.global_batch_size)
    # all processes read the same shards: what their workers may still be reading stays, what comes next is there
    requested = PREFETCH_FACTOR * f.loader_workers * f.global_batch_size
    cached = 2 * window + requested + CacheSettings.prefetch_shards * f.rows_per_shard
    yield Line("training", "GPUs", "", gpus)
    yield Line("training", "machines", f"{f.gpus_per_machine:g} GPUs", machines)
    yield Line("training", "time", "hours", gpu_hours / gpus)
    yield Line("training", "cost", "$", gpu_hours * f.gpu_dollars)
    yield Line("loading", "cores", "a GPU", f.load_row_ms * f.gpu_rows_per_second / 1e3 / min(1, f.remote_rate))
    yield Line("loading", "from the store", "MB/s a machine", megabytes)
    yield Line("loading", "connections", "a machine", math.ceil(megabytes / f.connection_mb))
    yield Line("loading", "least disk cache", "GB a machine", min(rows, cached) * f.row_bytes / GB)
    yield Line("checkpoint", "fingerprint", "s", f.checkpoint_bytes / GB / f.fingerprint_gb)


def _plan_validation(num_products: float, f: Figures) -> Iterator[Line]:
    gpus = _num_gpus(num_products * f.rows_per_product, f)
    gpu_hours = num_products / (f.gpu_rows_per_second * f.embed_speedup) / 3600
    vectors = (num_products + f.validation_queries) * 2 * f.dimension * 4 / GIB  # of two towers a side
    stated = _stated_bytes(num_products, gpus, f) / GIB
    peaks = [vectors / num * f.validation_overhead + f.validation_fixed for num in (1, gpus)]
    yield Line("validation", "one process, peak", "GiB", peaks[0])
    yield Line("validation", "a process for each GPU, peak", "GiB", peaks[1])
    yield Line("validation", "stated before, at most", "GiB", stated)
    yield Line("embedding", "the catalog", "GPU-hours", gpu_hours)
    yield Line("embedding", "cost", "$", gpu_hours * f.gpu_dollars)


def _stated_bytes(num_products: float, num_processes: int, f: Figures) -> float:
    """Return what a run states before its validation: what a process keeps, and what ranking adds at most."""
    memory = EvaluationMemory(
        num_queries=int(f.validation_queries),
        num_gallery=int(num_products),
        own_queries=math.ceil(f.validation_queries / num_processes),
        own_gallery=math.ceil(num_products / num_processes),
        query_towers=2,
        gallery_towers=2,
        width=int(f.dimension),
        value_bytes=4,
        query_ids=NUM_IDS,
        gallery_ids=NUM_IDS,
        num_directions=1,
        working_bytes=WORKING_BYTES,
    )
    return memory.kept_bytes + memory.ranking_bytes


def _plan_index(num_products: float, f: Figures) -> Iterator[Line]:
    kind, _ = choose_kind(IndexSettings(), max(int(num_products), FLAT_ROWS + 1), int(f.dimension))
    of = {name: getattr(f, f"{kind}_{name}") for name in ("bytes", "query_ms", "build_us")}
    num_bytes = of["bytes"] * f.dimension / 256
    fitting = min(f.usable_memory * f.machine_gib * GIB / num_bytes, f.rows_per_index_shard)
    shards = math.ceil(num_products / fitting)
    rows = num_products / shards
    slower = max(1.0, _growth(kind, rows) / _growth(kind, 1e6))
    machines = shards * f.replicas
    yield Line("index", "kind", "", kind)
    yield Line("index", "memory", "GiB of all shards", num_products * num_bytes / GIB)
    yield Line("index", "shards", "", shards)
    yield Line("index", "machines", f"{f.machine_cores:g} cores", machines)
    yield Line("index", "a query", "ms of a core", of["query_ms"] * slower)
    yield Line("index", "build", "hours a shard", rows * of["build_us"] * slower / 3.6e9 / f.machine_cores)
    yield Line("index", "serving", "$ a month", machines * f.machine_dollars * HOURS_A_MONTH)


def _growth(kind: str, rows: float) -> float:
    """Return the cost of a query, up to a factor: a graph's depth, or lists read times their length."""
    return math.log(rows) if kind == "hnsw" else math.sqrt(rows)


# --- the tables


def plan_table(products: Sequence[float], figures: Figures) -> str:
    plans = [plan(number, figures) for number in products]
    lines = [
        f"| | | unit | {' | '.join(f'{number:,.0f} products' for number in products)} |",
        "| --- | --- | --- |" + " ---: |" * len(products),
    ]
    for row in zip(*plans, strict=True):
        cells = " | ".join(one.value if isinstance(one.value, str) else number(one.value) for one in row)
        lines.append(f"| {row[0].part} | {row[0].what} | {row[0].unit} | {cells} |")
    origins = [figure.origin for figure in figures.of.values()]
    counts = ", ".join(f"{origins.count(origin)} {origin}" for origin in dict.fromkeys(origins))
    return "\n".join([*lines, "", f"*Extrapolated: arithmetic on {len(origins)} figures ({counts}).*"])


def figures_table(figures: Figures) -> str:
    lines = ["| figure | | unit | | from |", "| --- | ---: | --- | --- | --- |"]
    for one in INPUTS:
        found = figures.of[one.name]
        option = f"`--{one.name.replace('_', '-')}`"
        lines.append(f"| {option} | {number(found.value)} | {one.unit} | {found.origin} | {found.source} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Return a number with three digits, or whole if it has more."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--products", type=float, nargs="+", default=PRODUCTS, help="sizes to plan for, as 3e6")
    parser.add_argument("--output", type=Path, help="folder for plan.md and figures.md")
    for one in INPUTS:
        name = f"--{one.name.replace('_', '-')}"
        parser.add_argument(name, type=float, metavar="X", help=f"{one.unit}: {one.why}".replace("%", "%%"))
    wishes = vars(parser.parse_args(arguments))
    given = {one.name: wishes[one.name] for one in INPUTS if wishes[one.name] is not None}
    try:
        if any(not (size >= 1 and math.isfinite(size)) for size in wishes["products"]):
            raise ValueError(f"--products={' '.join(f'{size:g}' for size in wishes['products'])}: at least 1 each")
        figures = read_figures(given)
    except ValueError as error:
        parser.error(str(error))
    tables = {"plan": plan_table(wishes["products"], figures), "figures": figures_table(figures)}
    print("\n\n".join(tables.values()))
    if wishes["output"]:
        for name, text in tables.items():
            (wishes["output"] / f"{name}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
