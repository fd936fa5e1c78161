"""How well orders shuffle by window and batch, and what it takes to plan an epoch: time and memory, without any data.

Sets are simulated: sizes of shards, and for grouped orders memory-mapped columns with 4 rows a product. Each plan is
made in a process of its own, whose largest resident size is compared with the one before the order was made (Linux).

    python benchmarks/shuffling.py --output experiments/scale/shuffling/results.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from machine import memory_bytes, reset_peak, run_measurement
from record import add_output, write_record

from mim_lightning.data.sampling.grouped import GroupedOrder
from mim_lightning.data.sampling.order import EpochSettings, StreamedOrder
from mim_lightning.data.sampling.shuffle_quality import measure_shuffle
from mim_lightning.data.sampling.shuffled import ShuffledOrder

SHARD, ROWS_A_PRODUCT = 2000, 4
NUM_TIMED = 130  # batches after the first: two windows of a grouped order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output(parser)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--plan", nargs=4, help="of one order: shuffled or grouped, rows, batch size, file of keys")
    arguments = parser.parse_args()
    if arguments.plan:
        kind, num_rows, batch_size, keys = arguments.plan
        print(json.dumps(plan(kind, int(num_rows), int(batch_size), Path(keys))))
        return
    results = {"quality": list(qualities()), "plans": []}
    for kind in ("shuffled", "grouped"):
        for num_rows in arguments.rows:
            with tempfile.NamedTemporaryFile(suffix=".npy") as keys:
                write_keys(Path(keys.name), num_rows if kind == "grouped" else 1)
                results["plans"].append(run_measurement(__file__, "--plan", kind, num_rows, 16_384, keys.name))
            print(results["plans"][-1], flush=True)
    write_record(arguments.output, results)


def qualities() -> Any:
    """Yield how often rows meet again, of 400,000 rows by batch size and window."""
    num_rows = 400_000
    keys = np.random.default_rng(0).permutation(num_rows) // ROWS_A_PRODUCT
    for kind in ("shuffled", "grouped"):
        for batch_size in (1024, 4096, 16_384):
            default = 200 if kind == "grouped" else EpochSettings(batch_size).window_for(num_rows, num_rows // SHARD)
            for window in sorted({2, 8, 17, 34, 67, 200, default}):
                order = make_order(kind, num_rows, batch_size, window, keys)
                found = measure_shuffle(order)
                row = {"order": kind, "batch": batch_size, "window": window, "is_default": window == default}
                yield row | {"meet_again": found.meet_again, "uniform": found.uniform}


def make_order(kind: str, num_rows: int, batch_size: int, window: int, keys: np.ndarray) -> StreamedOrder:
    sizes = (SHARD,) * (num_rows // SHARD)
    if kind == "grouped":
        return GroupedOrder(sizes, batch_size, keys, 2, window=window)
    return ShuffledOrder(sizes, batch_size, window=window)


def write_keys(path: Path, num_rows: int) -> None:
    keys = np.lib.format.open_memmap(path, "w+", np.int64, (num_rows,))
    for start in range(0, num_rows, 1_000_000):
        part = np.random.default_rng(start).integers(0, max(1, num_rows // ROWS_A_PRODUCT), 1_000_000)
        keys[start : start + 1_000_000] = part[: num_rows - start]


def plan(kind: str, num_rows: int, batch_size: int, path: Path) -> dict[str, Any]:
    """Return the seconds and bytes of opening an order amid an epoch and taking batches from it."""
    keys, num_shards = np.load(path, mmap_mode="r"), num_rows // SHARD
    least = {"least": 512} if kind == "grouped" else {}
    window = min(EpochSettings(batch_size).window_for(num_rows, num_shards, **least), num_shards)
    make_order(kind, SHARD * 8, 64, 8, np.zeros(SHARD * 8, dtype=np.int64)).batches(0)  # imports
    reset_peak()
    before = memory_bytes()
    started = time.perf_counter()
    order = make_order(kind, num_rows, batch_size, window, keys)
    batches = order.batches(0, order.num_batches // 2 * batch_size)
    next(batches)
    opened = time.perf_counter() - started
    started = time.perf_counter()
    num_taken = sum(1 for _ in islice(batches, NUM_TIMED))
    seconds = time.perf_counter() - started
    planned = memory_bytes("VmHWM") - before
    started = time.perf_counter()
    found = measure_shuffle(order)
    return {
        "order": kind,
        "rows": num_rows,
        "batch": batch_size,
        "window": window,
        "first_batch_s": opened,
        "batch_s": seconds / num_taken,
        "mib": planned / 2**20,
        "quality_s": time.perf_counter() - started,
        "meet_again": found.meet_again,
        "uniform": found.uniform,
    }


if __name__ == "__main__":
    main()
