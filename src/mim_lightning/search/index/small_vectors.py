"""Vectors in fewer bytes: cut to a dimension, as 8-bit integers with a scale for each row, or as signs of one bit.

N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.io.mapped_file import make_array

_BLOCK_ROWS = 2**16
_SCALE_BYTES = 4  # float32, after the integers of a row
_LARGEST = 127


def cut_vectors(vectors_ND: np.ndarray, dimension: int, folder: Path | None = None) -> np.ndarray:
    """Return the first numbers of each vector at unit length, float32; a zero vector stays zero.

    Args:
        folder: for a file of many vectors; None: they are in memory.
    """
    shape = len(vectors_ND), dimension
    return _by_blocks(lambda block: _normalize(block[:, :dimension]), vectors_ND, shape, folder)


def round_vectors(vectors_ND: np.ndarray, folder: Path | None = None) -> np.ndarray:
    """Return the float32 vectors that 8-bit integers and the scale of a row stand for; `folder` as in `cut_vectors`."""
    return _by_blocks(lambda block: _decode(encode_int8(block)), vectors_ND, vectors_ND.shape, folder)


def encode_int8(vectors_ND: np.ndarray) -> np.ndarray:
    """Return vectors as int8 (N, D + 4): integers from -127 to 127, and the scale that multiplies them."""
    scales_N1 = (np.abs(vectors_ND).max(axis=1, keepdims=True) / _LARGEST).astype(np.float32)
    codes_ND = np.rint(vectors_ND / np.where(scales_N1 > 0, scales_N1, 1)).astype(np.int8)
    return np.concatenate([codes_ND, scales_N1.view(np.int8)], axis=1)


def encode_signs(vectors_ND: Vectors) -> np.ndarray:
    """Return the signs of vectors as bits (N, D / 8) uint8, 1 for above 0; the last byte is filled up with zeros."""
    return np.packbits(np.asarray(vectors_ND) > 0, axis=1)


class Int8Vectors:
    """Vectors (N, D) stored as `encode_int8`, possibly memory-mapped: rows become float32 when they are read."""

    dtype = np.dtype(np.float32)

    def __init__(self, encoded: np.ndarray) -> None:
        self._encoded = encoded
        self.shape = len(encoded), encoded.shape[1] - _SCALE_BYTES

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return _decode(self._encoded[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


Vectors = np.ndarray | Int8Vectors


def _decode(encoded: np.ndarray) -> np.ndarray:
    codes, scales = encoded[..., :-_SCALE_BYTES], np.ascontiguousarray(encoded[..., -_SCALE_BYTES:]).view(np.float32)
    return np.multiply(codes, scales, dtype=np.float32)


def _normalize(vectors_ND: np.ndarray) -> np.ndarray:
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True).clip(min=1e-12)


def _by_blocks(
    function: Callable[[np.ndarray], np.ndarray], vectors_ND: np.ndarray, shape: tuple[int, ...], folder: Path | None
) -> np.ndarray:
    result = np.empty(shape, np.float32) if folder is None else make_array(np.float32, shape, folder)
    for start in range(0, len(vectors_ND), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        result[block] = function(np.asarray(vectors_ND[block], dtype=np.float32))
    return result
