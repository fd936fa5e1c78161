"""A segment in files: written part by part, read memory-mapped, and every broken file told by its name.

A Segment comes in from `faiss_index` and its files go out, and the other way round. FAISS's own format, plain arrays
and Arrow: nothing here is pickled.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.search.index.card import AGAIN, IndexCard, StoredFile
from mim_lightning.search.index.faiss_kinds import set_effort
from mim_lightning.search.index.files import check_file, seal
from mim_lightning.search.index.kind import COARSE
from mim_lightning.search.index.products import read_products
from mim_lightning.search.index.segment import Segment
from mim_lightning.search.index.settings import IndexSettings

_ENDINGS = {"index": "faiss", "products": "arrow"}
_COPIED_ROWS = 2**16  # at once
_HEADER = struct.Struct("<4siq")  # how every file of FAISS begins: its class, dimension and rows
_KINDS = {"flat": b"IxFI", "hnsw": b"IHNf", "ivf_pq": b"IwPQ", "sq8": b"IwSq"}


def write_segment(folder: Path, prefix: str, segment: Segment) -> dict[str, StoredFile]:
    """Write the parts of a segment that the folder does not have yet; return all, by part."""
    files = dict(segment.files)
    for part, write in _writers(segment).items():
        if part not in files:
            path = new_path(folder, prefix, part)
            with atomic_write(path) as partial:
                write(partial)
            files[part] = seal(path)
    return files


def new_path(folder: Path, prefix: str, part: str) -> Path:
    """Return a path for a part of a segment, never used before."""
    return folder / f"{prefix}_{part}-{uuid.uuid4().hex[:12]}.{_ENDINGS.get(part, 'npy')}"


def _writers(segment: Segment) -> dict[str, Callable[[Path], Any]]:
    vectors_ND, is_dead_N = segment.vectors, segment.is_dead
    writers: dict[str, Callable[[Path], Any]] = {
        "index": lambda path: faiss.write_index(segment.index, str(path)),
        "rows": lambda path: _save_array(path, segment.product_idx),
        "products": segment.products.write,
    }
    if segment.kind in COARSE:  # the others' indexes hold the vectors themselves
        writers["vectors"] = lambda path: copy_vectors(path, [(vectors_ND, np.arange(len(vectors_ND)))])
    if is_dead_N is not None:
        writers["dead"] = lambda path: _save_array(path, is_dead_N)
    return writers


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # given a path, NumPy adds an ending to it
        np.save(file, array)


def copy_vectors(path: Path, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Write rows of several arrays, pairs of vectors (N, D) and rows (M,), and return them memory-mapped."""
    whole = np.lib.format.open_memmap(
        path, "w+", np.float32, (sum(len(rows) for _, rows in parts), parts[0][0].shape[1])
    )
    if hasattr(os, "posix_fallocate"):  # on a full disk, writing to mapped memory would end the process
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    start = 0
    for vectors_ND, rows_M in parts:
        for first in range(0, len(rows_M), _COPIED_ROWS):
            chunk = vectors_ND[rows_M[first : first + _COPIED_ROWS]]
            whole[start : start + len(chunk)] = chunk
            start += len(chunk)
    whole.flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def read_segment(
    folder: Path, prefix: str, kind: str, card: IndexCard, settings: IndexSettings, verify: bool
) -> Segment:
    """Open a segment that `write_segment` wrote, memory-mapped.

    Raises:
        ValueError: a file is missing, cut short or changed; names it.
        FileNotFoundError: likewise, where the card itself may be newer by now.
    """
    files = {
        role.removeprefix(f"{prefix}_"): stored for role, stored in card.files.items() if role.startswith(f"{prefix}_")
    }
    for stored in files.values():
        check_file(folder / stored.name, stored, verify)
    paths = {part: folder / stored.name for part, stored in files.items()}
    if missing := {"index", "rows", "products", *(["vectors"] if kind in COARSE else [])} - paths.keys():
        raise ValueError(f"{folder}: the card names no {prefix}_{min(missing)}; build the index anew")
    rows, products = _read_array(paths["rows"]), read_products(paths["products"])
    _check_header(paths["index"], kind, card.dimension, len(rows))
    index = _read_index(paths["index"])
    set_effort(kind, index, settings)
    vectors = _read_array(paths["vectors"]) if "vectors" in paths else stored_vectors(index)
    dead = np.array(_read_array(paths["dead"])) if "dead" in paths else None
    if (
        vectors.shape != (index.ntotal, card.dimension)
        or (vectors.dtype, rows.dtype, rows.shape) != (np.float32, np.int32, (index.ntotal,))
        or (dead is not None and (dead.dtype, dead.shape) != (np.bool_, rows.shape))
        or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(products))
    ):
        raise ValueError(f"{folder}: the files of the index do not fit each other; build it anew")
    return Segment(kind, index, vectors, rows, products, settings, dead, files)


def _check_header(path: Path, kind: str, dimension: int, num_rows: int) -> None:
    """Refuse a file that is no index of this kind and size before FAISS, which trusts what it reads, sees it."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    found = _HEADER.unpack(header) if len(header) == _HEADER.size else None
    if found is None or found != (_KINDS.get(kind), dimension, num_rows):
        raise ValueError(
            f"{path}: not readable by FAISS (no {kind} index of {num_rows} rows of {dimension} numbers); "
            "build the index anew"
        )


def _read_index(path: Path) -> Any:
    with errors_as_damaged_file(path, AGAIN):
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def read_owned(path: Path) -> Any:
    """Read a FAISS index into memory, so that rows may be put in."""
    with errors_as_damaged_file(path, AGAIN):
        return faiss.read_index(str(path))


def _read_array(path: Path) -> np.ndarray:
    with errors_as_damaged_file(path, AGAIN):
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # a plain array is faster to index


def stored_vectors(index: Any) -> np.ndarray:
    """Return the vectors (N, D) that a flat index or a graph holds, in place: valid as long as the index is."""
    flat = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index
    return faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)


def with_files(card: IndexCard, segments: Mapping[str, Mapping[str, StoredFile]]) -> IndexCard:
    """Return the card with the files of all segments, as "<segment>_<part>"."""
    named = {f"{prefix}_{part}": stored for prefix, files in segments.items() for part, stored in files.items()}
    return replace(card, files=named)
