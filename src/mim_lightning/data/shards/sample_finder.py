"""Samples of several shard sets, found by id: for whoever shows a query or a product.

Opened sets and ids come in, one sample an id goes out; the service, figures and pages call it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.types import Sample, id_key


def find_samples(
    sets: Sequence[ShardSet], ids: Iterable[str], having: str | None = None, *, skip_damaged: bool = False
) -> dict[str, Sample]:
    """Return the first sample of each id, in the first set that has one; an id that no set has is left out.

    Args:
        sets: whose samples are told apart by such ids: those of queries, or of products.
        having: a tower; a sample without its input is passed over.
        skip_damaged: pass over what cannot be read too, as if it were not there.

    Raises:
        ValueError: a sample cannot be read.
    """
    wanted = {id_key(item_id): item_id for item_id in ids}
    found: dict[str, Sample] = {}
    for shards in sets:
        for key, sample in _read(shards, list(wanted), skip_damaged):
            if having is None or having in sample.inputs:
                found[wanted.pop(key)] = sample
    return found


def _read(shards: ShardSet, keys: Sequence[int], skip_damaged: bool) -> Iterator[tuple[int, Sample]]:
    try:
        numbers = shards.find(keys)
    except (OSError, ValueError):  # the folder may be gone by now
        if skip_damaged:
            return
        raise
    for key, number in numbers.items():
        try:
            (sample,) = shards.read([number])
        except ValueError:
            if skip_damaged:
                continue
            raise
        yield key, sample
