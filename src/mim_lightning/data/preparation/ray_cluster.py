"""The Ray cluster of a preparation: which one, the connection to it, and the loss of nodes.

Ray itself executes the tasks again whose results were on a lost node. What is added here: a cluster without any core
ends the preparation with an error, where Ray would wait for ever.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CONNECT_TIMEOUT = 10.0  # seconds
POLL = 2.0  # seconds between two looks at the nodes
CORES_TIMEOUT = (
    600.0  # seconds to wait for a core: a cluster that grows by demand takes minutes to start its first node
)

LOSS = "nodes or processes were lost"
AGAIN = "the same command writes the shards that are missing"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RaySettings:
    """Which cluster, and how much of it.

    Args:
        address: of a running cluster, such as auto or ray://head:10001; None: start one on this machine.
        num_cpus: of the one that is started; None: all cores.
        object_store_bytes: its memory for data between tasks; None: Ray's default, 30 % of the machine's memory.
        rows_per_part: rows that one task of the join has in memory.
    """

    address: str | None = None
    num_cpus: int | None = None
    object_store_bytes: int | None = None
    rows_per_part: int = 200_000

    def __post_init__(self) -> None:
        if self.rows_per_part < 1:
            raise ValueError(f"ray.rows_per_part={self.rows_per_part}: must be at least 1")


@contextmanager
def ray_cluster(settings: RaySettings) -> Iterator[None]:
    """Connect to the cluster, or start one and stop it at the end.

    Raises:
        ValueError: Ray is not installed, or a task failed for a reason of its own.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise ValueError("engine=ray needs an extra: pip install 'mim-lightning[ray]'") from error

    is_ours = not ray.is_initialized()
    if is_ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own: dict[str, Any] = {
            "address": "local",
            "num_cpus": settings.num_cpus,
            "object_store_memory": settings.object_store_bytes,
        }
        options = {"address": settings.address} if settings.address else {**own, "include_dashboard": False}
        _validate_reachable(settings.address)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # Ray raises many types, and plain Exception
            where = f"ray.address={settings.address}" if settings.address else "Ray on this machine"
            raise ValueError(f"{where}: did not start: {str(error).splitlines()[0]}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised here as well
    try:
        yield
    except RayError as error:
        # Ray hands a task's error over as text, among the call stacks of several processes
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Died|Killed)\w*:", line)]
        reason = (named or lines or [type(error).__name__])[-1]
        if is_loss(error):
            raise ValueError(f"engine=ray: {LOSS}: {reason}; {AGAIN}") from error
        raise ValueError(f"engine=ray: a task failed: {reason}") from error
    finally:
        if is_ours:
            ray.shutdown()


def is_loss(error: BaseException) -> bool:
    """Return whether a node or process was lost, and no task failed for a reason of its own."""
    from ray import exceptions

    kinds = (
        *(exceptions.NodeDiedError, exceptions.WorkerCrashedError, exceptions.OutOfMemoryError),
        *(exceptions.ActorDiedError, exceptions.ActorUnavailableError, exceptions.ObjectLostError),
    )
    return isinstance(error, kinds)


def read_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Execute a data set and yield its rows; says so when nodes are lost.

    Raises:
        ValueError: the cluster has had no core for CORES_TIMEOUT.
    """
    found: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    is_stopped = threading.Event()

    def read() -> None:
        try:
            for row in dataset.iter_rows():
                found.put(("row", row))
                if is_stopped.is_set():
                    return
            found.put(("end", None))
        except BaseException as error:  # raised again by the thread that reads the queue
            found.put(("error", error))

    threading.Thread(target=read, daemon=True).start()
    watch = _NodeWatch()
    try:
        while True:
            try:
                kind, content = found.get(timeout=POLL)
            except queue.Empty:
                watch.look()
                continue
            if kind == "end":
                return
            if kind == "error":
                raise content
            yield content
    finally:
        is_stopped.set()


class _NodeWatch:
    """Looks at the nodes of the cluster from time to time."""

    def __init__(self) -> None:
        self.num_nodes = 0
        self.empty_since: float | None = None

    def look(self) -> None:
        """Say how many nodes are left when some were lost.

        Raises:
            ValueError: the cluster has had no core for CORES_TIMEOUT.
        """
        import ray

        num_nodes = sum(node["Alive"] for node in ray.nodes())
        if num_nodes < self.num_nodes:
            log.warning(
                "engine=ray: %d of %d nodes were lost; the others write their unfinished shards",
                self.num_nodes - num_nodes,
                self.num_nodes,
            )
        self.num_nodes = num_nodes
        if ray.cluster_resources().get("CPU", 0) > 0:
            self.empty_since = None
            return
        if self.empty_since is None:
            self.empty_since = time.monotonic()
            log.warning("engine=ray: no node of the cluster has a core; waiting %.0f s for one", CORES_TIMEOUT)
        elif time.monotonic() - self.empty_since > CORES_TIMEOUT:
            raise ValueError(
                f"engine=ray: no node of the cluster has had a core for {CORES_TIMEOUT:.0f} s; add nodes, {AGAIN}"
            )


def _validate_reachable(address: str | None) -> None:
    """Raise a ValueError if nothing listens at the address: Ray itself would try for a quarter of an hour."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # none, or auto: Ray looks on this machine, and fails at once
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT).close()
    except OSError as error:
        raise ValueError(f"ray.address={address}: no cluster answers there ({error})") from error
