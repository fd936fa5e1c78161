"""How many of the texts an encoder reads only in part, found out on a few rows before training.

A datamodule and the run's config come in, lines go out. The data check counts all rows, but only where data are
prepared and for the encoder that was named there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import PRODUCT, side_of, texts_of
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.types import TextSpec, fields_of

NUM_ROWS = 256
LEAST_SHARE = 0.01
LONGEST_ADVISED = 512  # tokens: what most text encoders can be made to read


def describe_cut_texts(datamodule: MatchDataModule, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield two lines for each text tower of which at least one text in a hundred is cut."""
    towers = sorted(datamodule.specs.items())
    read = [(tower, *part) for tower, spec in towers for part in fields_of(tower, spec).items()]
    for tower, field, spec in read:
        if not isinstance(spec, TextSpec) or spec.count is None:
            continue
        shards = datamodule.opened.catalog if side_of(tower) == PRODUCT else datamodule.opened.queries
        counts = np.array(spec.count(list(_sample(shards, field))))
        share = float((counts > spec.max_length).mean()) if len(counts) else 0.0
        if share >= LEAST_SHARE:
            key, longest = _key_of(tower, config), int(counts.max())
            whole = "them whole" if longest <= LONGEST_ADVISED else "more of them"
            advice = f"{key}={min(longest, LONGEST_ADVISED)} reads {whole}" if key else "its tokenizer takes no more"
            yield (
                f"  {share:.0%} of {field} are cut after {spec.max_length} tokens "
                f"(median {np.median(counts):.0f} of {len(counts)} texts)\n  {advice}"
            )


def _sample(shards: ShardSet, field: str) -> Iterator[str]:
    """Yield the texts of rows that lie evenly apart; of a set at an address, of its first shard."""
    stop = len(shards) if not isinstance(shards.folder, str) else shards.span(0)[1]
    for number in np.unique(np.linspace(0, stop - 1, NUM_ROWS, dtype=np.int64)).tolist():
        with suppress(ValueError):  # damage is told, or skipped, by who trains on it
            if text := texts_of(shards.read_facts(number)).get(field):
                yield text


def _key_of(tower: str, config: Mapping[str, Any]) -> str | None:
    """Return the key that says how many tokens a tower's encoder reads, or None if it has none."""
    model = config.get("model") or {}
    owner = (model.get("tied") or {}).get(tower) or tower
    encoder = model["towers"][owner]["encoder"] if owner in (model.get("towers") or {}) else {}
    if "max_length" not in encoder:
        return None
    is_shared = encoder == (config.get("encoder") or {}).get("text")
    return "encoder.text.max_length" if is_shared else f"model.towers.{owner}.encoder.max_length"
