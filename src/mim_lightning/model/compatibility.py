"""Queries of a model against product vectors that a former model made: whether it may search an index of those.

A matcher with the query towers of the one and the product towers of the other embeds both; beside them it has the
former's query towers, as `query_former_...`, so that one pass ranks the same gallery for both. What was measured goes
into the checkpoint. A pair of models is allowed by the criterion of backward-compatible training (Shen et al. 2020,
arXiv 2003.11942, eq. 4): queries of the new model find at least as much in the former's gallery as the former's own;
and in no direction clearly less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mim_lightning.fields import PRODUCT, QUERY, QUERY_IMAGE, side_of
from mim_lightning.model.fusion import MEAN, Fusion
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from mim_lightning.types import Direction

FORMER = "former"
METRIC = "hit@1"
MIN_QUERIES = 50  # fewer say nothing of two models


@dataclass(frozen=True)
class CrossResult:
    """A metric of one direction in a former model's gallery, of the new model's queries and of the former's own."""

    direction: str
    query: str  # side of the new model
    gallery: str  # side of the former
    metric: str
    value: float
    former: float
    low: float  # 95 % interval of the difference, paired by query; nan of too few products
    high: float
    num_queries: int
    data: str
    split: str

    @property
    def objection(self) -> str:
        """Why the new model may not search an index of the gallery; empty if it may."""
        if self.num_queries < MIN_QUERIES:
            return f"fewer than {MIN_QUERIES} queries were measured"
        if self.metric != METRIC:
            return "a sample of the gallery was ranked, not the whole"
        if not math.isfinite(self.low):
            return "too few products were measured for an interval"
        if self.former <= 0:
            return "the former model finds nothing there either"
        return "" if self.value >= self.former else "its queries find less there"

    @property
    def is_allowed(self) -> bool:
        return not self.objection

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f", difference in [{self.low:+.4f}, {self.high:+.4f}]"
        return (
            f"{self.direction}: {self.metric} {self.value:.4f} in the former gallery, its own model's "
            f"{self.former:.4f}{interval}, {self.num_queries:,} queries of {self.data}/{self.split}"
        )


Galleries = Mapping[str, tuple[CrossResult, ...]]  # by fingerprint of the former model


def deciding_result(results: Iterable[CrossResult], gallery: str) -> CrossResult | None:
    """Return the result that decides about an index of a gallery: that of the most queries, of the fusion first.

    A direction that clearly finds less, its whole interval below 0, comes before all others: no kind of query may lose.
    """
    found = [result for result in results if result.gallery == gallery]
    found = [result for result in found if result.high < 0] or found
    return max(found, key=lambda result: (result.num_queries, result.query == QUERY), default=None)


def parse_galleries(content: Any) -> dict[str, tuple[CrossResult, ...]]:
    """Return what `describe_galleries` wrote.

    Raises:
        ValueError, TypeError: it is something else.
    """
    found = {str(name): tuple(CrossResult(**result) for result in results) for name, results in (content or {}).items()}
    for result in (result for results in found.values() for result in results):
        values = result.value, result.former, result.low, result.high
        if not all(isinstance(number, float) for number in values) or type(result.num_queries) is not int:
            raise ValueError("galleries: holds no numbers")
        if not all(isinstance(text, str) for text in (result.direction, result.query, result.gallery, result.metric)):
            raise ValueError("galleries: holds no names")
    return found


def describe_galleries(galleries: Galleries) -> dict[str, list[dict[str, Any]]]:
    """Return plain containers."""
    return {name: [asdict(result) for result in results] for name, results in galleries.items()}


def former_name(name: str) -> str:
    """Return the name that a query tower or fusion of the former model has here."""
    return name.replace(QUERY, f"{QUERY}_{FORMER}", 1)


def join_models(new: Matcher, former: Matcher) -> Matcher:
    """Return a matcher of the new model's query towers and the former's product towers, and its query towers beside.

    Raises:
        ValueError: their vectors have different dimensions.
    """
    if new.dimension != former.dimension:
        raise ValueError(
            f"gallery_checkpoint: its vectors have {former.dimension} dimensions, the model's {new.dimension}: they "
            "cannot be compared"
        )
    parts = _Parts(new.dimension)
    parts.take(new, QUERY, str)
    parts.take(former, PRODUCT, str)
    parts.take(former, QUERY, former_name)
    configs = {name: fusion.describe() for name, fusion in parts.fusions.items()}
    joined = Matcher(parts.towers, parts.tied, configs, parts.fields, parts.prompts)
    for fusion in parts.fusions.values():
        joined.replace_fusion(fusion)
    return joined.eval()


class _Parts:
    """Towers and fusions of several models under names that differ."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.towers: dict[str, Tower] = {}
        self.tied: dict[str, str] = {}
        self.fusions: dict[str, Fusion] = {}
        self.fields: dict[str, tuple[str, ...]] = {}
        self.prompts: dict[str, str] = {}

    def take(self, model: Matcher, side: str, rename: Callable[[str], str]) -> None:
        owners: dict[str, str] = {}
        for name in (name for name in model.tower_names if side_of(name) == side):
            here, owner = rename(name), model.owner_of[name]
            if owner in owners:
                self.tied[here] = owners[owner]
            else:
                self.towers[here], owners[owner] = model.tower(owner), here
            self.fields[here] = model.fields.get(name, (name,))
            self.prompts[here] = model.prompts.get(name, "")
        for name, fusion in model.fusions.items():
            if side_of(name) == side:
                self.fusions[rename(name)] = self._renamed(fusion, rename)

    def _renamed(self, fusion: Fusion, rename: Callable[[str], str]) -> Fusion:
        config = {rename(key) if key in [*fusion] else key: value for key, value in fusion.describe().items()}
        renamed = Fusion(rename(fusion.name), config, self.dimension)
        state = {_rename_part(key, rename): value for key, value in fusion.state_dict().items()}
        renamed.load_state_dict(state)
        return renamed.eval()


def _rename_part(key: str, rename: Callable[[str], str]) -> str:
    """Return the name of a fusion's tensor with that of its tower replaced, if it has one."""
    for start in ("log_weights.", MEAN):
        if key.startswith(start):
            return start + rename(key.removeprefix(start))
    return key


def cross_directions(directions: Mapping[str, Mapping[str, Any] | None], joined: Matcher) -> dict[str, dict[str, Any]]:
    """Return the directions of a joined matcher, and for each one `<name>_former`, by the query of the former model.

    The former's queries are its side of the same name, or its fusion `query`, or its tower of the image; they count the
    same queries, as far as they have inputs for them.
    """
    found: dict[str, dict[str, Any]] = {}
    fusions = {name: [*fusion] for name, fusion in joined.fusions.items()}
    for name, ends in directions.items():
        if ends is None or not {ends["query"], ends["gallery"]} <= {*joined.names}:
            continue
        found[name] = dict(ends)
        direction = Direction(**ends)
        sides = (former_name(side) for side in (direction.query, QUERY, QUERY_IMAGE))
        side = next((side for side in sides if side in joined.names), None)
        if side is not None:
            found[f"{name}_{FORMER}"] = {
                "query": side,
                "gallery": direction.gallery,
                "relevance": direction.truth,
                "requires": list(direction.needs(fusions, joined.fields)),
                "excludes": list(direction.excludes),
                "leave_out": direction.leave_out,
            }
    if not found:
        raise ValueError("gallery_checkpoint: has no product tower or fusion that a direction of the model ranks")
    return found
