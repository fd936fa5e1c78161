"""Pictures as integers: equal keys for pictures that are equal pixel for pixel, however they are encoded.

Stored, encoded pictures come in; `collate` gives each evaluated row its key, so that a photo is known again in the
gallery and in other queries. What a transform or an encoder makes of a picture plays no part.
"""

from __future__ import annotations

import hashlib

from mim_lightning.data.images.codec import decode_exactly

MAX_KNOWN = 200_000  # pictures whose key a process keeps, of some 200 bytes each

_known: dict[bytes, int] = {}  # by digest of the stored bytes: evaluation meets the same pictures every epoch


def pixel_key(data: bytes) -> int:
    """Return the 63-bit integer of a picture's height, width and RGB pixels.

    Raises:
        ValueError: it does not decode.
    """
    digest = hashlib.blake2b(data, digest_size=16).digest()
    key = _known.get(digest)
    if key is None:
        key = _key_of_pixels(data)
        if len(_known) < MAX_KNOWN:
            _known[digest] = key
    return key


def bytes_key(data: bytes) -> int:
    """Return the 63-bit integer of a picture's stored bytes: cheap, and blind to another encoding of the same."""
    return _integer(hashlib.blake2b(data, digest_size=8))


def _key_of_pixels(data: bytes) -> int:
    pixels = decode_exactly(data)
    size = f"{pixels.shape[0]}x{pixels.shape[1]}".encode()
    return _integer(hashlib.blake2b(pixels.data, digest_size=8, salt=size))


def _integer(digest: hashlib.blake2b) -> int:
    return int.from_bytes(digest.digest(), "big") >> 1
