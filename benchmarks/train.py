"""Measure training from shards: rows a second and peak memory, beside other frameworks on the same encoders.

    python -m benchmarks.train                                    every arm in turn, one segment each a round
    python -m benchmarks.train --arms ours 'bare loop' --batches 8     what the framework costs
    python -m benchmarks.train --curve 64 256 1024                one arm after another, at each batch size
    python -m benchmarks.train --device cuda                      ViT-B/16 and ViT-L/14: also of the matmul peak
    python -m benchmarks.train --smoke                            everything at toy sizes

Each arm is a process of its own, and only one of them trains at a time. A segment is an epoch of `--batches` steps from
an empty loader. Ratios are between arms in the same round: their median, the lowest and the highest. `--output` also
writes JSON, and with `--more` adds rounds to those that the file has. Arms of packages that are not installed are left
out; `sentence-transformers` is no dependency of this project.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import multiprocessing
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import cpu
from benchmarks.record import add_output, read_record, write_record
from benchmarks.training.arms import ARMS, missing_package
from benchmarks.training.pace import Pace, Segment, StopTraining
from benchmarks.training.setup import Setup

PACKAGES = ("torch", "lightning", "timm", "transformers", "open_clip_torch", "sentence-transformers")
GROCERY = ("experiment=grocery", "model=4tower", "encoder=mobilenetv2_minilm", "encoder.text.max_length=77")
SMOKE = (
    "data=synthetic", "data.source.num_products=16", "data.source.image_size=32", "embed_dim=16",
    "data.source.train_queries_per_product=2", "data.source.val_queries_per_product=1", "encoder.image.image_size=32",
    "encoder.image.width=64", "encoder.text.width=32", "encoder.text.num_layers=1", "encoder.text.vocabulary=200",
)  # fmt: skip
PR_SET_PDEATHSIG = 1
Results = dict[str, list[Segment]]


def main(words: Sequence[str] | None = None) -> None:
    options = read_options(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the arms are stopped too
    setup = Setup(
        tuple(options.config), options.batch_size, options.batches, options.micro_batch_size, options.workers,
        options.device, options.scratch,
    )  # fmt: skip
    record: dict[str, Any] = {"facts": describe(setup)}
    if options.device == "cuda":
        from benchmarks.training.gpu import measure_models

        record["models"] = measure_models(setup, options.rounds, compare)
        print(gpu_table(record))
    elif options.curve:
        record["curve"] = measure_curve(setup, available(options.arms), options.curve, options.memory_limit)
        print(curve_table(record))
    else:
        record["rounds"] = earlier_rounds(options, record["facts"])
        for name, segments in compare(setup, available(options.arms), options.rounds, options.time_limit).items():
            record["rounds"].setdefault(name, []).extend(segments)
        print(table(record))
    write_record(options.output, record)


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="ratios are to the first")
    parser.add_argument("--config", nargs="+", default=GROCERY, help="overrides of a run")
    parser.add_argument("--batch-size", type=int, default=64, help="rows")
    parser.add_argument("--batches", type=int, default=4, help="steps of a segment")
    parser.add_argument("--micro-batch-size", type=int, default=32, help="of arms that cache gradients")
    parser.add_argument("--rounds", type=int, default=5, help="segments of every arm")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds after which no round begins")
    parser.add_argument("--curve", type=int, nargs="+", help="batch sizes")
    parser.add_argument("--memory-limit", type=float, default=8.0, help="GiB that no arm of a curve should exceed")
    parser.add_argument("--workers", type=int, default=1, help="loader processes of every arm")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/train_throughput"), help="shards, runs and logs")
    add_output(parser)
    parser.add_argument("--more", action="store_true", help="add to the rounds of the file")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, to see that everything runs")
    options = parser.parse_args(words)
    options.scratch = options.scratch.resolve()
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.smoke:
        options.config, options.batch_size, options.batches, options.rounds, options.workers = SMOKE, 8, 2, 2, 0
        options.micro_batch_size = 4
    return options


def available(arms: Sequence[str]) -> list[str]:
    for arm in arms:
        if package := missing_package(arm):
            print(f"{arm}: left out, {package} is not installed")
    return [arm for arm in arms if not missing_package(arm)]


# --- arms in turn


class ArmProcess:
    """An arm in a process forked from this one, which has imported everything and computed nothing."""

    def __init__(self, name: str, setup: Setup) -> None:
        context = multiprocessing.get_context("fork")
        self.name, self.log = name, setup.scratch / f"{re.sub(r'[^a-z]+', '_', name.lower())}.log"
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=self._serve, args=(setup, theirs))
        self._process.start()
        theirs.close()

    def _serve(self, setup: Setup, connection: Any) -> None:
        os.setsid()
        with suppress(OSError, AttributeError):  # Linux: ends with its parent, however that ends
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with self.log.open("w") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        with suppress(StopTraining):
            ARMS[self.name](setup, Pace(connection.recv, connection.send, setup.device))

    def train(self) -> Segment:
        """Train a segment; return its measurements."""
        try:
            self._connection.send(True)
            return self._connection.recv()
        except (EOFError, OSError):
            raise SystemExit(f"{self.name}: ended early, see {self.log}") from None

    def stop(self) -> None:
        with suppress(OSError):
            self._connection.send(False)
        self._process.join(20)
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)  # workers of a loader
        self._process.join()


def compare(setup: Setup, arms: Sequence[str], num_rounds: int, time_limit: float = math.inf) -> Results:
    """Return the segments of each arm by round; all arms take turns, each round beginning with the next.

    Args:
        time_limit: seconds; no round begins that would end later, the first one excepted.
    """
    begin, longest = time.perf_counter(), 0.0
    processes: list[ArmProcess] = []
    results: Results = {name: [] for name in arms}
    try:
        for name in arms:  # one after another: the first writes the shards
            processes.append(ArmProcess(name, setup))
            processes[-1].train()
        for round_idx in range(num_rounds):
            first, started = round_idx % len(arms), time.perf_counter()
            if round_idx and started - begin + longest > time_limit:
                break
            for process in processes[first:] + processes[:first]:
                time.sleep(0.3)  # workers of the former arm finish what they had begun
                results[process.name].append(process.train())
            longest = max(longest, time.perf_counter() - started)
    finally:
        for process in processes:
            process.stop()
    return results


def measure_curve(setup: Setup, arms: Sequence[str], sizes: Sequence[int], limit_gib: float) -> dict[str, Results]:
    """Return a segment of one step of each arm at each batch size, until the next would exceed the memory limit."""
    results: dict[str, Results] = {name: {} for name in arms}
    for size in sorted(sizes):
        for name in arms:
            if results[name]:
                former, (last, *_) = list(results[name].items())[-1]
                expected = last["start_gib"] + (last["peak_gib"] - last["start_gib"]) * size / int(former)
                if expected > limit_gib or int(former) < max((s for s in sizes if s < size), default=size):
                    continue
            process = ArmProcess(name, replace(setup, batch_size=size, batches=1))
            try:
                process.train()
                results[name][str(size)] = [process.train()]
            finally:
                process.stop()
    return results


def earlier_rounds(options: argparse.Namespace, facts: dict[str, Any]) -> Results:
    former = read_record(options.output if options.more else None)
    if not former:
        return {}
    if any(former["facts"][key] != facts[key] for key in ("setup", "versions", "machine")):
        raise SystemExit(f"{options.output}: was measured with other settings or versions")
    return former["rounds"]


# --- tables


def describe(setup: Setup) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "machine": f"{cpu()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "versions": {**versions, "Python": platform.python_version()},
        "setup": {key: value for key, value in asdict(setup).items() if key != "scratch"}
        | {"overrides": list(setup.overrides)},
    }


def table(record: dict[str, Any]) -> str:
    rounds: Results = record["rounds"]
    first = next(iter(rounds))
    lines = [
        f"| | rows/s | {first} is faster by | by CPU time | peak memory, GiB | images a row | tokens a row |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, segments in rounds.items():
        cells = [f"{median(rate(segment) for segment in segments):.1f}"]
        for measure in ("seconds", "cpu_seconds"):
            cells.append("" if name == first else ratio(segments, rounds[first], measure))
        cells.append(f"{max(segment['peak_gib'] for segment in segments):.2f}")
        cells += [per_row(segments, counted) for counted in ("images", "tokens")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", footnote(record, f"Medians of {len(rounds[first])} rounds (lowest to highest)")])


def curve_table(record: dict[str, Any]) -> str:
    lines = ["| | rows a batch | rows/s | peak memory, GiB |", "| --- | ---: | ---: | ---: |"]
    for name, by_size in record["curve"].items():
        for size, (segment, *_) in by_size.items():
            lines.append(f"| {name} | {int(size):,} | {rate(segment):.1f} | {segment['peak_gib']:.2f} |")
    return "\n".join([*lines, "", footnote(record, "One step after one to warm up")])


def gpu_table(record: dict[str, Any]) -> str:
    lines = [
        "| | images/s from shards | of a bare loop | images/s, batch in memory | of the matmul peak | peak, TFLOP/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, model in record["models"].items():
        ours, bare = (model["rounds"][arm] for arm in ("ours", "bare loop"))
        step = model["step"]
        speed = step["flop"] / step["seconds"]
        lines.append(
            f"| {name} | {median(segment['images'] / segment['seconds'] for segment in ours):,.0f} "
            f"| {ratio(bare, ours, 'seconds')} | {step['images'] / step['seconds']:,.0f} "
            f"| {speed / step['peak']:.2f} | {step['peak'] / 1e12:,.3g} |"
        )
    profiles = [f"{name}\n\n{model['step']['profile']}" for name, model in record["models"].items()]
    return "\n".join([*lines, "", footnote(record, "Medians"), "", *profiles])


def rate(segment: Segment) -> float:
    return segment["rows"] / segment["seconds"]


def ratio(theirs: Sequence[Segment], ours: Sequence[Segment], measure: str) -> str:
    """Return how often a row of ours fits in the time of one of theirs, with the lowest and the highest round."""
    found = sorted(
        (their[measure] / their["rows"]) / (our[measure] / our["rows"]) for their, our in zip(theirs, ours, strict=True)
    )
    return f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def per_row(segments: Sequence[Segment], counted: str) -> str:
    rows = sum(segment["rows"] for segment in segments)
    return f"{sum(segment[counted] for segment in segments) / rows:.1f}"


def footnote(record: dict[str, Any], begin: str) -> str:
    facts, setup = record["facts"], record["facts"]["setup"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"*{begin}; batches of {setup['batch_size']} rows, {setup['batches']} a segment, micro-batches of "
        f"{setup['micro_batch_size']}, {setup['workers']} loader processes; `{' '.join(setup['overrides'])}`; "
        f"{facts['machine']}, load {facts['load']:.1f}; {versions}.*"
    )


if __name__ == "__main__":
    main()
