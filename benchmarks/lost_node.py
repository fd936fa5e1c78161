"""What a lost node costs a preparation by Ray: shards begun and written again, and the time.

    PYTHONPATH=. python benchmarks/lost_node.py --output experiments/scale/ray/results.json

Starts three nodes of one core on this machine and prepares a small shop with three and with two of them, each without
a loss and with a node killed in the middle. Writing a shard takes half a second at least, by sleeping, in place of the
images of a usual one. Seconds are from the beginning of the first shard to the end of the last.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from record import add_output, read_record, table, write_record, write_tables

from tests.data.preparation.ray_nodes import SECONDS, Nodes, connect, prepare
from tests.data.preparation.ray_shop import shard_bytes, write_shop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output(parser, tables=True)
    parser.add_argument("--queries", type=int, default=120)
    arguments = parser.parse_args()
    if arguments.tables:
        write(read_record(arguments.tables), arguments.tables.parent)
        return
    with tempfile.TemporaryDirectory(prefix="lost-node-") as root:
        record = measure(Path(root), arguments.queries)
    write_record(arguments.output, record)
    if arguments.output:
        write(record, arguments.output.parent)


def measure(root: Path, num_queries: int) -> dict[str, Any]:
    import ray

    shop = write_shop(root, num_queries=num_queries)
    nodes, runs = Nodes(2, root / "events.jsonl"), []
    expected: dict[str, bytes] = {}
    try:
        connect(nodes.cluster.address)
        prepare(shop, root / "first", nodes.log)  # starts the workers of all nodes
        expected = shard_bytes(root / "first")
        for num_nodes, is_killed in ((3, False), (3, True), (2, False), (2, True)):
            assert len(nodes.workers) == num_nodes - 1
            nodes.log.unlink(missing_ok=True)
            folder = root / f"{num_nodes}-{is_killed}"
            if is_killed:
                threading.Thread(target=kill_one, args=(nodes, len(expected) // 3), daemon=True).start()
            prepare(shop, folder, nodes.log)
            equal = shard_bytes(folder) == expected
            runs.append({"nodes": num_nodes, "killed": is_killed, "equal": equal, **count(nodes)})
            print(runs[-1], flush=True)
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()
    return {"seconds_a_shard": SECONDS, "runs": runs}


def kill_one(nodes: Nodes, num_shards: int) -> None:
    """Kill a worker once so many shards are written."""
    nodes.wait_for(num_shards)
    nodes.kill(next(iter(nodes.workers)))


def count(nodes: Nodes) -> dict[str, Any]:
    began, wrote = nodes.events("began"), nodes.events("wrote")
    written = Counter(event["shard"] for event in wrote)
    return {
        "shards": len(written),
        "begun_again": len(began) - len(written),
        "written_again": written.total() - len(written),
        "parts_joined": len(nodes.events("joined")),
        "seconds": max(event["time"] for event in wrote) - min(event["time"] for event in began),
    }


def write(record: dict[str, Any], folder: Path) -> None:
    headings = ("nodes", "one killed", "shards", "begun again", "written again", "parts joined", "s", "equal shards")
    rows = [
        (
            *(run["nodes"], "yes" if run["killed"] else "no", run["shards"], run["begun_again"], run["written_again"]),
            *(run["parts_joined"], f"{run['seconds']:.0f}", "yes" if run["equal"] else "no"),
        )
        for run in record["runs"]
    ]
    write_tables(folder, table=table(headings, rows))


if __name__ == "__main__":
    main()
