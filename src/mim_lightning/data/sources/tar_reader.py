"""Samples of a WebDataset shard: consecutive members of a tar file with the same name up to its first dot.

Headers are read in order; the content of images is skipped, its offset kept.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from mim_lightning.data.images.reader import TarMember
from mim_lightning.data.manifest.rows import RowError
from mim_lightning.io.paths import PathOrUrl, io_errors_as_value_error, open_binary

KEY = "__key__"  # WebDataset's word for the name of a sample


@dataclass
class TarSample:
    """A sample: "shop/0007.query.jpg" is member "query.jpg" of sample "shop/0007"."""

    shard: PathOrUrl
    key: str
    members: dict[str, TarMember] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)  # of the members that are read
    _objects: dict[str, dict[str, Any]] = field(default_factory=dict)  # JSON members, parsed once

    @property
    def origin(self) -> str:
        return f"{self.shard}, sample '{self.key}'"

    def text(self, member: str) -> str:
        """Return the content of a text member.

        Raises:
            RowError: it is not UTF-8.
        """
        try:
            return self.contents[member].decode("utf-8-sig")
        except UnicodeDecodeError:
            raise RowError("", f"member '{member}' is not UTF-8") from None

    def value(self, member: str, key: str) -> Any:
        """Return a value of a JSON member, None if it does not exist; dots in `key` separate nested keys.

        Raises:
            RowError: it is not a JSON object.
        """
        found: Any = self.json_object(member)
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def json_object(self, member: str) -> dict[str, Any]:
        """Return the content of a JSON member.

        Raises:
            RowError: it is not a JSON object.
        """
        if member not in self._objects:
            try:
                found = json.loads(self.text(member))
            except json.JSONDecodeError as error:
                raise RowError("", f"member '{member}' is not JSON ({error.msg})") from None
            if not isinstance(found, dict):
                raise RowError("", f"member '{member}' is not a JSON object")
            self._objects[member] = found
        return self._objects[member]


def read_samples(shard: PathOrUrl, wanted: Set[str]) -> Iterator[TarSample]:
    """Yield the samples of a shard, with the content of `wanted` members.

    Raises:
        ValueError: the shard is missing, truncated or compressed, or a sample has a member twice.
    """
    sample: TarSample | None = None
    tar: Any  # its list of members is not in the library's types
    with (
        io_errors_as_value_error(shard),
        _tar_errors(shard),
        open_binary(shard) as file,
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        while (entry := tar.next()) is not None:
            tar.members.clear()  # else the headers of millions of members stay in memory
            key, member = _split(entry.name)
            if not entry.isfile() or member is None:
                continue
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = TarSample(shard, key)
            _add(sample, member, entry, tar, wanted)
        _validate_end(shard, file, tar.offset)
        if sample is not None:
            yield sample


def _validate_end(shard: PathOrUrl, file: IO[bytes], offset: int) -> None:
    """Check that a file was not cut off between two members: writers end it with zeros."""
    file.seek(offset)
    if not file.read(1):
        raise ValueError(f"{shard}: a damaged tar file (truncated: it has no end mark)")


def _add(sample: TarSample, member: str, entry: tarfile.TarInfo, tar: tarfile.TarFile, wanted: Set[str]) -> None:
    if member in sample.members:
        raise ValueError(f"{sample.origin}: has member '{member}' twice")
    sample.members[member] = TarMember(str(sample.shard), entry.name, entry.offset_data, entry.size)
    if member in wanted:
        file = tar.extractfile(entry)
        sample.contents[member] = file.read() if file is not None else b""


def _split(name: str) -> tuple[str, str | None]:
    """Return the sample and member of a file name; None: it is not part of a sample."""
    folder, slash, base = name.rpartition("/")
    stem, dot, member = base.partition(".")
    is_sample = stem and dot and not stem.startswith("__")
    return f"{folder}{slash}{stem}", member.lower() if is_sample else None


@contextmanager
def _tar_errors(shard: PathOrUrl) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{shard}: no such file (WebDataset shard)") from None
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard}: a damaged tar file, or a compressed one ({error})") from error
