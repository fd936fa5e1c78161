"""Types that cross packages: sample -> batch -> embeddings -> loss and retrieval report.

All are frozen and know no vendor but torch. Shapes: B rows of a batch, n distinct inputs of a tower, R relevant
products of a row, D dimension, Q queries, K hits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from mim_lightning.fields import QUERY_FIELDS as QUERY_FIELDS
from mim_lightning.fields import QUERY_IMAGE
from mim_lightning.fields import side_of as side_of
from mim_lightning.ids import NO_KEY as NO_KEY
from mim_lightning.ids import hash_id as hash_id
from mim_lightning.metric_names import sampled_name, width_name

if TYPE_CHECKING:  # importing it takes a second, and processes that prepare data compute nothing
    import torch
    from torch import Tensor

# --- inputs of encoders -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageSpec:
    """Input of an image encoder: uint8 RGB, which the encoder normalizes itself."""

    size: tuple[int, int]  # height, width in pixels
    interpolation: str = "bilinear"  # "bilinear" or "bicubic"
    crop_fraction: float = 1.0  # of the resized image's side, kept by the center crop
    # "shortest" (side, then center crop), "squash" (both sides, no crop), and timm's others: "squash_crop" (both sides,
    # then center crop), "border" (longest side, padded), "shortest_pad" (crop_fraction over 1, padded)
    resize_mode: str = "shortest"
    fill: tuple[int, int, int] = (0, 0, 0)  # RGB of the padding


Tokenize = Callable[[Sequence[str]], "dict[str, Tensor]"]
CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class TextSpec:
    """Input of a text encoder: the tensors of a picklable tokenizer."""

    tokenize: Tokenize
    max_length: int  # tokens
    count: CountTokens | None = None  # tokens of each text before truncation; None: unknown


InputSpec = ImageSpec | TextSpec
TowerSpec = InputSpec | Mapping[str, InputSpec]  # by field if a tower reads several, or one of another name
FieldInput: TypeAlias = "Tensor | dict[str, Tensor]"  # uint8 (n, 3, H, W), or token tensors (n, L) by name
# of a tower over several fields: one each, in their order; of `AnyOf` fields, also (n, F) bool: those that a row has;
# of a frozen encoder also its features, floats (n, width)
TowerInput: TypeAlias = "FieldInput | tuple[FieldInput, ...]"


class AnyOf(dict[str, InputSpec]):
    """The input specs, by field, of a tower that embeds a row with any of several fields."""


def fields_of(tower: str, spec: TowerSpec) -> dict[str, InputSpec]:
    """Return the input specs of a tower by field."""
    if isinstance(spec, AnyOf):
        return spec
    return dict(spec) if isinstance(spec, Mapping) else {tower: spec}


def specs_by_field(specs: Mapping[str, TowerSpec]) -> dict[str, InputSpec]:
    """Return the input spec of each field, that of the first tower which reads it."""
    found: dict[str, InputSpec] = {}
    for tower, spec in specs.items():
        found = fields_of(tower, spec) | found
    return found


# --- data ---------------------------------------------------------------------------------------------

# columns of a training batch: the manifest's `weight`; log of (draws of the row's product / mean over products)
WEIGHT, LOG_FREQUENCY = "weight", "log_frequency"


@dataclass(frozen=True)
class Sample:
    """One row of a shard set as stored: encoded images and plain texts by field; any may be absent.

    `target_ids` are the products that answer the query, `reference_ids` those on its image. They differ if the text
    asks for a change.
    """

    sample_num: int  # in the set
    inputs: Mapping[str, bytes | str]
    query_id: str | None = None
    product_id: str | None = None
    target_ids: tuple[str, ...] = ()
    target_grades: tuple[int, ...] = ()  # relevance of each of `target_ids`, 1 or more; empty: all 1
    reference_ids: tuple[str, ...] = ()
    category: str | None = None
    is_padding: bool = False


@dataclass(frozen=True)
class Batch:
    """B rows, with each distinct input of a tower once.

    Row b of tower t uses input `rows[t][b]` of `inputs[t]`, or none if that is -1. Ids are `hash_id` integers, `NO_KEY`
    if there is none. The last `num_references` rows are no samples but the reference products of the others, without a
    query; the length of the batch does not count them.
    """

    inputs: dict[str, TowerInput]
    rows: dict[str, Tensor]  # (B,) int64 by tower
    sample_nums: Tensor  # (B,) in the set
    query_keys: Tensor  # (B,)
    product_keys: Tensor  # (B,)
    target_keys: Tensor  # (B, R)
    target_grades: Tensor  # (B, R) int64, 1 or more; 0 without a key
    reference_keys: Tensor  # (B, R)
    category_keys: Tensor  # (B,)
    is_padding: Tensor  # (B,) bool: a repeated row that fills a rank's last batch, left out of all metrics
    # evaluation only, by query field: (B,) bool, whether the row has it, even if no tower reads it
    has_field: dict[str, Tensor] = field(default_factory=dict)
    # evaluation only, by image field: (B,) equal if the images are equal pixel by pixel, NO_KEY without an image
    image_keys: dict[str, Tensor] = field(default_factory=dict)
    # training only, what the objective asks for: WEIGHT and LOG_FREQUENCY, (B,) float32
    columns: dict[str, Tensor] = field(default_factory=dict)
    num_references: int = 0  # training only
    # training only, by column of vectors: (B, D) float32 of unit length, zero where the row has none
    vectors: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.query_keys) - self.num_references

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, function: Callable[[Tensor], Any]) -> Batch:
        """Return the batch with a function applied to every tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "num_references"}
        return replace(self, **{name: map_tensors(value, function) for name, value in values.items()})


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to every tensor of nested dicts and tuples."""
    # no inner function: a recursive closure would keep the tensors until the garbage collector runs
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
    """Result of a training step; `loss` has the gradient, everything else is detached."""

    loss: Tensor
    per_pair: dict[str, Tensor]  # unweighted loss of each pair
    stats: dict[str, Tensor] = field(default_factory=dict)  # logit scale, negatives per row, ...


# --- evaluation ---------------------------------------------------------------------------------------


# which products are relevant: those that answer a query, or those on its image; they differ in composed queries
TARGET, REFERENCE = "target", "reference"
STORED_RELEVANCE = {TARGET: "asked", REFERENCE: "shown"}  # as shards, evaluation records and tables name them


@dataclass(frozen=True)
class Direction:
    """A retrieval task: which queries it counts, which vectors rank which, and which products are relevant.

    Attributes:
        query, gallery: towers or fusions.
        relevance: "target" (products that answer the query) or "reference" (products on its image); None: "reference"
            for the query image alone, else "target".
        requires: fields that a query must have to be counted, whether `query` reads them or not; None: those of every
            tower of `query`, so that the average of a fusion, or of a tower over several fields, is over rows with all.
        excludes: fields that it must not have.
        leave_out: "reference" removes the products on the query's image (the reference of a composed query) from its
            gallery, as CIRR and FashionIQ do; say so in the direction's name.
    """

    query: str
    gallery: str
    relevance: str | None = None
    requires: tuple[str, ...] | None = None
    excludes: tuple[str, ...] = ()
    leave_out: str | None = None

    def __post_init__(self) -> None:
        if self.relevance not in (None, TARGET, REFERENCE):
            raise ValueError(f"a direction's relevance is '{TARGET}' or '{REFERENCE}', not '{self.relevance}'")
        if self.leave_out not in (None, REFERENCE):
            raise ValueError(f"a direction's leave_out is '{REFERENCE}' or null, not '{self.leave_out}'")
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

    def parts(self, fusions: Mapping[str, Collection[str]]) -> tuple[str, ...]:
        """Return the towers of the query side."""
        return tuple(fusions.get(self.query, (self.query,)))

    def reads(self, fusions: Mapping[str, Collection[str]], fields: Mapping[str, Sequence[str]]) -> set[str]:
        """Return the fields that the query side's towers read, in `fields` those of towers with a list of their own."""
        return set(self._fields(fusions, fields))

    def _fields(self, fusions: Mapping[str, Collection[str]], fields: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        return tuple(name for tower in self.parts(fusions) for name in fields.get(tower, (tower,)))

    def describe(self, fusions: Mapping[str, Collection[str]], fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Return which queries it counts, and in which gallery, as plain values: equal for comparable evaluations."""
        return {
            "relevance": STORED_RELEVANCE[self.truth],
            "requires": sorted(self.needs(fusions, fields)),
            "excludes": sorted(self.excludes),
            "leave_out": self.leave_out and STORED_RELEVANCE[self.leave_out],
            "photo": {"once_a_truth": self.reads(fusions, fields) == {QUERY_IMAGE}, "not_of_the_gallery": True},
        }

    def needs(self, fusions: Mapping[str, Collection[str]], fields: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Return the fields that a query must have to be counted, besides an input of the query side."""
        return self._fields(fusions, fields) if self.requires is None else self.requires


def relevance_of(query_name: str) -> str:
    """Return which products are relevant to this query side: to an image alone, those on it."""
    return REFERENCE if query_name == QUERY_IMAGE else TARGET


@dataclass(frozen=True)
class Hits:
    """The best products of each query, best first, in one direction."""

    query_keys: Tensor  # (Q,)
    product_keys: Tensor  # (Q, K), NO_KEY if the gallery is shorter
    scores: Tensor  # (Q, K)
    is_relevant: Tensor  # (Q, K) bool


@dataclass(frozen=True)
class QueryCounts:
    """Queries that a direction counts, by kind, and those that it leaves out, by reason."""

    num_with_text: int  # counted, with a text
    num_without_text: int
    num_other_kind: int  # lack a required field, or have an excluded one
    num_in_gallery: int  # would find themselves: their image is, pixel by pixel, one of the gallery
    num_repeated: int  # the same image and relevant products again, of a direction that reads the image alone
    photo_truth: str = ""  # TARGET or REFERENCE if the direction reads the image

    def as_counts(self) -> dict[str, int]:
        """Return the counts by the names that results.json has for them."""
        names = {"num_with_text": "num_with_words", "num_without_text": "num_without_words"}
        return {names.get(f.name, f.name): getattr(self, f.name) for f in fields(self) if f.name.startswith("num_")}


@dataclass(frozen=True)
class RetrievalReport:
    """Retrieval quality of one direction over a whole pass, and the names of its metric keys.

    Rows of `hits`, `scores`, `ranks` and `cluster_keys` are the queries with a relevant product in the gallery,
    ascending by key.
    """

    direction: str
    values: dict[str, float]  # "hit@1" -> 0.61
    intervals: dict[str, tuple[float, float]]  # "hit@1" -> (0.57, 0.65), 95 %; empty if not computed
    num_queries: int  # with a relevant product in the gallery, averaged over
    num_unanswerable: int  # without one, left out of every average
    num_products: int
    hits: Hits
    scores: dict[str, Tensor]  # "hit@1" -> (Q,) float64, nan if a metric is undefined for a query
    ranks: Tensor  # (Q,) int64 of the first relevant product, from 1; 0 if rank > depth
    cluster_keys: Tensor  # (Q,) a relevant product: the cluster of queries that the bootstrap resamples together
    counts: QueryCounts | None = None

    def of_sample(self, num_distractors: int | None) -> RetrievalReport:
        """Return the report with the names that its metrics have if the gallery was sampled."""
        return self._renamed(lambda name: sampled_name(name, num_distractors))

    def at_width(self, width: int) -> RetrievalReport:
        """Return the report with the names that its metrics have if vectors were cut to a width: "hit@1/width_64"."""
        return self._renamed(lambda name: width_name(name, width))

    def _renamed(self, rename: Callable[[str], str]) -> RetrievalReport:
        def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
            return {rename(name): value for name, value in values.items()}

        values, intervals, scores = renamed(self.values), renamed(self.intervals), renamed(self.scores)
        return replace(self, values=values, intervals=intervals, scores=scores)

    def as_scalars(self, stage: str) -> dict[str, float]:
        return {f"{stage}/{self.direction}/{name}": value for name, value in self.values.items()}

    def as_intervals(self, stage: str) -> dict[str, float]:
        """Return the finite ends of every interval, "<stage>/<direction>/<metric>/low" and ".../high"."""
        return {
            f"{stage}/{self.direction}/{name}/{end}": value
            for name, interval in self.intervals.items()
            for end, value in zip(("low", "high"), interval, strict=True)
            if math.isfinite(value)
        }
