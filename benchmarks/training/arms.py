"""The arms of `benchmarks.train`: the same encoders on the same photos, trained by this project and in other ways.

An arm trains segments of `Setup.batches` batches. It calls `Pace.begin` before the first batch of a segment is asked
for, so that loading counts, and `Pace.end` after its last step.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

from benchmarks.training.clip import train_open_clip, train_open_clip_cached
from benchmarks.training.ours import train_bare, train_ours, train_ours_cached
from benchmarks.training.pace import Pace
from benchmarks.training.plain import train_plain
from benchmarks.training.sentences import train_sentence_transformers
from benchmarks.training.setup import Setup

Arm = Callable[[Setup, Pace], None]
ARMS: dict[str, Arm] = {
    "ours": train_ours,
    "ours, cached step": train_ours_cached,
    "bare loop": train_bare,
    "open_clip": train_open_clip,
    "open_clip, accum-freq": train_open_clip_cached,
    "sentence-transformers, cached": train_sentence_transformers,
    "plain Lightning, by pair": partial(train_plain, encodes_by_pair=True),
    "plain Lightning": train_plain,
    "plain Lightning, our collate": partial(train_plain, has_our_collate=True),
}
NEEDED = {"open_clip": "open_clip_train", "open_clip, accum-freq": "open_clip_train"}
NEEDED |= {"sentence-transformers, cached": "sentence_transformers"}


def missing_package(arm: str) -> str | None:
    """Return the package that an arm needs and that is not installed."""
    needed = NEEDED.get(arm)
    return needed if needed and importlib.util.find_spec(needed) is None else None
