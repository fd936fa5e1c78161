"""100 million triples and 400 million quadruples, by arithmetic on the results of three data benchmarks.

    python experiments/data_throughput/plan.py [folder with loading.json, preparing.json and opening.json]

Writes plan.md into the folder: bytes, shards, files, machines, hours and money.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

Measured = dict[str, Any]


@dataclass(frozen=True)
class Assumed:
    """Assumptions that are not measured here; replace them by your own."""

    sets: tuple[tuple[str, int], ...] = (("triples", 100_000_000), ("quadruples", 400_000_000))
    rows_a_shard: int = 2_000
    machine_cores: int = 16  # of a machine that prepares
    machines: int = 32
    machine_dollars_an_hour: float = 1.0
    store_dollars_a_gb_month: float = 0.023
    gpus: int = 64
    rows_a_second_a_gpu: int = 1_000  # forward and backward, the model decides
    gpu_dollars_an_hour: float = 3.0

    def in_words(self) -> str:
        return (
            f"assumptions: {self.rows_a_shard:,} rows a shard, every row with two pictures of its own, {self.machines} "
            f"machines of {self.machine_cores} cores at ${self.machine_dollars_an_hour:.2f} an hour to prepare, "
            f"store at ${self.store_dollars_a_gb_month} a GB and month, {self.gpus} GPUs at "
            f"${self.gpu_dollars_an_hour:.2f} an hour that train on {self.rows_a_second_a_gpu:,} rows a second "
            "each. Opened are 400 million rows."
        )


ASSUMED = Assumed()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    folder = parser.parse_args().folder
    measured = (json.loads((folder / f"{name}.json").read_text()) for name in ("loading", "preparing", "opening"))
    text = "\n".join(plan_lines(*measured)) + "\n"
    (folder / "plan.md").write_text(text)
    print(text)


def plan_lines(loading: Measured, preparing: Measured, opening: Sequence[Measured]) -> Iterator[str]:
    yield (
        "| | rows | shards | files | stored, TB | store, $ a month | prepare, core-hours | prepare, h | prepare, $ | "
        "cores a GPU for loading | an epoch, h | an epoch, $ | rank opens in, s |"
    )
    yield "| --- | " + "---: | " * 12
    ours = next(result["spent"]["ours"] for result in loading["results"] if result["rows_per_product"] == 1)
    load_seconds = median(cpu for _, cpu in ours) / loading["facts"]["rows"]  # CPU time a row
    large = preparing["results"][-1]  # photos as a shop has them
    picture_seconds = large["cpu_seconds"] / large["pictures"]
    for name, rows in ASSUMED.sets:
        shards = math.ceil(rows / ASSUMED.rows_a_shard)
        terabytes = rows * large["bytes_a_row"] / 1e12
        core_hours = 2 * rows * picture_seconds / 3600
        hours = core_hours / (ASSUMED.machines * ASSUMED.machine_cores)
        epoch = rows / (ASSUMED.gpus * ASSUMED.rows_a_second_a_gpu) / 3600
        opened = max(found["open"] + found["order"] + found["seek"] for found in opening if "open" in found)
        cells = [
            name,
            f"{rows:,}",
            f"{shards:,}",
            f"{2 * shards:,}",
            f"{terabytes:.1f}",
            f"{terabytes * 1e3 * ASSUMED.store_dollars_a_gb_month:,.0f}",
            f"{core_hours:,.0f}",
            f"{hours:.1f}",
            f"{hours * ASSUMED.machines * ASSUMED.machine_dollars_an_hour:,.0f}",
            f"{load_seconds * ASSUMED.rows_a_second_a_gpu:.1f}",
            f"{epoch:.1f}",
            f"{epoch * ASSUMED.gpus * ASSUMED.gpu_dollars_an_hour:,.0f}",
            f"{opened:.1f}",
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"*Arithmetic on the measured figures, with photos of {large['photos']}, and on {ASSUMED.in_words()}*"


if __name__ == "__main__":
    main()
