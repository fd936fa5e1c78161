"""Names of metrics: "hit@1", of a sampled gallery, at a width of the vectors; and keys, "val/image_to_image/hit@1".

They are computed in `metrics.measures`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WIDTH = "width_"  # begins the last part of the name of a metric or loss at a width


class MetricKey(NamedTuple):
    """The parts of a key: "val/image_to_image/hit@1/width_64" is of stage "val" and direction "image_to_image"."""

    stage: str
    direction: str
    metric: str  # all the rest

    def __str__(self) -> str:
        return "/".join(self)


def parse_key(key: str) -> MetricKey:
    """Return the parts of a metric's key.

    Raises:
        ValueError: it has fewer than three.
    """
    parts = key.split("/", 2)
    if len(parts) < 3:
        raise ValueError(f"{key}: is no key of a metric, as val/image_to_image/hit@1 is")
    return MetricKey(*parts)


# begins the name of a metric whose gallery was sampled; a width and the end of an interval may follow
_SAMPLED = re.compile(rf"(?:^|(?<=/))sampled\d+_(?=[^/]+(?:/{WIDTH}\d+)?(?:/low|/high)?$)")


def sampled_name(metric: str, num_distractors: int | None) -> str:
    """Return the name of a metric: "sampled10000_hit@1" where the gallery is a sample with so many distractors.

    Such a metric is higher than that of the whole gallery, and must never be taken for it.
    """
    return metric if num_distractors is None else f"sampled{num_distractors}_{metric}"


def whole_name(metric: str) -> str:
    """Return the name of a metric, or its key, as it is for the whole gallery."""
    return _SAMPLED.sub("", metric, count=1)


def variants_of(metrics: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return which of the `known` metrics are these, of the whole gallery or of a sample; in the order of `metrics`."""
    return [name for metric in metrics for name in dict.fromkeys(known) if whole_name(name) == metric]


def width_name(name: str, width: int) -> str:
    """Return the name of a metric or loss of vectors that are cut to a width: "hit@1/width_64"."""
    return f"{name}/{WIDTH}{width}"
