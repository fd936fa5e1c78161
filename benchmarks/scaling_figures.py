"""The figures that a plan of a catalog starts from: given, measured by a record in experiments/, or assumed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
GB, GIB = 1e9, 2**30
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
    """Return what the peak grows by with the vectors, between the two largest galleries of one process."""
    small, large = _largest_validations(found)
    return (large["peak_bytes"] - small["peak_bytes"]) / (large["payload_bytes"] - small["payload_bytes"])


def _validation_fixed(found: Record) -> float:
    large = _largest_validations(found)[1]
    return (large["peak_bytes"] - _validation_overhead(found) * large["payload_bytes"]) / GIB


def _largest_validations(found: Record) -> list[Record]:
    runs = [found[name] for name in found if name.startswith("after/1/") and name.endswith("/float32")]
    return sorted(runs, key=lambda one: one["rows"])[-2:]


def _preparation_peak(found: Record) -> float:
    results = [one for run in found["runs"] for one in run["results"] if one["version"] == "this version"]
    return max(results, key=lambda one: one["rows"])["peak_bytes"] / GIB


def _remote_rate(found: Record) -> float:
    passes = found["results"]["decoded"]
    return median(local[0] / remote[0] for local, remote in zip(passes["folder"], passes["small cache"], strict=True))


INDEX = "index_speed/results.json"
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
        "of its vectors, what the peak memory of a validation grows by",
        "scale/validation/results.json",
        _validation_overhead,
    ),
    Input(
        "validation_fixed",
        "GiB",
        0.5,
        "of the peak memory of a validation, what does not grow with its vectors",
        "scale/validation/results.json",
        _validation_fixed,
    ),
    Input("load_row_ms", "ms of a core", 1, "decoding", "data_throughput/loading.json", _load_cpu_ms),
    Input("loader_workers", "a GPU", 8, "the most that data.num_workers=null starts; two batches each"),
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
