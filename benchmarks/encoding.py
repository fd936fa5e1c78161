"""Time an exported model's towers under PyTorch and under ONNX Runtime, alternating.

Reads an export with ONNX towers, and photos. Prints the median of all rounds and, in brackets, the middle half. Both
runtimes are called as the service calls them: from encoded photos and strings to unit vectors.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mim_lightning.inference.loading import load
from mim_lightning.inference.model import LoadedModel

WORDS = "in blue, with stripes"
MANY = 32


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    photos = [path.read_bytes() for path in sorted(options.photos.rglob("*.jpg"))[:MANY]]
    models = {runtime: load(options.export, device="cpu", runtime=runtime) for runtime in ("torch", "onnx")}
    same = np.sum(models["torch"].embed_images(photos) * models["onnx"].embed_images(photos), axis=1).min()
    print("| | PyTorch, ms | ONNX Runtime, ms |\n| --- | ---: | ---: |")
    for what, ask in _asks(photos).items():
        spent: dict[str, list[float]] = {runtime: [] for runtime in models}
        for turn in range(options.repeats + 1):
            for runtime, model in models.items():
                started = time.perf_counter()
                ask(model)
                if turn:  # the first fills caches
                    spent[runtime].append(1e3 * (time.perf_counter() - started))
        print(f"| {what} | {_middle(spent['torch'])} | {_middle(spent['onnx'])} |")
    where = f"threads: {options.threads} of {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"\n*Median of {options.repeats} turns (middle half), {where}; cosine of the two {same:.6f} or more.*")


def _asks(photos: list[bytes]) -> dict[str, Callable[[LoadedModel], object]]:
    return {
        "one photo": lambda model: model.embed_images(photos[:1]),
        f"{MANY} photos": lambda model: model.embed_images(photos),
        "one text": lambda model: model.embed_texts([WORDS]),
        "photo and text": lambda model: model.embed_query(photos[:1], [WORDS]),
    }


def _middle(times_ms: list[float]) -> str:
    low, middle, high = np.percentile(times_ms, (25, 50, 75))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--export", required=True, help="folder that export made, with onnx=true")
    parser.add_argument("--photos", type=Path, required=True, help="folder of .jpg photos")
    parser.add_argument("--repeats", type=int, default=30, help="turns of each")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; ONNX Runtime takes as many")
    return parser.parse_args()


if __name__ == "__main__":
    main()
