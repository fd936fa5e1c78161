"""The worker processes of loaders: how they start, the shared memory they need, and what is said of a killed one.

Whatever reads batches in workers uses `WorkerLoader`, `start_worker` and, around all that may wait for a batch,
`killed_workers_named`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from mim_lightning.io.shared_memory import SHARED_MEMORY, validate_shared_memory

_workers: list[Any] = []  # of all loaders of this process; Lightning lets go of a loader's after an error


class WorkerLoader(DataLoader[Any]):
    """A DataLoader whose workers `killed_workers_named` knows."""

    def __iter__(self) -> Any:
        if self.num_workers:
            validate_shared_memory("data.num_workers=0")
        return super().__iter__()

    def _get_iterator(self) -> Any:
        started: Any = super()._get_iterator()
        if self.num_workers:
            _workers[:] = [*(worker for worker in _workers if worker.exitcode is None), *started._workers]
        return started


@contextmanager
def killed_workers_named() -> Iterator[None]:
    """Turn torch's error for a worker that was killed into one that says what to do.

    Torch raises it wherever the process is when the system tells it so: in a step too.

    Raises:
        ChildProcessError: a worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        codes = [worker.exitcode for worker in _workers]
        # torch ends those that do not stop by themselves with SIGTERM
        killed = [signal.Signals(-code) for code in codes if code is not None and code < 0 and -code != signal.SIGTERM]
        if not killed:
            raise
        if signal.SIGBUS in killed:
            reason = f"{SHARED_MEMORY} is full; free some space, or set data.num_workers=0"
        else:
            reason = "perhaps out of memory; run the same command again, with a lower data.num_workers it needs less"
        raise ChildProcessError(f"a data worker was killed by {killed[0].name}: {reason}") from error


def start_worker(worker_id: int) -> None:
    """Use one thread, and leave signals to the main process: it may need further batches to stop in an orderly way.

    A terminal sends Ctrl-C, and a scheduler SIGTERM, to workers too. Torch ends a worker at a SIGTERM of the main
    process silently, and at that of any other makes the main process fail. A worker whose main process is gone ends by
    itself.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey_main_process, args=[os.getppid()], daemon=True).start()


def _obey_main_process(process_id: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != process_id:
        pass
    os._exit(0)
