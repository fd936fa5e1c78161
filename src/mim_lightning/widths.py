"""The first numbers of embeddings as embeddings of their own: which widths there are, and how vectors are cut.

A model that is trained at several widths can be searched at each of them (Kusupati et al. 2022, "Matryoshka
Representation Learning", arXiv 2205.13147).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def truncate(vectors_ND: Tensor, width: int, num_parts: int = 1) -> Tensor:
    """Return the first `width` numbers of vectors at unit length again; a zero vector stays zero.

    Args:
        num_parts: vectors side by side in a row, each of which is cut.
    """
    from torch.nn import functional as F  # a command that only reads names does not wait for torch

    parts_NJD = vectors_ND.unflatten(1, (num_parts, -1))[..., :width]
    return F.normalize(parts_NJD, dim=-1).flatten(1)


def validate_widths(key: str, given: Any, dimension: int | None = None) -> tuple[int, ...]:
    """Return widths in ascending order.

    Args:
        key: of the config, for messages.
        given: whole numbers, or a mapping with widths as keys; None: no widths.
        dimension: of the embeddings; None: not known yet.

    Raises:
        ValueError: a width that is no whole number from 1 to below the dimension.
    """
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{key}={given}: give widths, as [64, 128], or null")
    widths = [*given]
    last = "" if dimension is None else f" to {dimension - 1}"
    for width in widths:
        is_whole = not isinstance(width, bool) and str(width).isdecimal()
        if not is_whole or int(width) < 1 or (dimension is not None and int(width) > dimension):
            raise ValueError(f"{key}: no embedding has a width of {width}; give whole numbers from 1{last}, or null")
        if dimension is not None and int(width) == dimension:
            raise ValueError(f"{key}: {width} is embed_dim, the full width, which always counts; leave it out")
    return tuple(sorted({int(width) for width in widths}))


def validate_width_weights(key: str, given: Any, dimension: int | None = None) -> dict[int, float]:
    """Return the weight of each width, ascending by width.

    Raises:
        ValueError: as `validate_widths`, or a weight that is not above 0.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{key}={given}: give the weight of each width, as {{64: 1.0, 128: 1.0}}, or null")
    widths = validate_widths(key, given, dimension)
    weights = {int(width): weight for width, weight in given.items()}
    for width, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ValueError(f"{key}.{width}={weight}: give a weight above 0, or leave the width out")
    return {width: float(weights[width]) for width in widths}
