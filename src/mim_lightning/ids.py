"""String ids as 63-bit integers, for tensors and the columns of shard sets.

Separate from `types`, which exports these names too, so that processes that only read and write files need no torch.
"""

from __future__ import annotations

import hashlib

NO_KEY = -1  # of a row without a (further) id; `hash_id` never returns it


def hash_id(identity: str) -> int:
    """Return the 63-bit hash of a string id (blake2b, never negative)."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1
