"""The Ray cluster of a preparation: which one, and the connection to it."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CONNECT_TIMEOUT = 10.0  # seconds


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
        raise ValueError(f"engine=ray: a task failed: {(named or lines or [type(error).__name__])[-1]}") from error
    finally:
        if is_ours:
            ray.shutdown()


def _validate_reachable(address: str | None) -> None:
    """Raise a ValueError if nothing listens at the address: Ray itself would try for a quarter of an hour."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # none, or auto: Ray looks on this machine, and fails at once
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT).close()
    except OSError as error:
        raise ValueError(f"ray.address={address}: no cluster answers there ({error})") from error
