"""Agreement of ranks on what they do at which step, without a collective.

A signal reaches ranks at different moments, and only one of them decides by the clock; but all have to save at the same
step. They agree through the key-value store of their process group: as long as nothing is requested a step costs one
look-up in it (about 0.05 ms) and no communication between devices.
"""

from __future__ import annotations

import itertools
import time
from collections import deque

import torch
from torch import distributed

_num_agreements = itertools.count()  # of this process: all ranks make them in the same order


class RankAgreement:
    """Requests of any rank, carried out by all at the same step; a single process agrees with itself at once.

    A request names a step that no rank can have passed yet: on CPUs a rank finishes a step only after all others have
    begun it. Kernels of a GPU are only queued, so there each rank waits for its step before the last, which leaves the
    queue filled.

    Args:
        world_size: number of ranks; all make the agreement together.
        device: of this rank.
    """

    def __init__(self, world_size: int, device: torch.device) -> None:
        self.world_size, self.device = world_size, device
        number = next(_num_agreements)
        self._store: distributed.Store | None = None
        if world_size > 1:
            default = distributed.distributed_c10d._get_default_store()
            self._store = distributed.PrefixStore(f"mim_lightning/agreement{number}", default)
        self._lead = 2 if device.type == "cuda" else 1  # steps
        self._num_requests, self._num_passes = 0, 0
        self._recent: deque[torch.cuda.Event] = deque(maxlen=2)

    def at_step(self, step: int, request: str) -> str:
        """Return what all ranks do after this step: a request, or "" for nothing.

        Args:
            step: number of steps so far; every rank calls it once after each.
            request: of this rank, or "".
        """
        if self._store is None:
            return request
        if self.device.type == "cuda":
            self._recent.append(torch.cuda.Event())
            self._recent[-1].record()
            self._recent[0].synchronize()
        key = f"request{self._num_requests}"
        agreed = self._propose(key, f"{step + self._lead} {request}") if request else self._find(key)
        due, _, what = agreed.partition(" ")
        if not agreed or step < int(due):
            return ""
        self._num_requests += 1
        return what

    def leave_pass(self, request: str, is_last: bool) -> str:
        """Return the request for which all ranks leave a pass without collectives, or "": each calls it every batch.

        Args:
            request: of this rank, or "".
            is_last: whether this is the rank's last batch; it waits for all ranks, who go on together.
        """
        if self._store is None:
            return request
        key = f"pass{self._num_passes}"
        decision = self._propose(key, request) if request else self._find(key)
        if is_last:
            self._store.add(f"{key}/done", 1)
            while not decision:
                if self._store.add(f"{key}/done", 0) == self.world_size:
                    decision = self._propose(key, "finish")
                else:
                    time.sleep(0.001)
                    decision = self._find(key)
            self._num_passes += 1
        return "" if decision == "finish" else decision

    def _propose(self, key: str, value: str) -> str:
        """Return the value that the first rank proposed."""
        assert self._store is not None
        return self._store.compare_set(key, "", value).decode()

    def _find(self, key: str) -> str:
        assert self._store is not None
        return self._store.get(key).decode() if self._store.check([key]) else ""
