"""String ids as integers: what stands for a query, product or category in tensors and in columns of shard sets.

An id comes in, a 63-bit integer goes out. Apart from `types`, whose names these are too, so that processes which only
read and write files need no torch.
"""

from __future__ import annotations

import hashlib

NO_KEY = -1  # stands where a row has no (further) id; `id_key` never returns it


def id_key(identity: str) -> int:
    """Return the 63-bit integer that stands for a string id in tensors (a blake2b digest, never negative)."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1
