"""Measure how long a rank takes to open a set of 400 million samples, and to seek to the middle of an epoch.

The sizes are arguments; only the set's index is written, in seconds. Prints a table with a process in each row: seconds
and peak memory, with all imports of a training process, and without the set for comparison; `--output` also writes
JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from machine import describe_machine, run_measurement
from record import add_output, table, write_record

SAMPLES_A_SHARD = 2000
BYTES_A_SHARD = 80_000_000
MEASURE = """
import json, resource, sys, time

def now():
    return time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

states = [now()]
from mim_lightning.data.sampling.order import EpochSettings
from mim_lightning.data.sampling.shuffled import ShuffledSettings
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.data.loading.rank_sampler import RankSampler
import mim_lightning.train, mim_lightning.lit.datamodule  # other imports of a training process
states.append(now())
place, num_streams, batch_size, world_size = sys.argv[1], *map(int, sys.argv[2:])
if place:
    shards = ShardSet(place)
    states.append(now())
    order = ShuffledSettings().for_shards(shards, EpochSettings(batch_size, seed=1, num_streams=num_streams))
    sampler = RankSampler(shards, order, world_size // 2, world_size)
    states.append(now())
    sampler.epoch, sampler.start = 3, order.num_batches // 2 * batch_size
    batches = iter(sampler)
    next(batches)
    states.append(now())
    started = time.perf_counter()
    for _ in range(100):
        next(batches)
    states.append(now())
print(json.dumps(states))
"""


def main() -> None:
    wishes = read_wishes()
    cases = [("imports alone", "", 1)]
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), wishes.samples)
        with serve(folder) as address:
            cases += [(f"a folder, {streams} streams", folder, streams) for streams in wishes.streams]
            cases += [(f"over HTTP, {wishes.streams[-1]} streams", address, wishes.streams[-1])]
            results = [{"case": name, **measure(place, streams, wishes)} for name, place, streams in cases]
    print("\n".join(lines_of(results, wishes)))
    write_record(wishes.output, results)


def read_wishes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--samples", type=int, default=400_000_000, help="of the simulated set")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64], help="data.num_interleaved")
    parser.add_argument("--batch-size", type=int, default=4096, help="rows of all ranks together")
    parser.add_argument("--world-size", type=int, default=64, help="ranks; the one in the middle is measured")
    add_output(parser)
    return parser.parse_args()


def write_index(folder: Path, num_samples: int) -> None:
    num_shards = -(-num_samples // SAMPLES_A_SHARD)
    sizes = [SAMPLES_A_SHARD] * (num_shards - 1) + [num_samples - SAMPLES_A_SHARD * (num_shards - 1)]
    index = {"version": 2, "members": [], "sizes": sizes, "max_relevant": 1}
    index |= {"bytes": [BYTES_A_SHARD + idx % 1000 for idx in range(num_shards)]}
    index |= {"crc32": [idx * 2654435761 % 2**32 for idx in range(num_shards)]}
    (folder / "index.json").write_text(json.dumps(index))


@contextmanager
def serve(folder: str) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def measure(place: str, num_streams: int, wishes: argparse.Namespace) -> dict[str, float]:
    """Return seconds by step, and the largest memory in MiB, of a fresh process."""
    states = run_measurement("-c", MEASURE, place, num_streams, wishes.batch_size, wishes.world_size)
    steps = ("import", "open", "order", "seek", "hundred_batches")
    seconds = {name: after[0] - before[0] for name, before, after in zip(steps, states, states[1:], strict=False)}
    return {**seconds, "memory_mib": states[-1][1] / 2**20}


def lines_of(results: list[dict[str, Any]], wishes: argparse.Namespace) -> list[str]:
    headings = ("", "import, s", "open, s", "order, s", "seek to mid-epoch, s", "a batch, ms", "largest memory, MiB")
    rows = []
    for result in results:
        seconds = [f"{result[name]:.2f}" if name in result else "" for name in ("import", "open", "order", "seek")]
        batch = f"{result['hundred_batches'] * 10:.2f}" if "hundred_batches" in result else ""
        rows.append([result["case"], *seconds, batch, f"{result['memory_mib']:,.0f}"])
    num_shards = -(-wishes.samples // SAMPLES_A_SHARD)
    note = (
        f"{wishes.samples:,} samples in {num_shards:,} shards, batch of {wishes.batch_size:,} over "
        f"{wishes.world_size} ranks; {describe_machine()}, Python {platform.python_version()}. "
        "A simulated index: no shard is read"
    )
    return table(headings, rows, note)


if __name__ == "__main__":
    main()
