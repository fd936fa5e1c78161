"""Digests that find mistakes: content that was changed, damaged or mixed up, at the speed of memory.

A digest is `xxh3-` and sixteen hexadecimal digits of XXH3. Files of versions before 0.2 name theirs by sixteen digits
alone, of a slower hash: they are verified with that one. XXH3 is no protection against forgers; where a file comes from
others and its digest from elsewhere, use SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import xxhash

XXH3, NUM_DIGITS = "xxh3-", 16


def has_same_scheme(first: str, second: str) -> bool:
    """Return whether two digests were computed in the same way, so that equal content has equal ones."""
    return first.startswith(XXH3) == second.startswith(XXH3)


def digest_of(chunks: Iterable[Any], like: str, former: Callable[[], Any]) -> str:
    """Return the digest of chunks, which are read where they are.

    Args:
        chunks: bytes or contiguous arrays of bytes; only their order counts, not where one ends.
        like: a digest to compare with: the result is computed as that one was.
        former: the hash of digests without prefix.
    """
    is_current = has_same_scheme(like, XXH3)
    digest = xxhash.xxh3_128() if is_current else former()
    for chunk in chunks:
        digest.update(chunk)
    return f"{XXH3 if is_current else ''}{digest.hexdigest()[:NUM_DIGITS]}"
