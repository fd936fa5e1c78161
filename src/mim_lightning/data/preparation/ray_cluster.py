"""The cluster that writes: one that is running already, or one that is started on this machine and ended again.

RaySettings come in from the section `ray` of `conf/prepare.yaml`; `ray_engine` works inside `running`.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CONNECT_S = 10.0  # seconds to wait for a cluster's answer


@dataclass(frozen=True)
class RaySettings:
    """Which cluster, and how much of it.

    Args:
        address: of a running cluster, such as auto or ray://head:10001; None: one is started on this machine.
        num_cpus: of the one that is started; None: all cores.
        object_store_bytes: its memory for what passes between tasks; None: as Ray has it, 30 % of the machine's.
        rows_per_part: rows that one task of the join holds.
    """

    address: str | None = None
    num_cpus: int | None = None
    object_store_bytes: int | None = None
    rows_per_part: int = 200_000

    def __post_init__(self) -> None:
        if self.rows_per_part < 1:
            raise ValueError(f"ray.rows_per_part={self.rows_per_part}: must be at least 1")


@contextmanager
def running(settings: RaySettings) -> Iterator[None]:
    """Connect to the cluster, or start one and end it again.

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
        own: dict[str, Any] = {"num_cpus": settings.num_cpus, "object_store_memory": settings.object_store_bytes}
        own |= {"include_dashboard": False}
        options = {"address": settings.address} if settings.address else own
        _require_answer(settings.address)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # of any kind, also a plain one
            where = f"ray.address={settings.address}" if settings.address else "Ray on this machine"
            raise ValueError(f"{where}: did not start: {str(error).splitlines()[0]}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors come here, and are told once
    try:
        yield
    except RayError as error:
        raise ValueError(f"engine=ray: a task failed: {_reason(error)}") from error
    finally:
        if is_ours:
            ray.shutdown()


def _require_answer(address: str | None) -> None:
    """Ask for the cluster once: Ray itself would try for a quarter of an hour.

    Raises:
        ValueError: nobody answers.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # none, or auto: Ray looks on this machine, and tells at once
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        raise ValueError(f"ray.address={address}: no cluster answers there ({error})") from error


def _reason(error: BaseException) -> str:
    """Return the line that names a task's error: Ray hands it over as text, among call stacks of several processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Died|Killed)\w*:", line)]
    return (named or lines or [type(error).__name__])[-1]
