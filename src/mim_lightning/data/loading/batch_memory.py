"""Shared memory that the workers of a loader write images into, reused as soon as a batch is no longer referenced.

A `LoadedBatch` travels as a `BatchMessage`: its images stay where the worker wrote them, everything else is inside the
message. Allocating shared memory for every batch would cost a fifth of decoding it: the kernel clears each page, and
both processes map it again (experiments/data_throughput).
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

from mim_lightning.data.images.buffer import image_bytes
from mim_lightning.data.loading.corrupt_samples import LoadedBatch
from mim_lightning.fields import PRODUCT
from mim_lightning.types import Batch, TowerSpec, fields_of, side_of

_ids = count()
_all_buffers: weakref.WeakValueDictionary[int, SharedBatchBuffers] = weakref.WeakValueDictionary()


class SharedBatchBuffers:
    """Buffers shared with processes that are forked later; buffers that are never used cost nothing.

    Args:
        num_buffers: batches that are in transit or referenced at the same time; others travel as tensors normally do.
        num_bytes: of the images of the largest batch.
    """

    def __init__(self, num_buffers: int, num_bytes: int) -> None:
        self.id = next(_ids)
        self._memory = [mmap.mmap(-1, num_bytes) for _ in range(num_buffers)]
        self._arrays = [np.frombuffer(memory, dtype=np.uint8) for memory in self._memory]
        self._free = list(range(num_buffers))  # the last used comes first: its pages are mapped
        self._references: dict[int, weakref.ref[np.ndarray]] = {}
        _all_buffers[self.id] = self

    def acquire(self) -> int | None:
        """Return the index of a free buffer, None if there is none."""
        return self._free.pop() if self._free else None

    def to_write(self, buffer_idx: int) -> Tensor:
        """Return a buffer, (num_bytes,) uint8, for a worker to write into."""
        return torch.from_numpy(self._arrays[buffer_idx])

    def attach(self, buffer_idx: int) -> Tensor:
        """Return a buffer for a batch; it is free again when the last tensor that shares its memory is gone."""
        array = self._arrays[buffer_idx][:]  # a new object, which the storage of the tensor keeps alive
        self._references[buffer_idx] = weakref.ref(array, lambda _: self._free.append(buffer_idx))
        return torch.from_numpy(array)

    def release(self) -> None:
        """Return the pages of free buffers to the system, until they are used again."""
        if hasattr(mmap, "MADV_REMOVE"):
            for buffer_idx in list(self._free):
                self._memory[buffer_idx].madvise(mmap.MADV_REMOVE)


def make_buffers(
    specs: Mapping[str, TowerSpec], num_rows: int, num_workers: int, prefetch_factor: int, num_references: int = 0
) -> SharedBatchBuffers | None:
    """Return buffers for the batches of a loader; None without workers, or if its workers could not share them.

    Args:
        specs: of all towers in a batch.
        num_rows: of the largest batch.
        prefetch_factor: batches that each worker prefetches.
        num_references: rows beside them that have the inputs of products alone.
    """
    num_bytes = 0
    for tower, spec in specs.items():
        for name, part in fields_of(tower, spec).items():
            num_bytes += image_bytes([part], num_rows + (num_references if side_of(name) == PRODUCT else 0))
    # with allow_none, the query does not fix the start method for the rest of the program
    start_method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if not (num_workers and num_bytes) or start_method != "fork":
        return None
    # besides those of the workers: one received, one trained on, one that may be kept
    return SharedBatchBuffers(num_workers * prefetch_factor + 3, num_bytes)


@dataclass(frozen=True)
class _BufferSlice:
    """A tensor in a shared buffer."""

    start: int
    shape: tuple[int, ...]


class BatchMessage:
    """A batch on its way from a worker: pickled as this, unpickled as the `LoadedBatch` that it was made of."""

    def __init__(self, loaded: LoadedBatch, buffers: SharedBatchBuffers | None, buffer_idx: int | None) -> None:
        self.loaded, self.buffers, self.buffer_idx = loaded, buffers, buffer_idx

    def __reduce__(self) -> tuple[Any, ...]:
        if self.buffers is None or self.buffer_idx is None:
            return _receive, (self.loaded.batch.map(_to_picklable), self.loaded.skipped)
        buffer = self.buffers.to_write(self.buffer_idx)
        first = buffer.data_ptr()

        def reduce(tensor: Tensor) -> Any:
            start = tensor.data_ptr() - first
            if 0 <= start < len(buffer) and tensor.dtype == torch.uint8:
                return _BufferSlice(start, tuple(tensor.shape))
            return _to_picklable(tensor)

        return _receive, (self.loaded.batch.map(reduce), self.loaded.skipped, self.buffers.id, self.buffer_idx)


def _to_picklable(tensor: Tensor) -> Any:
    """Return an array, to be sent through the pipe: torch would create a file per tensor, too much for small ones."""
    return tensor if tensor.dtype == torch.uint8 else tensor.numpy()


def _receive(
    batch: Batch, skipped: tuple[Any, ...], buffers_id: int | None = None, buffer_idx: int | None = None
) -> LoadedBatch:
    memory = None if buffers_id is None or buffer_idx is None else _all_buffers[buffers_id].attach(buffer_idx)

    def restore(value: Any) -> Tensor:
        if isinstance(value, _BufferSlice):
            assert memory is not None
            return memory[value.start : value.start + int(np.prod(value.shape))].view(value.shape)
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    return LoadedBatch(batch.map(restore), skipped)
