"""Search an index with the model it was built with: encode the query, combine its parts, rank, explain the scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch

from mim_lightning.artifact_paths import is_address
from mim_lightning.fields import QUERY, QUERY_IMAGE, QUERY_TEXT
from mim_lightning.inference.hub import is_hub_path
from mim_lightning.inference.loading import load
from mim_lightning.inference.model import LoadedModel
from mim_lightning.inference.quantization import base_fingerprint
from mim_lightning.io.file_name import validate_file_name, validate_inside
from mim_lightning.model.compatibility import Galleries, deciding_result
from mim_lightning.model.fusion import GATE, Fusion, Fusions, weights_of
from mim_lightning.search.calibration import kind_of, read_calibrations
from mim_lightning.search.combined_scores import NUM_CANDIDATES, REFERENCE, combine_scores
from mim_lightning.search.golden_samples import read_golden_samples, verify_golden_samples
from mim_lightning.search.index.card import IndexCard
from mim_lightning.search.index.factory import open_index
from mim_lightning.search.index.interface import ProductIndex
from mim_lightning.search.query import QueryVector, SearchQuery, combine, mean_direction, validate_weights

PART_OF = {QUERY_IMAGE: "image", QUERY_TEXT: "text"}  # tower -> part of a query; others go by their own name
DEFAULT_WEIGHTS = {"image": 1.0, "text": 1.0, "not_text": 0.5, "like": 1.0}
MODEL, GOLDEN_SAMPLES = "model", "canaries"  # keys of the card's `extra`: path of the model, name of the file


class QueryEncoder(Protocol):
    """What a search needs of a model."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def fusions(self) -> Fusions: ...

    @property
    def reads_together(self) -> bool: ...

    def embed_parts(
        self, images: Sequence[Any], texts: Sequence[str], towers: Sequence[str | None], image_text: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class SearchHit:
    """A product, its score, what each part of the query adds, its record.

    The score is the inner product with the unit-length query, or as the model's fusions combine those of the parts; of
    a product of scores `parts` has the factors. The probability that it answers the query is known where the index is
    calibrated for such queries.
    """

    product_id: str
    score: float
    parts: dict[str, float]
    metadata: dict[str, Any]
    probability: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first, equal scores by product id; and the time of each stage."""

    hits: tuple[SearchHit, ...]
    encode_ms: float
    index_ms: float
    num_candidates: int = 0  # of each pair of parts, whose scores were combined; 0: every row was ranked
    has_match: bool | None = None  # whether the index seems to have an answer; None: it is not calibrated for the query


class Searcher:
    """A model and an index built with it.

    Args:
        weights: default weights of the query's parts; those not given are the model's `query` fusion, then
            `DEFAULT_WEIGHTS`.
        galleries: of former models, whose indexes the model may search if it finds enough there.

    Raises:
        ValueError: the index was built with another model (names both); an invalid weight.
    """

    def __init__(
        self,
        encoder: QueryEncoder,
        index: ProductIndex,
        weights: Mapping[str, float] | None = None,
        galleries: Galleries = MappingProxyType({}),
    ) -> None:
        is_own = is_own_index(encoder.fingerprint, index.card)
        if not is_own:
            _validate_former(encoder, index.card, galleries)
        self.encoder, self.index = encoder, index
        fused = encoder.fusions.get(QUERY, {})
        self.fusion = fused if isinstance(fused, Fusion) else None
        self.combined = combine_scores(index, encoder.fusions, QUERY) if is_own else None
        own = {PART_OF.get(tower, tower): weight for tower, weight in weights_of(fused).items()}
        validate_weights(weights or {}, tuple(own))
        self.weights = {**DEFAULT_WEIGHTS, **own, **(weights or {})}
        self.calibrations = {} if weights else read_calibrations(index.card, base_fingerprint(encoder.fingerprint))

    def search(self, query: SearchQuery) -> SearchResult:
        """Return the best products for a query.

        Raises:
            ValueError: an unreadable image, a model without a text tower, a `like` or `where` unknown to the index.
        """
        started = time.perf_counter()
        vector = self.encode(query)
        encoded = time.perf_counter()
        hits = self.find(vector, query)
        num_candidates = 0 if self.combined is None else max(NUM_CANDIDATES, query.num_hits)
        times = 1e3 * (encoded - started), 1e3 * (time.perf_counter() - encoded)
        calibration = self.calibrations.get(kind_of(query) or "")
        if calibration is None:
            return SearchResult(hits, *times, num_candidates)
        hits = tuple(replace(hit, probability=calibration.probability(hit.score)) for hit in hits)
        has_match = bool(hits) and hits[0].score >= calibration.threshold
        return SearchResult(hits, *times, num_candidates, has_match)

    def encode(self, query: SearchQuery) -> QueryVector:
        """Return the parts of a query and their sum, without searching.

        A model whose tower reads image and text together embeds them so, unless they are given different weights.
        """
        parts: dict[str, np.ndarray] = {}
        weights = {**dict.fromkeys(query.fields, 1.0), **self.weights, **query.weights}
        weights["image_text"] = weights["image"]
        is_one = self.encoder.reads_together and query.images and weights["image"] == weights["text"]
        image_text = query.text if is_one else None
        texts = {name: text for name in ("text", "not_text") if (text := getattr(query, name))}
        if image_text:
            del texts["text"]
        towers = [None] * len(texts) + list(query.fields)
        texts |= query.fields
        together = {"image_text": image_text} if image_text else {}
        images_ND, texts_MD = self.encoder.embed_parts(query.boxed_images, list(texts.values()), towers, **together)
        if query.images:
            parts["image_text" if image_text else "image"] = mean_direction(images_ND)
        parts |= dict(zip(texts, texts_MD, strict=True))
        if self.fusion is not None:
            parts = self._center(parts, self.fusion)
            weights |= self._gate(parts, weights, self.fusion)
        parts = self._cut(parts, is_normalized=self.combined is not None or query.like is not None)
        if self.combined is not None:  # the same vector against each of a product's
            parts = {name: np.tile(part_D, self.combined.num_blocks) for name, part_D in parts.items()}
        if query.like is not None:
            like_D = mean_direction(self.index.vectors_of(query.like))
            parts["like"] = like_D if self.combined is None else self.combined.normalize(like_D)
        return combine(parts, weights)

    def _cut(self, parts: dict[str, np.ndarray], is_normalized: bool) -> dict[str, np.ndarray]:
        """Return the parts in the dimension of the index, so that their sum is the sum of the whole ones, cut.

        Args:
            is_normalized: each at unit length again: where they are compared alone, or added to a product's vector.
        """
        if not self.index.card.full_dimension:
            return parts
        cut = {name: part_D[: self.index.card.dimension] for name, part_D in parts.items()}
        lengths = {name: float(np.linalg.norm(part_D)) if is_normalized else 1.0 for name, part_D in cut.items()}
        return {name: part_D / max(lengths[name], 1e-12) for name, part_D in cut.items()}

    def _center(self, parts: dict[str, np.ndarray], fusion: Fusion) -> dict[str, np.ndarray]:
        tower_of = {"not_text": QUERY_TEXT, **{PART_OF.get(tower, tower): tower for tower in fusion}}
        centered = dict(parts)
        for name in parts.keys() & tower_of.keys() if fusion.center else ():
            if tower_of[name] in fusion:
                difference_D = parts[name] - fusion.mean_of(tower_of[name]).numpy()
                centered[name] = difference_D / max(float(np.linalg.norm(difference_D)), 1e-12)
        return centered

    def _gate(self, parts: Mapping[str, np.ndarray], weights: Mapping[str, float], fusion: Fusion) -> dict[str, float]:
        """Return the weights that a gate gives to the parts of this query, times what the given ones differ by."""
        tower_of = {PART_OF.get(tower, tower): tower for tower in fusion}
        found = {tower_of[name]: part_D for name, part_D in parts.items() if name in tower_of}
        if fusion.kind != GATE or not found:
            return {}
        vectors = {tower: torch.from_numpy(part_D[None].astype(np.float32)) for tower, part_D in found.items()}
        present = {tower: torch.ones(1, dtype=torch.bool) for tower in found}
        with torch.inference_mode():
            rows_1P = fusion.row_weights(vectors, present)
        gated = dict(zip(sorted(fusion), rows_1P[0].tolist(), strict=True))
        total = sum(fusion.weights.values())  # so that parts beside the fusion keep their share
        return {
            name: total * gated[tower] * weights[name] / fusion.weights[tower]
            for name, tower in tower_of.items()
            if tower in found
        }

    def find(self, vector: QueryVector, query: SearchQuery) -> tuple[SearchHit, ...]:
        """Return the hits of an encoded query, without the product that similar ones are searched for."""
        num_wanted = query.num_hits + (query.like is not None)
        if self.combined is not None:
            found = self.combined.find(vector, num_wanted, query.where)
            best = [hit for hit in found if hit.product_id != query.like][: query.num_hits]
            records = self.index.products([hit.product_id for hit in best])
            return tuple(
                SearchHit(hit.product_id, hit.score, hit.parts, record)
                for hit, record in zip(best, records, strict=True)
            )
        results = self.index.search(vector.vector[None], num_wanted, query.where, with_vectors=True)
        assert results.vectors is not None
        ids = results.product_ids[0].tolist()
        rows = [row for row, product_id in enumerate(ids) if product_id and product_id != query.like][: query.num_hits]
        records = self.index.products([ids[row] for row in rows])
        return tuple(
            SearchHit(ids[row], float(results.scores[0][row]), vector.contributions(results.vectors[0][row]), record)
            for row, record in zip(rows, records, strict=True)
        )


def open_searcher(
    place: str,
    checkpoint: str | None = None,
    weights: Mapping[str, float] | None = None,
    encoder: Callable[[LoadedModel], QueryEncoder] = lambda model: model,
    **options: Any,
) -> Searcher:
    """Open an index and its model, and verify that they still match.

    Args:
        place: folder, or Milvus address.
        checkpoint: where the model is; None: where it was when the index was built.
        weights: default weights of the query's parts, instead of the model's.
        encoder: returns an encoder between searches and model, such as one that batches.
        options: `device` and `precision` of the model.

    Raises:
        ValueError: index or model are missing, damaged, or do not match; or the golden samples get other vectors.
    """
    index = open_index(place)
    model = load(checkpoint or _model_path(index, place), like=index.card.fingerprint, **options)
    searcher = Searcher(encoder(model), index, weights, model.galleries)
    # search once: on first use, libraries load parts of themselves for seconds
    width = index.card.dimension
    unit_vector = np.full((1, width), width**-0.5, dtype=np.float32)
    results = index.search(unit_vector, 1, with_vectors=True)
    index.products([str(product_id) for product_id in results.product_ids[0] if product_id])
    name = index.card.extra.get(GOLDEN_SAMPLES)
    # of another model's index the samples are of vectors that this one does not make
    if name and not is_address(place) and is_own_index(model.fingerprint, index.card):
        path = Path(place) / validate_file_name(name, f"{place}: {GOLDEN_SAMPLES}")
        verify_golden_samples(model, read_golden_samples(validate_inside(Path(place), path) if path.exists() else path))
    return searcher


def is_own_index(fingerprint: str, card: IndexCard) -> bool:
    """Return whether a model built an index; quantized weights count as the same, as they give nearly its vectors."""
    return base_fingerprint(fingerprint) == base_fingerprint(card.fingerprint)


def _validate_former(encoder: QueryEncoder, card: IndexCard, galleries: Galleries) -> None:
    """Raise ValueError unless a model was measured to find as much in another's index as that one does."""
    fingerprint, query = encoder.fingerprint, encoder.fusions.get(QUERY)
    result = deciding_result(galleries.get(base_fingerprint(card.fingerprint), ()), card.gallery)
    if result is not None and result.is_allowed:
        if card.full_dimension:
            raise ValueError(
                f"the index was built with model {card.fingerprint} and has {card.dimension} of its "
                f"{card.full_dimension} dimensions, but this model, {fingerprint}, was measured in all of them; give "
                "an index built without dimension=, or the model it was built with"
            )
        if REFERENCE in card.extra or (isinstance(query, Fusion) and not query.needs_one_vector):
            raise ValueError(
                f"the index was built with model {card.fingerprint}, this is {fingerprint}: a fusion of kind "
                "standardized_sum or score_product ranks only in an index of its own model"
            )
        return
    why = (
        f"measured, {result.objection} ({result})"
        if result is not None
        else "or, where its queries were trained to search that index, measure them first: evaluate checkpoint=<this "
        "model> gallery_checkpoint=<the model of the index>"
    )
    raise ValueError(
        f"the index was built with model {card.fingerprint}, this is {fingerprint}; give the model it was built with, "
        f"or rebuild the index; {why}"
    )


def _model_path(index: ProductIndex, place: str) -> str:
    path = index.card.extra.get(MODEL)
    if path is None or not (is_hub_path(path) or Path(path).exists()):
        fingerprint = index.card.fingerprint
        raise ValueError(f"{place}: its model {fingerprint} is not at {path}; give checkpoint=<where it is now>")
    return str(path)
