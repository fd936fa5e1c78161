"""Content hashes of tables and folders, by which prepared data know what they were made from.

Of images inside a Parquet file only the sizes count; image files beside a table do not count at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim_lightning.data.manifest.formats import holds_bytes
from mim_lightning.data.manifest.table import SUFFIXES
from mim_lightning.io.paths import PathOrUrl, find_files, io_errors_as_value_error, open_binary, suffix

FOOTER_TAIL = 8  # bytes: length of the footer, and the magic number


def table_id(path: PathOrUrl) -> str:
    """Return a short hash of the content of a table: a file, a folder of files, or a pattern.

    Raises:
        ValueError: no such file.
    """
    files = find_files(path, SUFFIXES)
    if not files:
        raise ValueError(f"{path}: no such file")
    return combine_ids([file_id(file) for file in files])


def combine_ids(ids: Sequence[str]) -> str:
    """Return the id of a table whose files have these, in their order."""
    return ids[0] if len(ids) == 1 else hashlib.blake2b("".join(ids).encode()).hexdigest()[:16]


def file_id(path: PathOrUrl) -> str:
    """Return a short hash of one file of any kind."""
    with io_errors_as_value_error(path), open_binary(path) as file:
        if suffix(path) == ".parquet" and (digest := _parquet_digest(file)) is not None:
            return digest
        file.seek(0)
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]  # type: ignore[arg-type]


def _parquet_digest(file: Any) -> str | None:
    """Hash the footer of a Parquet file that has images, and its columns without images; None: it has no images."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException:
        return None  # reported when it is read
    heavy = {field.name for field in table.schema_arrow if holds_bytes(field.type)}
    if not heavy:
        return None
    digest = hashlib.blake2b()
    metadata = table.metadata
    for group in range(metadata.num_row_groups):
        for chunk in map(metadata.row_group(group).column, range(metadata.num_columns)):
            if chunk.path_in_schema.split(".")[0] not in heavy:
                first = chunk.dictionary_page_offset or chunk.data_page_offset
                file.seek(first)
                digest.update(file.read(chunk.total_compressed_size))
    # the footer has the size of every column, of those with images too
    size = file.seek(0, 2)
    file.seek(size - FOOTER_TAIL - metadata.serialized_size)
    digest.update(file.read())
    return digest.hexdigest()[:16]


def folder_id(folder: Path) -> str:
    """Return a short hash of the files of a folder: their names and sizes, and the content of tables."""
    digest = hashlib.blake2b()
    for path in find_files(folder, ("",)):
        assert isinstance(path, Path)
        if path.name.startswith("cache-"):  # written by the datasets library
            continue
        is_table = path.suffix in (*SUFFIXES, ".json", ".txt")
        content = file_id(path) if is_table else ""
        digest.update(f"{path.relative_to(folder)}\n{path.stat().st_size}\n{content}\n".encode())
    return digest.hexdigest()[:16]
