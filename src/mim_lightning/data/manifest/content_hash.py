"""What tells one table from another: a digest of its content.

A place comes in, a short text goes out; sources describe their data by it, so it is asked for at the start of every
run. Pictures inside a table count by their sizes alone, as files of pictures beside a table do not count at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim_lightning.data.manifest.arrow import holds_bytes
from mim_lightning.data.manifest.table import ENDINGS
from mim_lightning.io.paths import PathOrUrl, find_files, io_errors_as_value_error, open_binary, suffix

FOOTER_TAIL = 8  # bytes: length of the footer, and the magic number


def table_id(place: PathOrUrl) -> str:
    """Return a short text that changes with the content of a table: a file, a folder of files, or a pattern.

    Raises:
        ValueError: no such file.
    """
    files = find_files(place, ENDINGS)
    if not files:
        raise ValueError(f"{place}: no such file")
    return combine_ids([file_id(file) for file in files])


def combine_ids(ids: Sequence[str]) -> str:
    """Return the id of a table whose files have these, in their order."""
    return ids[0] if len(ids) == 1 else hashlib.blake2b("".join(ids).encode()).hexdigest()[:16]


def file_id(place: PathOrUrl) -> str:
    """Return the same for one file, of whatever kind."""
    with io_errors_as_value_error(place), open_binary(place) as file:
        if suffix(place) == ".parquet" and (digest := _parquet_digest(file)) is not None:
            return digest
        file.seek(0)
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]  # type: ignore[arg-type]


def _parquet_digest(file: Any) -> str | None:
    """Digest a Parquet file that holds pictures: its footer, and all columns that hold none; None: any other."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException:
        return None  # told when it is read
    heavy = {field.name for field in table.schema_arrow if holds_bytes(field.type)}
    if not heavy:
        return None
    digest = hashlib.blake2b()
    facts = table.metadata
    for group in range(facts.num_row_groups):
        for chunk in map(facts.row_group(group).column, range(facts.num_columns)):
            if chunk.path_in_schema.split(".")[0] not in heavy:
                first = chunk.dictionary_page_offset or chunk.data_page_offset
                file.seek(first)
                digest.update(file.read(chunk.total_compressed_size))
    # the footer tells the size of every column, those with pictures among them
    size = file.seek(0, 2)
    file.seek(size - FOOTER_TAIL - facts.serialized_size)
    digest.update(file.read())
    return digest.hexdigest()[:16]


def folder_id(folder: Path) -> str:
    """Return a text that changes with the files of a folder: by name and size, and tables by their content."""
    digest = hashlib.blake2b()
    for path in find_files(folder, ("",)):
        assert isinstance(path, Path)
        if path.name.startswith("cache-"):  # what the datasets library leaves there
            continue
        is_table = path.suffix in (*ENDINGS, ".json", ".txt")
        content = file_id(path) if is_table else ""
        digest.update(f"{path.relative_to(folder)}\n{path.stat().st_size}\n{content}\n".encode())
    return digest.hexdigest()[:16]
