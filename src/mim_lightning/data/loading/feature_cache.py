"""A cache of features on disk: what a frozen encoder makes of each distinct input, by the input's content.

A folder for each encoder, of pairs of files that are written once: `<digest>.features.npy` (n, width) float32 and
`<digest>.keys.npy`, the sorted keys of its rows, written last. The digest is of both contents, so damage is found.
Several runs may add files at the same time; readers map them into memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim_lightning.data.shards.cache import parse_size
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.digest import XXH3, digest_of
from mim_lightning.types import InputSpec, TextSpec

KEY_BYTES = 16
KEYS, FEATURES = ".keys.npy", ".features.npy"
AT_ONCE = 1 << 24  # bytes


@dataclass(frozen=True)
class FeatureCacheSettings:
    """Whether training computes the features of frozen encoders once, instead of in every epoch.

    Args:
        enabled: for the towers before whose encoder nothing is random: texts, and images with data.augment=null; with
            augmentation the images of evaluation alone. Features may differ from computed ones by rounding: those of a
            batch depend on its size.
        folder: on a disk of this machine; None: ~/.cache/mim_lightning/features. Several runs may share it.
        max_size: of the folder, as "20GB" or a number; an encoder whose features would not fit computes them as usual.
    """

    enabled: bool = False
    folder: str | None = None
    max_size: str | int = "20GB"

    def __post_init__(self) -> None:
        _ = self.limit

    @property
    def limit(self) -> int:
        """Maximum size of the folder in bytes."""
        return parse_size("data.feature_cache.max_size", self.max_size)

    @property
    def root(self) -> Path:
        own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mim_lightning" / "features"
        return Path(self.folder or own).expanduser()


def prompts_of(specs: Iterable[InputSpec]) -> list[str]:
    """Return what begins the texts of each spec."""
    return [getattr(spec.tokenize, "prompt", "") if isinstance(spec, TextSpec) else "" for spec in specs]


def input_key(values: Sequence[bytes | str | None], prompts: Sequence[str]) -> bytes:
    """Return the key of an input: of an image's bytes or a text, or of several that a tower reads together.

    Args:
        values: of each of the tower's fields; None where a row lacks it.
        prompts: what begins each of them that is a text.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for value, prompt in zip(values, prompts, strict=True):
        parts = [value] if isinstance(value, bytes) else [prompt.encode(), (value or "").encode()]
        digest.update(f"{type(value).__name__} {' '.join(str(len(part)) for part in parts)} ".encode())
        for part in parts:
            digest.update(part)
    return digest.digest()


class FeatureTable:
    """The features of one encoder, read by key; cheap to send to a worker.

    Args:
        folder: of the encoder.
        names: digests of the files to read.
        width: of the features.
    """

    def __init__(self, folder: Path, names: Sequence[str], width: int) -> None:
        self.folder, self.names, self.width = folder, tuple(names), width

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "names": self.names, "width": self.width}  # a worker maps the files itself

    @cached_property
    def _parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (np.load(self.folder / f"{name}{KEYS}"), np.load(self.folder / f"{name}{FEATURES}", mmap_mode="r"))
            for name in self.names
        ]

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._parts)

    def keys(self) -> set[bytes]:
        """Return the keys of all rows."""
        return {bytes(key) for keys, _ in self._parts for key in keys.view(f"V{KEY_BYTES}").tolist()}

    def read(self, keys: Sequence[bytes]) -> tuple[Tensor, np.ndarray]:
        """Return features (n, width) float32 by key, and whether each was found, (n,) bool; others are zero."""
        wanted = np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}")
        features, found = np.zeros((len(keys), self.width), np.float32), np.zeros(len(keys), bool)
        for part_keys, part_features in self._parts:
            rows = np.searchsorted(part_keys, wanted).clip(max=len(part_keys) - 1)
            new = ~found & (part_keys[rows] == wanted)
            features[new] = part_features[rows[new]]
            found |= new
        return torch.from_numpy(features), found


def write_features(folder: Path, keys: Sequence[bytes], features_ND: Tensor) -> str:
    """Write a pair of files and return its digest; the rows may come in any order, each key once."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}")
    order = np.argsort(packed)
    contents = {FEATURES: np.ascontiguousarray(features_ND.numpy()[order]), KEYS: packed[order]}
    name = _digest(contents[KEYS], contents[FEATURES])
    for suffix, content in contents.items():  # the keys last: they say that both are there
        with atomic_write(folder / f"{name}{suffix}") as partial, partial.open("wb") as file:
            np.save(file, content)
    return name


def list_features(folder: Path) -> list[str]:
    """Return the digests of the pairs of files in a folder."""
    return sorted(path.name.removesuffix(KEYS) for path in folder.glob(f"[0-9a-fx]*{KEYS}"))


def remove_damaged(folder: Path, width: int) -> Iterator[str]:
    """Read all features of a folder, remove those that are not as they were written, and yield their digests."""
    for name in list_features(folder):
        try:
            keys = np.load(folder / f"{name}{KEYS}", mmap_mode="r")
            features = np.load(folder / f"{name}{FEATURES}", mmap_mode="r")
            is_whole = features.shape == (len(keys), width) and _digest(keys, features, like=name) == name
        except (OSError, ValueError, EOFError):
            is_whole = False
        if not is_whole:
            for suffix in (KEYS, FEATURES):
                with suppress(OSError):
                    (folder / f"{name}{suffix}").unlink()
            yield name


def _digest(keys: np.ndarray, features: np.ndarray, like: str = XXH3) -> str:
    return digest_of(_chunks(keys, features), like, partial(hashlib.blake2b, digest_size=8))


def _chunks(keys: np.ndarray, features: np.ndarray) -> Iterator[bytes | np.ndarray]:
    for array in (keys, features):
        yield f"{array.dtype.str} {array.shape}".encode()
        num_rows = max(1, AT_ONCE // max(1, array[:1].nbytes))
        for start in range(0, len(array), num_rows):
            yield array[start : start + num_rows].view(np.uint8).reshape(-1)
