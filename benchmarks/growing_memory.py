"""Peak memory of adding rows to prepared data, by the rows that are added and by those that are there.

    python benchmarks/growing_memory.py --output experiments/scale/growing/memory.json

Prepares products and queries without pictures (made up), one training row each, and adds more of them; each step in a
process of its own. Memory is that of the process (without files it maps), less what it holds before it begins.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import Peak, run_measurement, tree_bytes
from preparation_scale import products, queries
from record import add_output, write_record

SIZES = ((2_000, 2_000), (10_000, 2_000), (2_000, 60_000), (2_000, 120_000))  # rows that are there, and that are added
HELD = "RssAnon"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output(parser)
    parser.add_argument("--step", nargs=3, metavar=("FOLDER", "FIRST", "STOP"), help="prepare or add rows, and measure")
    wishes = parser.parse_args()
    if wishes.step:
        folder, first, stop = wishes.step
        print(json.dumps(measure(Path(folder), int(first), int(stop))))
        return
    results = []
    for there, added in SIZES:
        with tempfile.TemporaryDirectory(prefix="growing-") as folder:
            for first, stop in ((0, there), (there, there + added)):
                found = run_measurement(__file__, "--step", folder, first, stop)
            results.append({"there": there, "added": added, **found})
            print(results[-1], flush=True)
    write_record(wishes.output, results)


def measure(folder: Path, first: int, stop: int) -> dict[str, Any]:
    """Prepare the first rows, or add others; return peak memory and CPU seconds."""
    import pyarrow
    import pyarrow.parquet

    from mim_lightning.data.manifest.manifest import ManifestSource
    from mim_lightning.data.preparation.preparation import Validation, prepare_shards
    from mim_lightning.data.preparation.prepared import ShardSettings
    from mim_lightning.data.validation.settings import ValidationSettings
    from mim_lightning.data.versions.change import Change, Tables
    from mim_lightning.data.versions.next_version import change_data

    paths = []
    for name, columns in (("products", products), ("queries", queries)):
        paths.append(folder / f"{name}-{first}.parquet")
        table = columns(range(first, stop), 10**9)
        if name == "queries":  # of the products with their numbers
            table["product_id"] = products(range(first, stop), 10**9)["product_id"]
        pyarrow.parquet.write_table(pyarrow.table(table), paths[-1])
    del table
    validation = Validation(ValidationSettings(memory_limit="256MB"), write_report=lambda *_: None)
    before, started = tree_bytes(HELD), time.process_time()
    with Peak(lambda: tree_bytes(HELD), 0.02) as memory:
        if first:
            change = Change(Tables(str(paths[0]), str(paths[1])))
            change_data(folder / "shop", change, validation, num_workers=1)
        else:
            source = ManifestSource(str(paths[0]), str(paths[1]))
            prepare_shards(source, folder / "shop", ShardSettings(), validation=validation, num_workers=1)
    return {"peak_bytes": memory.value - before, "cpu_seconds": time.process_time() - started}


if __name__ == "__main__":
    main()
