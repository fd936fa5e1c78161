"""python benchmarks/fingerprints.py [--megabytes 1024] [--output FILE]: how fast a checkpoint's weights are digested.

Times the former fingerprint (SHA-256) and that of today (XXH3) on the same matcher, and writing and reading its
checkpoint file, in turns within one process; the median of the turns counts. The matcher has one tower of random
weights, so that it has as many bytes as asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from record import add_output, write_record

from mim_lightning.encoders import TinyText
from mim_lightning.model.fingerprint import fingerprint
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower

WIDTH = 1024


def make_matcher(num_bytes: int) -> Matcher:
    """Return a matcher whose weights have nearly this many bytes: matrices as of a transformer's layers."""
    tower = Tower(TinyText(width=32, num_layers=1), 8)
    layers = max(1, num_bytes // (4 * WIDTH * 4 * WIDTH))
    tower.encoder.layers = torch.nn.ParameterList(torch.randn(WIDTH, 4 * WIDTH) for _ in range(layers))
    return Matcher({"product_text": tower}, {}, {}).eval()


def measure(num_bytes: int, turns: int, folder: Path) -> dict[str, object]:
    """Return bytes, seconds by what was done, and the number of CPUs."""
    matcher, path = make_matcher(num_bytes), folder / "model.ckpt"
    state = matcher.state_dict()

    def write() -> None:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    tasks: dict[str, Callable[[], object]] = {
        "former fingerprint (SHA-256)": lambda: fingerprint(matcher, like="0" * 16),
        "fingerprint (XXH3)": lambda: fingerprint(matcher),
        "checkpoint written and synced": write,
        "checkpoint read, in the system's cache": lambda: torch.load(path, weights_only=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(turns):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - started)
    return {
        "bytes": sum(value.nbytes for value in state.values()),
        "cpus": os.cpu_count(),
        "seconds": {name: median(values) for name, values in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=5)
    add_output(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.megabytes << 20, arguments.turns, Path(folder))
    print(json.dumps(found, indent=1))
    write_record(arguments.output, found)


if __name__ == "__main__":
    main()
