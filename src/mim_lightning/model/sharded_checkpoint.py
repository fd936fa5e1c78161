"""Sharded checkpoints: a folder into which every process writes its part of the tensors.

`torch.distributed.checkpoint` writes the parts, and reads them for any number of processes; beside them `meta.pt` has
everything else, and the checksums of all files.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from mim_lightning.artifact_paths import SHARDED_META, is_sharded_checkpoint
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import DamagedFileError, errors_as_damaged_file
from mim_lightning.io.file_name import validate_file_name

INDEX, PARTS = ".metadata", "*.distcp"
CONTENT, FILES = "content", "files"
PLACEHOLDER = "sharded tensor"  # the only key of a dict that stands for a tensor; the value is the tensor's name
BLOCK = 1 << 24
# what the index may name: it is a pickle, and a hostile one could name any function
ALLOWED = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        *("StorageMeta", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))),
    "collections": ("OrderedDict",),
    **dict.fromkeys(("pathlib", "pathlib._local"), ("PosixPath", "WindowsPath")),
}

Place = Callable[[str, torch.Size, torch.dtype], Tensor | None]


def write_sharded(content: Mapping[str, Any], folder: Path) -> None:
    """Write a checkpoint into an empty folder; every process calls it with its part of the tensors.

    Raises:
        OSError: a process could not write; on all of them.
    """
    tensors: dict[str, Tensor] = {}
    rest = _take_out(content, "", tensors)
    rank = dist.get_rank()
    failure: Any = None
    try:
        dcp.save(tensors, storage_writer=FileSystemWriter(folder, sync_files=True))
    except dcp.CheckpointException as error:
        failure = next(iter(error.failures.values()))[0]
    files: dict[str, list[int]] = {}
    if failure is None:
        try:
            own = [*folder.glob(f"__{rank}_{PARTS}"), *([folder / INDEX] if rank == 0 else [])]
            files = {path.name: _measure(path) for path in own}
        except OSError as error:
            failure = error
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (files, _plain(failure)))
    failure = next((found for _, found in gathered if found is not None), None)
    if failure is None and rank == 0:
        try:
            with (folder / SHARDED_META).open("wb") as file:
                torch.save({CONTENT: rest, FILES: {k: v for found, _ in gathered for k, v in found.items()}}, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            failure = _plain(error)
    said = [failure]
    dist.broadcast_object_list(said, 0)
    if said[0] is not None:
        code, reason = said[0]
        raise OSError(code, reason, str(folder))


def read_sharded(folder: str | Path, place: Place | None = None, left_out: Collection[str] = ()) -> dict[str, Any]:
    """Read a sharded checkpoint.

    Args:
        place: by name, shape and type: the tensor to read into, which may be a part of it; None, or where it returns
            None: the whole, on the CPU. Given, every process reads together.
        left_out: keys of the checkpoint that are not read.

    Raises:
        DamagedFileError: no sharded checkpoint, or damaged; with `place` on all processes.
    """
    folder = Path(folder)
    content: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    failure: Exception | None = None
    try:
        content = {key: value for key, value in read_meta(folder).items() if key not in left_out}
        with errors_as_damaged_file(str(folder)):
            reader = _Reader(folder)
            described = reader.read_metadata().state_dict_metadata
            for name in _names(content):
                found = described[name]
                if not isinstance(found, TensorStorageMetadata):
                    raise DamagedFileError(folder, f"'{name}' is no tensor")
                given = None if place is None else place(name, found.size, found.properties.dtype)
                tensors[name] = torch.empty(found.size, dtype=found.properties.dtype) if given is None else given
    except (OSError, ValueError) as error:
        failure = error
    if place is not None:  # or the others would wait for this process
        failures: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, None if failure is None else str(failure))
        others = (text for text in failures if text)
        failure = failure or next((DamagedFileError(folder, f"another process: {text}") for text in others), None)
    if failure is not None:
        raise failure
    with errors_as_damaged_file(str(folder)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that this is one process
                dcp.load(tensors, storage_reader=reader, no_dist=place is None)
        except dcp.CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error
    return _put_in(content, tensors)


def read_meta(folder: Path) -> dict[str, Any]:
    """Return the checkpoint with a placeholder for every sharded tensor.

    Raises:
        DamagedFileError: no sharded checkpoint, or damaged.
    """
    return _read_meta(folder)[CONTENT]


def change_meta(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a sharded checkpoint has besides tensors, in place."""
    found = _read_meta(folder)
    change(found[CONTENT])
    with atomic_write(folder / SHARDED_META) as partial:
        torch.save(found, partial)


def verify_sharded(folder: Path) -> None:
    """Read all files and verify their checksums.

    Raises:
        DamagedFileError: one is missing, or changed since it was written; names it.
    """
    if not is_sharded_checkpoint(folder):
        raise DamagedFileError(folder, f"{SHARDED_META} is missing")
    with errors_as_damaged_file(str(folder)):
        with zipfile.ZipFile(folder / SHARDED_META) as parts:
            damaged = parts.testzip()
        if damaged is not None:
            raise DamagedFileError(folder, f"the checksum of {SHARDED_META}/{damaged} does not match")
        for name, wanted in _read_meta(folder)[FILES].items():
            path = folder / (name if name == INDEX else validate_file_name(name, str(folder)))
            if not path.is_file():
                raise DamagedFileError(folder, f"{name} is missing")
            if _measure(path) != wanted:
                raise DamagedFileError(folder, f"the checksum of {name} does not match")


def _read_meta(folder: Path) -> dict[str, Any]:
    with errors_as_damaged_file(str(folder)):
        found = torch.load(folder / SHARDED_META, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not isinstance(found.get(CONTENT), dict):
            raise DamagedFileError(folder, f"{SHARDED_META} is not of a checkpoint of mim_lightning")
        return found


class _Reader(FileSystemReader):
    """Reads the index without running code that it names."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        folder = Path(str(self.path))
        found = _IndexUnpickler(io.BytesIO((folder / INDEX).read_bytes())).load()
        if not isinstance(found, Metadata):
            raise DamagedFileError(folder, f"{INDEX} is not of a checkpoint")
        for stored in (found.storage_data or {}).values():
            validate_file_name(stored.relative_path, str(folder))
        return found


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise ValueError(f"{INDEX} names {module}.{name}")


def _take_out(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return nested containers with a placeholder for every sharded tensor, and collect those by name."""
    if isinstance(value, DTensor):
        tensors[name] = value.detach()
        return {PLACEHOLDER: name}
    if isinstance(value, Mapping):
        parts = {key: _take_out(part, f"{name}/{key}" if name else str(key), tensors) for key, part in value.items()}
        return parts if type(value) is dict else type(value)(parts)  # type: ignore[call-arg]
    if type(value) in (list, tuple):
        return type(value)(_take_out(part, f"{name}/{idx}", tensors) for idx, part in enumerate(value))
    return value


def _put_in(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {PLACEHOLDER}:
            return tensors[value[PLACEHOLDER]]
        parts = {key: _put_in(part, tensors) for key, part in value.items()}
        return parts if type(value) is dict else type(value)(parts)  # type: ignore[call-arg]
    return type(value)(_put_in(part, tensors) for part in value) if type(value) in (list, tuple) else value


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if value.keys() == {PLACEHOLDER}:
            yield value[PLACEHOLDER]
        else:
            for part in value.values():
                yield from _names(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _names(part)


def _measure(path: Path) -> list[int]:
    """Return the size and checksum of a file."""
    checksum, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return [size, checksum]


def _plain(error: BaseException | None) -> tuple[int, str] | None:
    if error is None:
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno, os.strerror(error.errno)
    return 5, f"{os.strerror(5)} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
