"""Plan a catalog: machines, memory, hours and money from a million to a thousand million products.

    python benchmarks/scaling.py                              the plan, from the records of this repository
    python benchmarks/scaling.py --products 3e6 --gpu-rows-per-second 1500 --gpu-dollars 2

Every figure that it starts from is an option. What is not given is read from a record in experiments/, where it was
measured, and named as such; a figure without a record is an assumption, with its source. Costs are linear in rows,
except of an index: a graph is searched in logarithmic time, lists in the square root. All of the plan beyond the size
that a record says is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mim_lightning.metrics.memory import EvaluationMemory
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.index_type import FLAT_ROWS, choose_kind

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PRODUCTS = (1e6, 1e7, 1e8, 1e9)
GB, GIB = 1e9, 2**30
NUM_IDS, WORKING_BYTES = 10, 3 * 2**28  # integers kept of a row, and memory that ranking may take, by default
HOURS_A_MONTH = 730
MEASURED, ASSUMED, GIVEN = "measured", "assumed", "given"

Record = Any  # the JSON of a record


class Input(NamedTuple):
    """A figure that the plan starts from.

    Args:
        assumed: what holds without a record.
        why: reason or source of the assumption.
        record: path below experiments/.
        read: takes the figure from the record.
    """

    name: str
    unit: str
    assumed: float
    why: str
    record: str = ""
    read: Callable[[Record], float] | None = None


class Figure(NamedTuple):
    value: float
    origin: str  # MEASURED, ASSUMED or GIVEN
    source: str


def _load_cpu_ms(loading: Record) -> float:
    result = next(
        one for one in loading["results"] if 1 in (one.get("samples_per_product"), one.get("rows_per_product"))
    )
    return 1e3 * median(cpu for _, cpu in result["spent"]["ours"]) / loading["facts"]["rows"]


def _rate_of(name: str) -> Callable[[Record], float]:
    return lambda found: found["bytes"] / found["seconds"][name] / GB


def _of_kind(kind: str, read: Callable[[Record, float], float]) -> Callable[[Record], float]:
    return lambda found: read(found["kinds"][kind], found["facts"]["rows"])


def _index_bytes(kind: str) -> Callable[[Record], float]:
    return _of_kind(kind, lambda found, rows: found["files"]["main_index"] / rows)


def _query_ms(kind: str) -> Callable[[Record], float]:
    return _of_kind(kind, lambda found, _: 1e3 * next(s["ours"]["cpu"] for s in found["speed"] if s["batch"] == 1))


def _build_us(kind: str) -> Callable[[Record], float]:
    return _of_kind(kind, lambda found, rows: 1e6 * found["steps"]["fill_cpu_seconds"] / rows)


def _validation_overhead(found: Record) -> float:
    runs = [
        one for one in found.values() if isinstance(one, dict) and one["processes"] == 1 and one["dtype"] == "float32"
    ]
    largest = max(runs, key=lambda one: one["rows"])
    return largest["peak_bytes"] / largest["payload_bytes"]


def _preparation_peak(found: Record) -> float:
    results = [one for run in found["runs"] for one in run["results"] if one["version"] == "this version"]
    return max(results, key=lambda one: one["rows"])["peak_bytes"] / GIB


def _remote_rate(found: Record) -> float:
    passes = found["results"]["decoded"]
    return median(local[0] / remote[0] for local, remote in zip(passes["folder"], passes["small cache"], strict=True))


INDEX = "index_speed/results.json"
ROW_BYTES = "bytes_a_row"
PREPARING = "data_throughput/preparing.json"
INPUTS = (
    Input("rows_per_product", "rows", 1, "queries of a product that are trained on; the paper has one"),
    Input("images_per_row", "images", 2, "a query's and a product's"),
    Input("epochs", "epochs", 10, "our choice"),
    Input("dimension", "numbers", 256, "of an embedding; the index was measured with as many"),
    Input("rows_per_shard", "rows", 2000, "data.shards.samples_per_shard"),
    Input("global_batch_size", "rows", 16384, "the paper's order of magnitude"),
    Input("validation_queries", "rows", 1e5, "the gallery is the whole catalog; float32, two towers a side"),
    Input(
        "row_bytes",
        "bytes",
        1e5,
        "two photos of 512 pixels",
        PREPARING,
        lambda found: found["results"][-1]["bytes_a_row"],
    ),
    Input(
        "prepare_image_ms",
        "ms of a core",
        10,
        "decoding and resizing",
        PREPARING,
        lambda found: 1e3 * found["results"][-1]["cpu_seconds"] / found["results"][-1]["pictures"],
    ),
    Input(
        "prepare_peak_gib",
        "GiB",
        4,
        "peak of a preparation, whatever the rows",
        "scale/preparation/results.json",
        _preparation_peak,
    ),
    Input(
        "addition_cost",
        "of a preparation",
        0.05,
        "adding 1 % of the rows",
        "scale/growing/results.json",
        lambda found: found["cpu_seconds"]["add"] / found["cpu_seconds"]["prepare_again"],
    ),
    Input(
        "remote_rate",
        "of the local rate",
        0.9,
        "the loader on shards behind a slow link, with a cache of a part of them",
        "scale/remote/results.json",
        _remote_rate,
    ),
    Input(
        "validation_overhead",
        "times",
        1.25,
        "peak memory of a validation, of its vectors",
        "scale/validation/results.json",
        _validation_overhead,
    ),
    Input("load_row_ms", "ms of a core", 1, "decoding", "data_throughput/loading.json", _load_cpu_ms),
    Input(
        "gpu_rows_per_second",
        "rows/s of a GPU",
        725,
        "OpenCLIP ViT-B/32: 12e9 samples in 4,600 hours of an A100 (its docs/PRETRAINED.md; NeMo's page on CLIP)",
    ),
    Input("embed_speedup", "times", 3, "a forward pass is a third of a step; of a row, not of a product alone"),
    Input("gpus_per_machine", "GPUs", 8, "usual"),
    Input("gpu_dollars", "$ an hour", 3, "a GPU; list prices of large clouds differ by a factor of two"),
    Input("train_hours", "hours", 24, "wanted, for all epochs; decides the number of GPUs"),
    Input("prepare_hours", "hours", 12, "wanted; decides the number of machines"),
    Input("machine_cores", "cores", 16, "of a machine without GPU"),
    Input("machine_gib", "GiB", 128, "memory of a machine without GPU"),
    Input("machine_dollars", "$ an hour", 1, "a machine without GPU"),
    Input("store_dollars", "$ a GB and month", 0.023, "S3 standard, list price"),
    Input("connection_mb", "MB/s", 50, "of one connection to the store"),
    Input("fingerprint_gb", "GB/s", 0.42, "SHA-256", "scale/fingerprints/results.json", _rate_of("fingerprint (XXH3)")),
    Input("checkpoint_bytes", "bytes", 2.4e9, "200 M parameters and AdamW's two states of each, float32"),
    Input("usable_memory", "fraction", 0.75, "of a machine's memory, for rows of an index"),
    Input("rows_per_index_shard", "rows", 1e8, "more would be slow to build and to move"),
    Input("replicas", "copies", 2, "one is replaced while the other answers"),
    *(
        Input(f"{kind}_{name}", unit, assumed, why, INDEX, read(kind))
        for kind, figures in {
            "hnsw": (1296.0, 0.6, 900.0),
            "sq8": (268.0, 0.4, 100.0),
            "ivf_pq": (76.0, 0.7, 150.0),
        }.items()
        for (name, unit, why, read), assumed in zip(
            (
                ("bytes", "bytes a row", "in memory, at 256 numbers", _index_bytes),
                ("query_ms", "ms of a core", "at a million rows", _query_ms),
                ("build_us", "µs of a core a row", "at a million rows", _build_us),
            ),
            figures,
            strict=True,
        )
    ),
)


@dataclass(frozen=True)
class Figures:
    """The figures of a plan, by name of their input."""

    of: Mapping[str, Figure]

    def __getattr__(self, name: str) -> float:
        try:
            return self.of[name].value
        except KeyError:
            raise AttributeError(name) from None


def read_figures(given: Mapping[str, float], experiments: Path = EXPERIMENTS) -> Figures:
    """Return what the user gave, what the records say, and assumptions for the rest.

    Raises:
        ValueError: a figure is not above 0.
    """
    for name, value in given.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"--{name.replace('_', '-')}={value:g}: must be above 0")
    found = {one.name: _read_figure(one, experiments) for one in INPUTS}
    return Figures(found | {name: Figure(value, GIVEN, "command line") for name, value in given.items()})


def _read_figure(wanted: Input, experiments: Path) -> Figure:
    if wanted.read is not None:
        try:
            value = wanted.read(json.loads((experiments / wanted.record).read_text()))
            return Figure(value, MEASURED, f"experiments/{wanted.record}")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
            return Figure(wanted.assumed, ASSUMED, f"{wanted.why}; no figure in experiments/{wanted.record}")
    return Figure(wanted.assumed, ASSUMED, wanted.why)


# --- the plan


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
    yield Line("training", "GPUs", "", gpus)
    yield Line("training", "machines", f"{f.gpus_per_machine:g} GPUs", machines)
    yield Line("training", "time", "hours", gpu_hours / gpus)
    yield Line("training", "cost", "$", gpu_hours * f.gpu_dollars)
    yield Line("loading", "cores", "a GPU", f.load_row_ms * f.gpu_rows_per_second / 1e3 / min(1, f.remote_rate))
    yield Line("loading", "from the store", "MB/s a machine", megabytes)
    yield Line("loading", "connections", "a machine", math.ceil(megabytes / f.connection_mb))
    yield Line("loading", "least disk cache", "GB a machine", min(rows, 2 * window) * f.row_bytes / GB)
    yield Line("checkpoint", "fingerprint", "s", f.checkpoint_bytes / GB / f.fingerprint_gb)


def _plan_validation(num_products: float, f: Figures) -> Iterator[Line]:
    gpus = _num_gpus(num_products * f.rows_per_product, f)
    gpu_hours = num_products / (f.gpu_rows_per_second * f.embed_speedup) / 3600
    vectors = (num_products + f.validation_queries) * 2 * f.dimension * 4 / GIB  # of two towers a side
    stated = _stated_bytes(num_products, gpus, f) / GIB
    yield Line("validation", "one process, peak", "GiB", vectors * f.validation_overhead)
    yield Line("validation", "a process for each GPU, peak", "GiB", vectors * f.validation_overhead / gpus)
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
