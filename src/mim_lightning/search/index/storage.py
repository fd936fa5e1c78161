"""The files of a FAISS index in a folder: written part by part, memory-mapped, replaced as a whole.

New files are written beside the existing ones; replacing `card.json` makes them the index, and only then are the old
ones removed, so a process that dies in between changes nothing. The formats are FAISS's own, plain arrays and Arrow:
nothing is pickled.
"""

from __future__ import annotations

import os
import re
import struct
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from mim_lightning.artifact_paths import INDEX_CARD, validate_index
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file, validate_regular_file
from mim_lightning.io.file_name import validate_inside
from mim_lightning.io.mapped_file import allocate
from mim_lightning.search.index.card import REBUILD, IndexCard, StoredFile, parse_card
from mim_lightning.search.index.faiss_types import set_effort
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.index.index_type import BINARY, COARSE
from mim_lightning.search.index.products import read_products
from mim_lightning.search.index.segment import DELETED, Segment
from mim_lightning.search.index.small_vectors import Int8Vectors, Vectors, encode_int8

BASE, DELTA = "main", "fresh"  # names of the segments on disk
LOCK_FILE = ".lock"
_INDEX_FILES = re.compile(
    r"(main|fresh)_(index|vectors|rows|products|dead)-[0-9a-f]{12}\.(faiss|npy|arrow)"
    r"|\.(card|main_|fresh_)[\w.-]*\.[0-9a-f-]+\.partial"
)
_ALWAYS_VERIFIED = 2**25  # bytes; checksums of larger files would make opening slow
_BLOCK = 2**22
_SUFFIXES = {"index": "faiss", "products": "arrow"}
_COPIED_ROWS = 2**16  # at once
# how every file of FAISS begins: class, dimension, rows; of bits: class, bits, bytes of a code, rows
_HEADER, _BINARY_HEADER = struct.Struct("<4siq"), struct.Struct("<4siiq")
_CLASSES = {
    "flat": b"IxFI",
    "hnsw": b"IHNf",
    "ivf_pq": b"IwPQ",
    "sq8": b"IwSq",
    "int8_flat": b"IxSQ",
    "int8_hnsw": b"IHNs",
    "binary_flat": b"IBxF",
    "binary_ivf": b"IBwF",
}


def read_card(folder: Path) -> IndexCard:
    """Return the card of the index in a folder.

    Raises:
        ValueError: there is no index, or its card is damaged.
    """
    validate_index(folder)
    path = folder / INDEX_CARD
    with errors_as_damaged_file(path, REBUILD):
        card = parse_card(path.read_text("utf-8"), str(path))
        if card.backend != "faiss":
            raise ValueError(f"it is of an index in {card.backend}, not in a folder")
        return card


def commit(folder: Path, card: IndexCard) -> None:
    """Make the files that the card names the index of the folder, and remove the previous ones."""
    with atomic_write(folder / INDEX_CARD) as partial:
        partial.write_text(card.to_json(), "utf-8")
    remove_unnamed(folder, card)


def remove_unnamed(folder: Path, card: IndexCard | None) -> None:
    """Remove files of an index that its card does not name; other files in the folder are not touched."""
    named = {stored.name for stored in card.files.values()} if card else set()
    for path in folder.iterdir():
        if path.name not in named and _INDEX_FILES.fullmatch(path.name):
            path.unlink(missing_ok=True)


def finalize_file(path: Path) -> StoredFile:
    """Flush a file to disk and return its size and checksum."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return StoredFile(path.name, path.stat().st_size, _crc32(path))


def _crc32(path: Path) -> int:
    crc32 = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def _validate_file(path: Path, stored: StoredFile, verify: bool) -> None:
    num_bytes = path.stat().st_size  # FileNotFoundError: the card may have been replaced
    validate_inside(path.parent, path)
    validate_regular_file(path, REBUILD)
    if num_bytes != stored.num_bytes:
        raise ValueError(f"{path}: has {num_bytes} bytes, should have {stored.num_bytes}; {REBUILD}")
    if (verify or num_bytes <= _ALWAYS_VERIFIED) and _crc32(path) != stored.crc32:
        raise ValueError(f"{path}: was changed or damaged after it was written; {REBUILD}")


def write_segment(folder: Path, prefix: str, segment: Segment) -> dict[str, StoredFile]:
    """Write the parts of a segment that are not stored yet; return all files as "<prefix>_<part>"."""
    vectors_ND, is_deleted_N = segment.vectors, segment.is_deleted
    writers: dict[str, Callable[[Path], Any]] = {
        "index": lambda path: _save_index(path, segment.index),
        "rows": lambda path: _save_array(path, segment.product_idx),
        "products": segment.products.write,
    }
    if segment.kind in COARSE:  # other index types contain the vectors themselves
        parts = [(vectors_ND, np.arange(len(vectors_ND)))]
        writers["vectors"] = lambda path: copy_vectors(path, parts, segment.settings.rescore)
    if is_deleted_N is not None:
        writers[DELETED] = lambda path: _save_array(path, is_deleted_N)
    files = dict(segment.files)
    for part, write in writers.items():
        if part not in files:
            path = new_path(folder, prefix, part)
            with atomic_write(path) as partial:
                write(partial)
            files[part] = finalize_file(path)
    return {f"{prefix}_{part}": stored for part, stored in files.items()}


def new_path(folder: Path, prefix: str, part: str) -> Path:
    """Return a path for a part of a segment that was never used before."""
    return folder / f"{prefix}_{part}-{uuid.uuid4().hex[:12]}.{_SUFFIXES.get(part, 'npy')}"


def _save_index(path: Path, index: faiss.Index) -> None:
    # given a path, FAISS ignores that closing the file fails: on a full disk its end is missing
    with path.open("wb") as file:
        write = faiss.write_index_binary if isinstance(index, faiss.IndexBinary) else faiss.write_index
        write(index, faiss.PyCallbackIOWriter(file.write))


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # given a path, NumPy appends a suffix to it
        np.save(file, array)


def copy_vectors(path: Path, parts: Sequence[tuple[Vectors, np.ndarray]], precision: str = "float32") -> Vectors:
    """Write rows of several arrays, as pairs of vectors (N, D) and rows (M,), and return them memory-mapped."""
    size, is_int8 = sum(len(rows) for _, rows in parts), precision == "int8"
    width = encode_int8(parts[0][0][:1]).shape[1] if is_int8 else parts[0][0].shape[1]
    whole = np.lib.format.open_memmap(path, "w+", np.int8 if is_int8 else np.float32, (size, width))
    with path.open("r+b") as file:
        allocate(file, path.stat().st_size, path)
    start = 0
    for vectors_ND, rows_M in parts:
        for first in range(0, len(rows_M), _COPIED_ROWS):
            chunk = vectors_ND[rows_M[first : first + _COPIED_ROWS]]
            whole[start : start + len(chunk)] = encode_int8(chunk) if is_int8 else chunk
            start += len(chunk)
    whole.flush()
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    return Int8Vectors(stored) if is_int8 else stored


def read_segment(folder: Path, prefix: str, kind: str, card: IndexCard, verify: bool) -> Segment:
    """Memory-map a segment that `write_segment` wrote.

    Raises:
        ValueError: a file is truncated, damaged or changed; names it.
        FileNotFoundError: a file is missing; the card may have been replaced meanwhile.
    """
    files = {
        role.removeprefix(f"{prefix}_"): stored for role, stored in card.files.items() if role.startswith(f"{prefix}_")
    }
    paths = {part: folder / stored.name for part, stored in files.items()}
    for part, stored in files.items():
        _validate_file(paths[part], stored, verify)
    if missing := {"index", "rows", "products", *(["vectors"] if kind in COARSE else [])} - paths.keys():
        raise ValueError(f"{folder}: the card names no {prefix}_{min(missing)}; {REBUILD}")
    settings = IndexSettings(**card.settings)
    rows, products = _load_array(paths["rows"]), read_products(paths["products"])
    _validate_header(paths["index"], kind, card.dimension, len(rows))
    with errors_as_damaged_file(paths["index"], REBUILD):
        read = faiss.read_index_binary if kind in BINARY else faiss.read_index
        index = read(str(paths["index"]), faiss.IO_FLAG_MMAP_IFC)
    set_effort(kind, index, settings)
    kept = _load_array(paths["vectors"]) if "vectors" in paths else stored_vectors(index)
    is_int8 = kind in COARSE and settings.rescore == "int8" and kept.dtype == np.int8 and kept.ndim == 2
    vectors: Vectors = Int8Vectors(kept) if is_int8 else kept
    deleted = np.array(_load_array(paths[DELETED])) if DELETED in paths else None
    if (
        vectors.shape != (index.ntotal, card.dimension)
        or (vectors.dtype, rows.dtype, rows.shape) != (np.float32, np.int32, (index.ntotal,))
        or (deleted is not None and (deleted.dtype, deleted.shape) != (np.bool_, rows.shape))
        or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(products))
    ):
        raise ValueError(f"{folder}: the files of the index do not match each other; {REBUILD}")
    return Segment(kind, index, vectors, rows, products, settings, deleted, files)


def _validate_header(path: Path, kind: str, dimension: int, num_rows: int) -> None:
    """Reject a file that is no index of this type and size before FAISS reads it: FAISS trusts the header."""
    num_bytes = -(-dimension // 8)
    is_binary, layout = kind in BINARY, _BINARY_HEADER if kind in BINARY else _HEADER
    with path.open("rb") as file:
        header = file.read(layout.size)
    found = layout.unpack(header) if len(header) == layout.size else None
    if found != (_CLASSES.get(kind), *((8 * num_bytes, num_bytes) if is_binary else (dimension,)), num_rows):
        raise ValueError(
            f"{path}: not readable by FAISS (no {kind} index of {num_rows} rows of {dimension} numbers); {REBUILD}"
        )


def read_into_memory(path: Path, kind: str) -> Any:
    """Read a FAISS index into memory, so that rows can be inserted."""
    with errors_as_damaged_file(path, REBUILD):
        return (faiss.read_index_binary if kind in BINARY else faiss.read_index)(str(path))


def _load_array(path: Path) -> np.ndarray:
    with errors_as_damaged_file(path, REBUILD):
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # a plain array is faster to index


def stored_vectors(index: Any) -> np.ndarray:
    """Return the vectors (N, D) of a flat index or a graph without a copy: valid as long as the index is."""
    flat = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index
    return faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
