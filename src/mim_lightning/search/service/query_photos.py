"""Photos of recorded queries, where the operator of a service asks for them: without EXIF, named by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mim_lightning.data.images.codec import encode_pixels
from mim_lightning.io.atomic import atomic_write
from mim_lightning.search.query import SearchQuery

MAX_SIDE = 1024  # pixels of a stored photo


@dataclass(frozen=True)
class QueryPhotos:
    """A folder of photos."""

    folder: Path

    def store(self, image: bytes) -> str:
        """Write a photo unless it is there, and return its path.

        Raises:
            OSError: it cannot be written.
        """
        name = hashlib.blake2b(image, digest_size=16).hexdigest()
        path = (self.folder / name[:2] / f"{name}.jpg").absolute()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial:
                partial.write_bytes(encode_pixels(image, MAX_SIDE))
        return str(path)


def parts_of(query: SearchQuery, images: Sequence[bytes]) -> list[str]:
    """Return all that makes a query, with hashes of its images."""
    texts = {"text": query.text, "not_text": query.not_text, "like": query.like, **query.fields}
    hashes = [hashlib.blake2b(image, digest_size=16).hexdigest() for image in images]
    return [*hashes, *(part for name, text in sorted(texts.items()) if text for part in (name, text))]
