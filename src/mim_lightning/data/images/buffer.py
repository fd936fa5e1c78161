"""Memory for the pixels of a batch's images: a given buffer, or new tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mim_lightning.types import ImageSpec, InputSpec

ALIGNMENT = 64  # bytes: fast to copy for processors and devices


class ImageBuffer:
    """Allocates tensors in a buffer, (num_bytes,) uint8, one after the other, and new tensors when it is full."""

    def __init__(self, buffer: Tensor | None = None) -> None:
        self._buffer, self._used = buffer, 0

    def empty(self, *shape: int) -> Tensor:
        """Return an uninitialized uint8 tensor."""
        start, num_bytes = self._used, math.prod(shape)
        if self._buffer is None or start + num_bytes > len(self._buffer):
            return torch.empty(shape, dtype=torch.uint8)
        self._used += _aligned(num_bytes)
        return self._buffer[start : start + num_bytes].view(shape)


def image_bytes(specs: Iterable[InputSpec], num_rows: int) -> int:
    """Return the bytes of a batch in which every row has its own image in every image tower."""
    return sum(_aligned(num_rows * 3 * math.prod(spec.size)) for spec in specs if isinstance(spec, ImageSpec))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
