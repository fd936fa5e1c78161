"""An object store to write finished files to: a local folder, or a URL that fsspec opens, such as s3://bucket/shop.

A file appears complete or not at all. All that writes shards, with either engine, writes through a `Store`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from mim_lightning.io.atomic import write_errors_named
from mim_lightning.io.paths import file_system, to_path_or_url


class Store:
    """A folder or URL by its address; cheap to pickle: another process opens it again."""

    def __init__(self, address: str | Path) -> None:
        path = to_path_or_url(str(address))
        # absolute: a relative path would change its meaning with the working directory
        self.address = str(path.absolute()) if isinstance(path, Path) else path

    @property
    def is_local(self) -> bool:
        return isinstance(_open(self.address)[0], LocalFileSystem)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a temporary local folder from which `put` takes files."""
        parent = _open(self.address)[1] if self.is_local else None  # a rename works within one file system only
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".scratch-", dir=parent))
        try:
            with write_errors_named(folder.parent, folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, path: Path, name: str) -> None:
        """Move a file of a scratch folder to its name in the store.

        Raises:
            ValueError: it did not arrive complete.
        """
        files, target = self._place(name)
        if self.is_local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            return
        num_bytes = path.stat().st_size
        files.put_file(str(path), target)  # an object appears when it is complete
        files.invalidate_cache(files._parent(target))
        if files.size(target) != num_bytes:
            raise ValueError(f"{self.address}/{name}: {files.size(target)} bytes arrived, {num_bytes} were sent")
        path.unlink()

    def write(self, name: str, data: bytes) -> None:
        with self.scratch() as folder:
            path = folder / "file"
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.put(path, name)

    def read(self, name: str) -> bytes:
        files, target = self._place(name)
        return files.cat_file(target)

    def open(self, name: str) -> BinaryIO:
        files, target = self._place(name)
        return files.open(target, "rb")

    def exists(self, name: str) -> bool:
        files, target = self._place(name)
        files.invalidate_cache()
        return files.exists(target)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes, -1 if there is none."""
        files, target = self._place(name)
        try:
            return files.size(target)
        except FileNotFoundError:
            return -1

    def names(self, folder: str) -> list[str]:
        """Return the names of the entries of a folder, none if there is no such folder."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the entries of a folder with their sizes in bytes."""
        files, target = self._place(folder)
        files.invalidate_cache()
        try:
            found = files.ls(target, detail=True)
        except FileNotFoundError:
            return {}
        names = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry["size"] or 0 for entry in found}
        return {name: size for name, size in names.items() if name}

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content, if it exists."""
        files, target = self._place(name)
        files.invalidate_cache()
        if files.exists(target):
            files.rm(target, recursive=True)

    def _place(self, name: str) -> tuple[Any, str]:
        files, root = _open(self.address)
        return files, f"{root}/{name}" if name else root


@lru_cache(maxsize=16)
def _open(address: str) -> tuple[Any, str]:
    place = to_path_or_url(address)
    if isinstance(place, Path):
        return LocalFileSystem(), str(place.absolute())
    files, root = file_system(place)
    return files, root.rstrip("/")
