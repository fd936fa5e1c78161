"""A Ray cluster of several nodes on one machine, and a preparation on it whose tasks write a line of what they do.

Ray's worker processes import this module.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.util
from ray.cluster_utils import Cluster

from mim_lightning.data.preparation import ray_engine
from mim_lightning.data.preparation.prepared import ShardSettings
from mim_lightning.data.preparation.ray_cluster import RaySettings
from mim_lightning.data.preparation.ray_tasks import ShardJob, join_part, write_group
from mim_lightning.data.shards.set_writer import shard_path
from tests.data.preparation.ray_shop import source_of

SETTINGS = ShardSettings(samples_per_shard=4)
RAY = RaySettings(rows_per_part=40)
SECONDS = 0.5  # that writing a shard takes at least: a node can be lost in the middle


class Nodes:
    """A cluster of a head and workers with one core each; every node has an address and processes of its own."""

    def __init__(self, num_workers: int, log: Path) -> None:
        self.log, one = log, {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        checks = {"health_check_period_ms": 1_000, "health_check_failure_threshold": 5}
        head = {"include_dashboard": False, "_system_config": checks, "node_ip_address": "127.0.0.2"}
        addresses = [f"127.0.0.{3 + number}" for number in range(num_workers)]
        self.cluster = Cluster()
        start(self.cluster, **head, **one)
        # whoever looks for a cluster on this machine would find this one
        (Path(self.cluster.head_node.get_session_dir_path()).parent / "ray_current_cluster").unlink(missing_ok=True)
        self.workers = {address: start(self.cluster, node_ip_address=address, **one) for address in addresses}

    def start(self, root: Path, folder: Path) -> subprocess.Popen[bytes]:
        """Start a process on the head that prepares the shop in `root`."""
        words = [self.cluster.address, str(root), str(folder), str(self.log)]
        command = [sys.executable, "-m", "tests.data.preparation.ray_nodes", *words]
        return subprocess.Popen(command, start_new_session=True, cwd=Path(__file__).parents[3])

    def wait_for(self, num_shards: int, process: subprocess.Popen[bytes] | None = None) -> None:
        """Wait until so many shards were written since the log began."""
        while len(self.events("wrote")) < num_shards:
            assert process is None or process.poll() is None, "it ended too early"
            time.sleep(0.05)

    def kill(self, address: str) -> None:
        """Kill the processes of a worker node."""
        self.cluster.remove_node(self.workers.pop(address), allow_graceful=False)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return what tasks said: "joined" a part, "began", "wrote" or "kept" a shard."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [event for event in map(json.loads, lines) if event["kind"] == kind]


def start(cluster: Cluster, **options: Any) -> Any:
    """Start a node; Ray gives itself 30 s, which a busy machine may exceed."""
    for _ in range(2):
        with suppress(Exception):  # of no type of its own
            return cluster.add_node(**options)
    return cluster.add_node(**options)


def record_join(table: Any, log: Path, finished: frozenset[int]) -> Any:
    found = join_part(table, finished)
    _append(log, kind="joined", part=int(table["part"][0].as_py()))
    return found


def record_write(table: Any, log: Path, job: ShardJob) -> dict[str, list[Any]]:
    """Write a shard; say when it began, and at the end whether its file is another than before."""
    name = shard_path(*job.layout.locate(int(table["shard"][0].as_py())), ".tar")
    path = Path(job.store.address) / name
    _append(log, kind="began", shard=name)
    before = path.stat().st_ino if path.exists() else None
    time.sleep(SECONDS)
    found = write_group(table, job)
    after = path.stat().st_ino if path.exists() else None
    _append(log, kind="kept" if after == before else "wrote", shard=name)
    return found


def _append(log: Path, **event: Any) -> None:
    with log.open("a") as file:
        file.write(json.dumps({**event, "node": ray.util.get_node_ip_address(), "time": time.time()}) + "\n")


def connect(address: str) -> None:
    """Make this process a driver on the head."""
    ray.init(address=address, _node_ip_address=address.split(":")[0], log_to_driver=False, logging_level="error")


def prepare(root: Path, folder: Path, log: Path) -> None:
    """Prepare the shop in `root`, with tasks that are recorded."""
    ray_engine.join_part = partial(record_join, log=log)  # type: ignore[assignment]
    ray_engine.write_group = partial(record_write, log=log)  # type: ignore[assignment]
    ray_engine.prepare_with_ray(source_of(root), folder, SETTINGS, RAY)


if __name__ == "__main__":
    from tests.data.preparation import ray_nodes  # not __main__: the workers import it

    ray_nodes.connect(sys.argv[1])
    ray_nodes.prepare(*map(Path, sys.argv[2:]))
