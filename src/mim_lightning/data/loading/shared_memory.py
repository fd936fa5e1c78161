"""Memory that a loader's workers write the pictures of batches into, used again as soon as nobody holds a batch.

A `Loaded` goes into a `Sent` in a worker and comes out in the process that trains, its pictures where the worker put
them and all else inside the message; `stream` makes the slots. Fresh shared memory for every batch would cost a fifth
of decoding it: the kernel clears each page, and both processes map it anew (experiments/data_throughput).
"""

from __future__ import annotations

import mmap
import multiprocessing
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim_lightning.data.images.buffer import picture_bytes
from mim_lightning.data.loading.corrupt_samples import Loaded
from mim_lightning.types import Batch, TowerSpec, fields_of

_numbers = count()
_all_slots: weakref.WeakValueDictionary[int, Slots] = weakref.WeakValueDictionary()


class Slots:
    """So many pieces of memory shared with processes forked later; more than are needed cost nothing.

    Args:
        num_slots: batches that are under way or held at the same time; further ones travel as other tensors do.
        num_bytes: of the pictures of the largest batch.
    """

    def __init__(self, num_slots: int, num_bytes: int) -> None:
        self.number = next(_numbers)
        self._memory = [mmap.mmap(-1, num_bytes) for _ in range(num_slots)]
        self._arrays = [np.frombuffer(memory, dtype=np.uint8) for memory in self._memory]
        self._free = list(range(num_slots))  # the one that was used last comes first: its pages are there
        self._held: dict[int, weakref.ref[np.ndarray]] = {}
        _all_slots[self.number] = self

    def take(self) -> int | None:
        """Return a slot that nobody uses, if there is one."""
        return self._free.pop() if self._free else None

    def buffer(self, slot: int) -> Tensor:
        """Return the memory of a slot, (num_bytes,) uint8, in a worker: to write into."""
        return torch.from_numpy(self._arrays[slot])

    def open(self, slot: int) -> Tensor:
        """Return the memory of a slot as a batch holds it; with the last tensor that shares it the slot is free."""
        array = self._arrays[slot][:]  # an object of its own, which the tensor's storage keeps alive
        self._held[slot] = weakref.ref(array, lambda _: self._free.append(slot))
        return torch.from_numpy(array)

    def give_back(self) -> None:
        """Return the pages of free slots to the system, until they are used again."""
        if hasattr(mmap, "MADV_REMOVE"):
            for slot in list(self._free):
                self._memory[slot].madvise(mmap.MADV_REMOVE)


def make_slots(specs: Mapping[str, TowerSpec], num_rows: int, num_workers: int, num_ahead: int) -> Slots | None:
    """Return slots for the batches of a loader; None where its workers could not share them, or there are none.

    Args:
        specs: of all towers whose inputs a batch holds, by tower.
        num_rows: of the largest batch.
        num_ahead: batches that each worker is asked for before they are needed.
    """
    parts = [part for tower, spec in specs.items() for part in fields_of(tower, spec).values()]
    num_bytes = picture_bytes(parts, num_rows)
    # asked in this way, it is not settled for the rest of the program
    start_method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if not (num_workers and num_bytes) or start_method != "fork":
        return None
    return Slots(num_workers * num_ahead + 3, num_bytes)  # one has come, one is trained on, one may be kept


@dataclass(frozen=True)
class _Placed:
    """A tensor that lies in a slot."""

    start: int
    shape: tuple[int, ...]


class Sent:
    """What a worker hands over: pickled in the worker, it is unpickled as the `Loaded` that it was made from."""

    def __init__(self, loaded: Loaded, slots: Slots | None, slot: int | None) -> None:
        self.loaded, self.slots, self.slot = loaded, slots, slot

    def __reduce__(self) -> tuple[Any, ...]:
        if self.slots is None or self.slot is None:
            return _receive, (self.loaded.batch.map(_in_message), self.loaded.skips)
        buffer = self.slots.buffer(self.slot)
        first = buffer.data_ptr()

        def place(tensor: Tensor) -> Any:
            start = tensor.data_ptr() - first
            if 0 <= start < len(buffer) and tensor.dtype == torch.uint8:
                return _Placed(start, tuple(tensor.shape))
            return _in_message(tensor)

        return _receive, (self.loaded.batch.map(place), self.loaded.skips, self.slots.number, self.slot)


def _in_message(tensor: Tensor) -> Any:
    """Return what travels in the pipe: a tensor would have a file of its own, which small ones are not worth."""
    return tensor if tensor.dtype == torch.uint8 else tensor.numpy()


def _receive(batch: Batch, skips: tuple[Any, ...], number: int | None = None, slot: int | None = None) -> Loaded:
    memory = None if number is None or slot is None else _all_slots[number].open(slot)

    def restore(value: Any) -> Tensor:
        if isinstance(value, _Placed):
            assert memory is not None
            return memory[value.start : value.start + int(np.prod(value.shape))].view(value.shape)
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    return Loaded(batch.map(restore), skips)
