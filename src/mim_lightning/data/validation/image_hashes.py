"""Perceptual hashes of the images of prepared data, in files beside them: later additions are compared with them.

`full-000001.parquet` has the images of all rows of a version, `added-000002.parquet` those of the rows that a later
version added. A row that was added again, with other images or none, is in the later file: that one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mim_lightning.data.manifest.row_store import RowStore
from mim_lightning.data.manifest.stored_rows import StoredRows
from mim_lightning.io.atomic import atomic_write

FOLDER = "image_hashes"  # in that of the prepared data
FULL, ADDED = "full", "added"
NAME = re.compile(rf"({FULL}|{ADDED})-(\d{{6,}})\.parquet")
COLUMNS = "split, id, idx, hash, colors, uniform_fraction"  # the catalog has no split, a row without images no hash


def hashes_path(folder: Path, version: int, kind: str = FULL) -> Path:
    return folder / FOLDER / f"{kind}-{version:06d}.parquet"


def images_query(rows: StoredRows, images: str) -> str:
    """Return the query for the images of rows and their hashes, with the position and the image key of each.

    Args:
        images: the table of their properties in the store, see `scan_images`.
    """
    return f"""
        SELECT split, id, idx, position, key, perceptual_hash AS hash, grid_colors AS colors, uniform_fraction FROM (
            SELECT split, query_id AS id, 0 AS idx, position, image AS key FROM {rows.queries}
            UNION ALL SELECT NULL, product_id, 0, position, NULL FROM {rows.products} WHERE len(images) = 0
            UNION ALL SELECT NULL, product_id, generate_subscripts(images, 1), position, unnest(images)
            FROM {rows.products}
        ) LEFT JOIN (FROM {images} WHERE kind = '') USING (key)"""


def write_hashes(path: Path, store: RowStore, query: str) -> None:
    """Write the rows of a query with COLUMNS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a table for the joins: with the sort, more memory is needed together than for each alone
    hashes = store.select("hashes", f"SELECT {COLUMNS} FROM ({query})")
    with atomic_write(path) as partial:
        target = str(partial).replace("'", "''")
        ordered = f"FROM {hashes} ORDER BY split, id, idx"  # the same bytes however many threads
        store.run(f"COPY ({ordered}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
    store.drop(hashes)


def write_no_hashes(path: Path) -> None:
    """Write the file of a version that adds no rows."""
    store, columns = RowStore(), ", ".join(f"NULL AS {name}" for name in COLUMNS.split(", "))
    write_hashes(path, store, f"SELECT {columns} LIMIT 0")
    store.close()


def find_hash_files(folder: Path, version: int) -> list[Path]:
    """Return the files that together have the images of a version, the oldest first; empty: they are not complete."""
    found = {(match[1], int(match[2])): path for path, match in _named(folder) if int(match[2]) <= version}
    first = max((number for kind, number in found if kind == FULL), default=None)
    if first is None:
        return []
    files = [found[FULL, first], *(found.get((ADDED, number)) for number in range(first + 1, version + 1))]
    return [path for path in files if path is not None] if all(files) else []


def _named(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    there = (folder / FOLDER).iterdir() if (folder / FOLDER).is_dir() else ()
    for path in there:
        if match := NAME.fullmatch(path.name):
            yield path, match


def read_hashes(store: RowStore, files: Sequence[Path]) -> str:
    """Return a table of the images of a version: COLUMNS, and the number of the file; rows that came again count last.

    Rows that were removed are in it.
    """
    parts = " UNION ALL ".join(
        f"SELECT {COLUMNS}, {number} AS file FROM read_parquet(?)" for number in range(len(files))
    )
    last = "QUALIFY file = max(file) OVER (PARTITION BY split, id)" if len(files) > 1 else ""
    return store.select("stored", f"FROM ({parts}) {last}", [str(path) for path in files])
