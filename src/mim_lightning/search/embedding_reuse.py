"""Vectors of a former version of a catalog, carried over to a later one: only rows that are new are embedded.

A row is known by its place in the shards, which are never rewritten, or by its content where it was written again.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.io.atomic import atomic_write_folder
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.search.catalog_difference import changed_numbers, content_hash, is_version_of
from mim_lightning.search.embedding_store import FACTS_FILE, EmbeddingFacts

PRODUCTS = ".products.parquet"  # ending of the file with the products of a shard
Place = tuple[int, int]  # shard of the former version, row among its samples


def carry_over(folder: Path, facts: EmbeddingFacts, catalog: ShardSet) -> int:
    """Turn the embeddings of a former version of a catalog into those of this one; return how many rows were kept.

    A folder of the same version, of another model or of another catalog is left as it is. A process that is killed
    leaves the former folder or the new one.

    Args:
        folder: of an EmbeddingStore.
        facts: what the embeddings are to be.
    """
    path = folder / FACTS_FILE
    if not path.exists():
        return 0
    with errors_as_damaged_file(path, "remove it"):
        stored = EmbeddingFacts(**json.loads(path.read_text()))
    is_same_model = (stored.fingerprint, stored.gallery, stored.dimension) == (
        *(facts.fingerprint, facts.gallery, facts.dimension),
    )
    if stored == facts or not is_same_model or stored.catalog != facts.catalog:
        return 0
    former = _find_version(stored, catalog)
    if former is None:
        return 0
    numbers_N, num_kept = _former_numbers(former, catalog), 0
    with atomic_write_folder(folder) as new:
        for idx in range(len(catalog.sizes)):
            numbers = numbers_N[slice(*catalog.span(idx))]
            shard_idxs = former.shards_of(numbers)
            is_known = (numbers >= 0).all() and all(_path(folder, one).exists() for one in np.unique(shard_idxs))
            if is_known:
                starts = np.array([former.span(one)[0] for one in shard_idxs.tolist()])
                rows = list(zip(shard_idxs.tolist(), (numbers - starts).tolist(), strict=True))
                _write(folder, new, idx, rows, former, facts)
                num_kept += len(rows)
        (new / FACTS_FILE).write_text(json.dumps(asdict(facts), indent=2))
    return num_kept


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


def _write(folder: Path, new: Path, idx: int, rows: list[Place], former: ShardSet, facts: EmbeddingFacts) -> None:
    """Write the files of one shard, or link those of the former one if it is the same."""
    first = rows[0][0]
    if rows == [(first, row) for row in range(former.sizes[first])]:
        for source, target in ((_path(folder, first), _path(new, idx)), (_table(folder, first), _table(new, idx))):
            if source.exists():
                _link(source, target)
        return
    tensors, tables = {}, {}
    for shard_idx in {shard_idx for shard_idx, _ in rows}:
        path = _path(folder, shard_idx)
        with errors_as_damaged_file(path, "remove it"), safe_open(path, "pt") as file:
            tensors[shard_idx] = {name: file.get_tensor(name) for name in ("vectors", "present")}
        if _table(folder, shard_idx).exists():
            tables[shard_idx] = pa.parquet.read_table(_table(folder, shard_idx))
    parts = {name: torch.stack([tensors[shard][name][row] for shard, row in rows]) for name in ("vectors", "present")}
    if len(tables) == len(tensors):
        table = pa.concat_tables([tables[shard].slice(row, 1) for shard, row in rows])
        pa.parquet.write_table(table, _table(new, idx), compression="zstd")
    metadata = {"fingerprint": facts.fingerprint, "gallery": facts.gallery}
    save_file(parts, _path(new, idx), metadata=metadata)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _path(folder: Path, shard_idx: int) -> Path:
    return folder / f"{shard_idx:06d}.safetensors"


def _table(folder: Path, shard_idx: int) -> Path:
    return folder / f"{shard_idx:06d}{PRODUCTS}"
