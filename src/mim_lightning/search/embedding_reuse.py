"""Vectors of a former version of a catalog, carried over to a later one: only rows that are new are embedded.

A row is known by its place in the shards, which are never rewritten, or by its content where it was written again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.search.catalog_difference import changed_numbers, content_hash, is_version_of
from mim_lightning.search.embedding_store import EmbeddingFacts, StoredEmbedding


def carry_over(folder: Path, facts: EmbeddingFacts, catalog: ShardSet) -> int:
    """Turn the embeddings of a former version of a catalog into those of this one; return how many rows were kept.

    A folder of the same version, of another model or of another catalog is left as it is. New files are written beside
    the former ones, under other names, until `embeddings.json` names them: a process that is killed leaves the former
    embeddings or the new ones whole, and perhaps files that nothing reads. Other files in the folder stay.

    Args:
        folder: of an EmbeddingStore.
        facts: what the embeddings are to be.
    """
    stored = StoredEmbedding.read(folder)
    if stored is None:
        return 0
    names = ("fingerprint", "gallery", "dimension", "crop")
    is_same_model = all(getattr(stored.facts, name) == getattr(facts, name) for name in names)
    if stored.facts == facts or not is_same_model or stored.facts.catalog != facts.catalog:
        return 0
    former = _find_version(stored.facts, catalog)
    if former is None:
        return 0
    new, num_kept = StoredEmbedding(facts, f"{facts.written:x}-"), 0
    _remove_files(folder, new)  # of a process that was killed
    numbers_N = _former_numbers(former, catalog)
    for idx in range(len(catalog.sizes)):
        numbers_n = numbers_N[slice(*catalog.span(idx))]
        needed = np.unique(former.shards_of(numbers_n))
        if (numbers_n >= 0).all() and all(stored.vectors_path(folder, one).exists() for one in needed.tolist()):
            _write(folder, stored, new, idx, numbers_n, former)
            num_kept += len(numbers_n)
    new.write(folder)
    _remove_files(folder, stored)
    return num_kept


def _remove_files(folder: Path, stored: StoredEmbedding) -> None:
    for idx in range(len(stored.facts.shard_sizes)):
        stored.vectors_path(folder, idx).unlink(missing_ok=True)
        stored.products_path(folder, idx).unlink(missing_ok=True)


def _find_version(stored: EmbeddingFacts, catalog: ShardSet) -> ShardSet | None:
    """Return the version of a catalog that was embedded, None if it is no former one."""
    for version in range(catalog.version - 1, 0, -1):
        try:
            former = ShardSet(catalog.folder, catalog.cache, version)
        except ValueError:  # the set did not change in that version of the data
            continue
        if (list(former.sizes), former.written) == (stored.shard_sizes, stored.written):
            return former if is_version_of(former, catalog) else None
    return None


def _former_numbers(former: ShardSet, catalog: ShardSet) -> np.ndarray:
    """Return the number (N,) that each sample has in the former version, -1 of those that are new."""
    old_rows, new_rows = np.flatnonzero(former.index.is_sample), np.flatnonzero(catalog.index.is_sample)
    positions = np.searchsorted(old_rows, new_rows)
    is_same = old_rows[np.minimum(positions, len(old_rows) - 1)] == new_rows
    numbers = np.where(is_same, positions, -1)
    gone, came = changed_numbers(former, catalog)
    if len(gone) and len(came):  # a row that was written again
        by_content = {content_hash(former, number): number for number in gone.tolist()}
        for number in came.tolist():
            numbers[number] = by_content.get(content_hash(catalog, number), -1)
    return numbers


def _write(
    folder: Path, stored: StoredEmbedding, new: StoredEmbedding, idx: int, numbers_n: np.ndarray, former: ShardSet
) -> None:
    """Write the files of one shard, or link those of the former one if it is the same."""
    shard_idxs = np.unique(former.shards_of(numbers_n)).tolist()
    spans = [np.arange(*former.span(one)) for one in shard_idxs]
    vectors = [stored.vectors_path(folder, one) for one in shard_idxs]
    products = [stored.products_path(folder, one) for one in shard_idxs]
    has_products = all(path.exists() for path in products)
    if np.array_equal(numbers_n, spans[0]):
        if has_products:
            _link(products[0], new.products_path(folder, idx))
        _link(vectors[0], new.vectors_path(folder, idx))
        return
    available = np.concatenate(spans)  # ascending, as shards and their samples are
    places = np.searchsorted(available, numbers_n)
    if has_products:
        table = pa.concat_tables([pa.parquet.read_table(path, partitioning=None) for path in products]).take(places)
        with atomic_write(new.products_path(folder, idx)) as partial:
            pa.parquet.write_table(table, partial, compression="zstd")
    parts: dict[str, list[torch.Tensor]] = {"vectors": [], "present": []}
    for path in vectors:
        with errors_as_damaged_file(path, "remove it"), safe_open(path, "pt") as file:
            for name, tensors in parts.items():
                tensors.append(file.get_tensor(name))
    chosen = {name: torch.cat(tensors)[torch.from_numpy(places)] for name, tensors in parts.items()}
    metadata = {"fingerprint": new.facts.fingerprint, "gallery": new.facts.gallery}
    with atomic_write(new.vectors_path(folder, idx)) as partial:  # last: a shard with vectors is complete
        save_file(chosen, partial, metadata=metadata)


def _link(source: Path, target: Path) -> None:
    with atomic_write(target) as partial:
        try:
            os.link(source, partial)
        except OSError:  # a file system without links
            shutil.copy2(source, partial)
