"""What the size of an index costs: a point of the curve that `tune_index` measured, kept in the card of an index."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_lightning.inference.quantization import base_fingerprint
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.search.index.card import COST, COST_NUMBERS, IndexCard


@dataclass(frozen=True)
class SizeCurve:
    """What `tune_index` wrote: points by width, precision and type of the index."""

    path: str
    fingerprint: str
    direction: str
    num_rows: int
    points: Mapping[tuple[int, str, str], Mapping[str, float]]

    def validate(self, fingerprint: str, width: int, precision: str) -> None:
        """Raise ValueError unless the curve is of a model and has points of a size."""
        if base_fingerprint(self.fingerprint) != base_fingerprint(fingerprint):
            raise ValueError(
                f"curve={self.path}: is of model {self.fingerprint}, the index of {fingerprint}; run tune_index again"
            )
        sizes = dict.fromkeys(f"{width} {precision}" for width, precision, _ in self.points)
        if f"{width} {precision}" not in sizes:
            raise ValueError(f"curve={self.path}: has no point of {width} {precision}; it has {', '.join(sizes)}")

    def cost_of(self, card: IndexCard) -> dict[str, Any] | None:
        """Return what a card says of the cost of its size; None: its type of index was not measured."""
        point = self.points.get((card.dimension, card.precision, card.kind))
        return None if point is None else {"direction": self.direction, "num_rows": self.num_rows, **point}


def read_curve_of_new_index(path: str | None, is_update: bool, has_crops: bool) -> SizeCurve | None:
    """Read the curve for the card of an index that is built anew, of whole images; None: no path is given.

    Raises:
        ValueError: an index that is updated or has crops, or as `read_curve`.
    """
    if path is None:
        return None
    if is_update:
        raise ValueError(f"curve={path}: goes with a new index; update=true keeps what its card says")
    if has_crops:
        raise ValueError(f"curve={path}: was measured with whole images; leave it out with crops")
    return read_curve(Path(path))


def read_curve(path: Path) -> SizeCurve:
    """Read `index_curve.json`.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    if not path.is_file():
        raise ValueError(f"curve={path}: no such file; give the index_curve.json of tune_index --output")
    with errors_as_damaged_file(path):
        content = json.loads(path.read_text("utf-8"))
        points = {
            (int(point["width"]), str(point["precision"]), str(point["kind"])): {
                name: float(point[name]) for name in COST_NUMBERS
            }
            for point in content["points"]
        }
        facts = str(content["fingerprint"]), str(content["direction"]), int(content["num_rows"])
    return SizeCurve(str(path), *facts, points)


def describe_cost(card: IndexCard) -> str | None:
    """Return the cost of an index's size in one line; None: its card has none."""
    cost = card.extra.get(COST)
    if cost is None:
        return None
    found = f"{cost['ndcg']:.3f}{_interval(cost['low'], cost['high'], '.3f')} of {cost['direction']}"
    less = f"{cost['difference']:+.3f}{_interval(cost['difference_low'], cost['difference_high'], '+.3f')}"
    speed = f"{cost['queries_per_second']:,.0f} queries/s of {cost['num_rows']:,} rows"
    return f"nDCG@10 {found}, {less} from whole vectors; {speed}"


def _interval(low: float, high: float, form: str) -> str:
    """Return the ends of an interval; nothing for one of too few queries."""
    return "" if math.isnan(low + high) else f" [{low:{form}}, {high:{form}}]"
