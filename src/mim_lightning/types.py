"""The nouns that cross rooms: what one stage of the river hands to the next.

Everything here is frozen and knows no vendor but torch. `data` fills Sample and Batch, `model` fills
Embeddings, `losses` fills StepResult, `metrics` fills RetrievalReport; `lit` and the doors pass them on.
Tensor shapes use B rows of a batch, n distinct inputs, R relevant products of a row, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from mim_lightning.fields import QUERY_FIELDS as QUERY_FIELDS
from mim_lightning.fields import QUERY_IMAGE
from mim_lightning.fields import side_of as side_of
from mim_lightning.ids import NO_KEY as NO_KEY
from mim_lightning.ids import id_key as id_key

# --- what an encoder says about its input -------------------------------------------------------------


@dataclass(frozen=True)
class ImageSpec:
    """What an image encoder wants to be given; uint8 RGB comes in, the encoder normalises by itself."""

    size: tuple[int, int]  # height, width in pixels
    interpolation: str = "bilinear"  # "bilinear" or "bicubic"
    crop_fraction: float = 1.0  # share of the resized picture's side that the centre crop keeps
    # "shortest" (then centre crop), "squash" (both sides, no crop), and what timm has besides: "squash_crop" (both
    # sides, then centre crop), "border" (the longer side fits, filled up), "shortest_pad" (fraction over 1, filled up)
    resize_mode: str = "shortest"
    fill: tuple[int, int, int] = (0, 0, 0)  # RGB of what is filled up


Tokenise = Callable[[Sequence[str]], dict[str, Tensor]]
CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class TextSpec:
    """What a text encoder wants to be given: a picklable tokeniser, padding to the longest text of a batch."""

    tokenise: Tokenise
    max_length: int  # tokens
    count: CountTokens | None = None  # tokens of each text before any is cut; None: the tokeniser cannot tell


InputSpec = ImageSpec | TextSpec
TowerSpec = InputSpec | Mapping[str, InputSpec]  # by field where a tower reads several, or one of another name
FieldInput = Tensor | dict[str, Tensor]  # uint8 (n, 3, H, W), or token tensors (n, L) by name
TowerInput = FieldInput | tuple[FieldInput, ...]  # of a tower over several fields: one each, in their order


def fields_of(tower: str, spec: TowerSpec) -> dict[str, InputSpec]:
    """Return what a tower reads, by field."""
    return dict(spec) if isinstance(spec, Mapping) else {tower: spec}


def specs_by_field(specs: Mapping[str, TowerSpec]) -> dict[str, InputSpec]:
    """Return what the towers want of each field; the first one that reads it decides."""
    found: dict[str, InputSpec] = {}
    for tower, spec in specs.items():
        found = fields_of(tower, spec) | found
    return found


# --- data ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One row of a shard set as stored: encoded images and plain text by field; any may be absent.

    `asked_ids` are the products the query (its text, or image and text together) is answered by;
    `shown_ids` those its photo alone shows. They differ only where the text asks for a change.
    """

    sample_num: int  # its number in the set
    inputs: Mapping[str, bytes | str]
    query_id: str | None = None
    product_id: str | None = None
    asked_ids: tuple[str, ...] = ()
    asked_grades: tuple[int, ...] = ()  # how relevant each asked product is, 1 or more; empty: all 1
    shown_ids: tuple[str, ...] = ()
    category: str | None = None
    is_padding: bool = False


@dataclass(frozen=True)
class Batch:
    """B rows, with each distinct input of a tower held once.

    Row b of tower t uses input `rows[t][b]` of `inputs[t]`; -1 says that the row has no such input.
    Ids travel as `id_key` integers, `NO_KEY` where there is none.
    """

    inputs: dict[str, TowerInput]
    rows: dict[str, Tensor]  # (B,) int64 by tower
    sample_nums: Tensor  # (B,) number of the row in its set
    query_keys: Tensor  # (B,)
    product_keys: Tensor  # (B,)
    asked_keys: Tensor  # (B, R)
    asked_grades: Tensor  # (B, R) int64, 1 or more; 0 where there is no key
    shown_keys: Tensor  # (B, R)
    category_keys: Tensor  # (B,)
    is_padding: Tensor  # (B,) bool: repeated to fill up a rank, counts nowhere
    # of evaluation, by field of the queries: (B,) bool, does the row have it, whether a tower reads it or not
    has_field: dict[str, Tensor] = field(default_factory=dict)
    # of evaluation, by image field: (B,) equal where pictures are equal pixel for pixel, NO_KEY without a picture
    picture_keys: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.query_keys)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, function: Callable[[Tensor], Any]) -> Batch:
        """Return the batch with a function applied to every tensor."""
        return Batch(**{f.name: map_tensors(getattr(self, f.name), function) for f in fields(self)})


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    # no inner function: one that calls itself would keep the tensors until the garbage collector comes
    if isinstance(value, dict):
        return {key: map_tensors(part, function) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map_tensors(part, function) for part in value)
    return function(value)


# --- model and losses ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embeddings:
    """Unit-length vectors by tower or fusion name, zero where `present` is False."""

    vectors: dict[str, Tensor]  # (B, D) float32
    present: dict[str, Tensor]  # (B,) bool


@dataclass(frozen=True)
class StepResult:
    """What one training step found out; `loss` carries the gradient, everything else is detached."""

    loss: Tensor
    per_pair: dict[str, Tensor]  # unweighted loss of each pair
    stats: dict[str, Tensor] = field(default_factory=dict)  # logit scale, negatives a row, ...


# --- evaluation ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Direction:
    """A retrieval task: which query vectors rank which gallery vectors, which rows it counts, and what is right.

    Attributes:
        query, gallery: towers or fusions.
        relevance: "asked" or "shown" (see Sample); left out, it is "shown" for the query image alone and "asked" for
            everything else.
        requires: fields that a query must have to be counted, whether `query` reads them or not; left out, what every
            tower of `query` reads, so that a fusion is not averaged over rows that have only a part of it.
        excludes: fields that it must not have.
        leave_out: "shown" takes the products that the query's photo shows (the reference of a composed query) out of
            its gallery, as CIRR and FashionIQ do; say so in the direction's name.
    """

    query: str
    gallery: str
    relevance: str | None = None
    requires: tuple[str, ...] | None = None
    excludes: tuple[str, ...] = ()
    leave_out: str | None = None

    def __post_init__(self) -> None:
        if self.relevance not in (None, "asked", "shown"):
            raise ValueError(f"a direction's relevance is 'asked' or 'shown', not '{self.relevance}'")
        if self.leave_out not in (None, "shown"):
            raise ValueError(f"a direction's leave_out is 'shown' or null, not '{self.leave_out}'")
        for name in ("requires", "excludes"):
            value = getattr(self, name)
            names = () if value is None else value
            if isinstance(names, str) or not all(str(field).startswith("query_") for field in names):
                raise ValueError(f"a direction's {name} is a list of {', '.join(QUERY_FIELDS)}, not {value}")
            object.__setattr__(self, name, None if name == "requires" and value is None else tuple(names))
        if both := {*(self.requires or ())} & {*self.excludes}:
            raise ValueError(f"a direction cannot both require and exclude {', '.join(sorted(both))}")

    @property
    def truth(self) -> str:
        return self.relevance or relevance_of(self.query)

    def parts(self, fusions: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
        """Return the towers of the query side."""
        return tuple(fusions.get(self.query, (self.query,)))

    def reads(self, fusions: Mapping[str, Mapping[str, float]], fields: Mapping[str, Sequence[str]]) -> set[str]:
        """Return the fields that the query side's towers read; `fields` are those of towers that read others than their
        own name says."""
        return {name for tower in self.parts(fusions) for name in fields.get(tower, (tower,))}

    def describe(self, fusions: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """Return which queries it counts, and in which gallery, as plain values: what makes two evaluations alike."""
        return {
            "relevance": self.truth,
            "requires": sorted(self.needs(fusions)),
            "excludes": sorted(self.excludes),
            "leave_out": self.leave_out,
            "photo": {"once_a_truth": {*self.parts(fusions)} == {QUERY_IMAGE}, "not_of_the_gallery": True},
        }

    def needs(self, fusions: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
        """Return what a query must have to be counted; beyond that, some tower of the query side."""
        return self.parts(fusions) if self.requires is None else self.requires


def relevance_of(query_name: str) -> str:
    """Return which products answer this query side: a photo alone is answered by what it shows."""
    return "shown" if query_name == QUERY_IMAGE else "asked"


@dataclass(frozen=True)
class Hits:
    """The best products of each query, best first, in one direction."""

    query_keys: Tensor  # (Q,)
    product_keys: Tensor  # (Q, K), NO_KEY where the gallery is shorter
    scores: Tensor  # (Q, K)
    is_relevant: Tensor  # (Q, K) bool


@dataclass(frozen=True)
class QueryCounts:
    """Which queries of a set a direction counts, by kind, and which it leaves out and why."""

    num_with_words: int  # of those counted
    num_without_words: int
    num_other_kind: int  # lack what the direction requires, or have what it excludes
    num_in_gallery: int  # would answer themselves: their photo is, pixel for pixel, a picture of the gallery
    num_repeated: int  # the same photo with the same truth again, where the direction looks at the photo alone
    photo_truth: str = ""  # "asked" or "shown" where the direction looks at the photo

    def as_counts(self) -> dict[str, int]:
        """Return the numbers by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name.startswith("num_")}


@dataclass(frozen=True)
class RetrievalReport:
    """Retrieval quality of one direction over a whole pass; the one place that knows metric key names.

    Rows of `hits`, `scores`, `ranks` and `unit_keys` are the same queries: those with a relevant product in the
    gallery, ascending by key.
    """

    direction: str
    values: dict[str, float]  # "hit@1" -> 0.61
    intervals: dict[str, tuple[float, float]]  # "hit@1" -> (0.57, 0.65), 95 %; empty where not asked for
    num_queries: int  # with at least one relevant product in the gallery: the ones averaged over
    num_unanswerable: int  # without one: left out of every average
    num_products: int
    hits: Hits
    scores: dict[str, Tensor]  # "hit@1" -> (Q,) float64, nan where a measure says nothing of a query
    ranks: Tensor  # (Q,) int64 of the first relevant product, 1 for the top; 0 where it lies beyond the depth
    unit_keys: Tensor  # (Q,) a relevant product: its queries stand or fall together, intervals resample these
    counts: QueryCounts | None = None

    def as_scalars(self, stage: str) -> dict[str, float]:
        return {f"{stage}/{self.direction}/{name}": value for name, value in self.values.items()}

    def as_intervals(self, stage: str) -> dict[str, float]:
        """Return the ends of every interval that has some, "<stage>/<direction>/<metric>/low" and ".../high"."""
        return {
            f"{stage}/{self.direction}/{name}/{end}": value
            for name, interval in self.intervals.items()
            for end, value in zip(("low", "high"), interval, strict=True)
            if math.isfinite(value)
        }
