"""The search service without the web: named engines, which of them serves whom, and what is recorded of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.inference.detector import Detector
from mim_lightning.inference.image_inputs import ImageInputError
from mim_lightning.search.product_images import ProductImages
from mim_lightning.search.query import SearchQuery, drop_null_weights
from mim_lightning.search.searcher import Searcher, SearchResult, open_searcher
from mim_lightning.search.service.batching import BatchingEncoder
from mim_lightning.search.service.photo_parts import PhotoParts
from mim_lightning.search.service.prometheus import ServiceMetrics
from mim_lightning.search.service.query_photos import QueryPhotos, is_row, parts_of
from mim_lightning.search.service.recorder import Recorder
from mim_lightning.search.service.request_limits import Limits, PixelBudget, RefusedError, refused_image

if TYPE_CHECKING:
    from mim_lightning.online.assignment import Experiment
    from mim_lightning.online.events import AskedQuery


ROUTES = ("search", "suggest_boxes", "products", "click", "health", "metrics")  # of the HTTP API
DEFAULT_ARM = "control"


@dataclass(frozen=True)
class Engine:
    """One model with one index; each arm of an experiment is an engine."""

    name: str
    searcher: Searcher
    images: ProductImages

    def facts(self) -> dict[str, Any]:
        card = self.searcher.index.card
        names = ("fingerprint", "gallery", "backend", "kind", "num_products", "num_rows", "created")
        return {name: getattr(card, name) for name in names}


@dataclass(frozen=True)
class SearchResponse:
    """The result of one search, the arm that served it, and the id of the impression if it was recorded."""

    arm: str
    result: SearchResult
    impression_id: str | None
    total_ms: float


class SearchService:
    """Serves searches within limits.

    Args:
        engines: by name; the first serves users outside an experiment.
        experiment: its arms are names of engines; None: nothing is recorded.
        photos: where photos of recorded queries are stored; None: nowhere.
        budget: bounds the pixels that are decoded at once; None: as `limits` say.
        detector: suggests parts of photos; None: none is suggested.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        limits: Limits,
        metrics: ServiceMetrics,
        experiment: Experiment | None = None,
        photos: QueryPhotos | None = None,
        budget: PixelBudget | None = None,
        detector: Detector | None = None,
    ) -> None:
        self.photos = photos
        self.photo_parts = PhotoParts(limits, budget or PixelBudget(limits.pixels_in_work), detector)
        self.engines, self.limits, self.metrics, self.experiment = dict(engines), limits, metrics, experiment
        self.recorder = Recorder(experiment, metrics) if experiment else None
        for name, engine in self.engines.items():
            metrics.products.labels(name).set(engine.searcher.index.card.num_products)

    def engine(self, name: str | None = None) -> Engine:
        """Return the engine of an arm; None: the first.

        Raises:
            RefusedError: no such arm.
        """
        if name is None:
            return next(iter(self.engines.values()))
        if name not in self.engines:
            raise RefusedError(404, f"arm '{name}': no such arm; choose one of {', '.join(self.engines)}")
        return self.engines[name]

    def search(
        self,
        query: SearchQuery,
        user_key: str | None = None,
        arm: str | None = None,
        query_id: str | None = None,
        photo: str | None = None,
    ) -> SearchResponse:
        """Search, and record the impression if the user is in an experiment; a failure to record fails no search.

        Args:
            user_key: identifies the user to the caller; only its salted hash is stored. Without it, or with an `arm`
                chosen by name, nothing is recorded.
            query_id, photo: the caller's id of the query, and path or URL of its photo, recorded where the experiment
                records queries.

        Raises:
            RefusedError: the query exceeds a limit, or is invalid.
        """
        start = time.perf_counter()
        experiment = self.experiment if arm is None else None
        engine = self.engine(experiment.arm_of(user_key) if experiment and user_key else arm)
        query = self._checked(query, engine)
        for name, text in (("query_id", query_id), ("photo", photo)):
            self.limits.check_text(name, text)
        try:
            result = engine.searcher.search(query)
        except ImageInputError as error:
            raise refused_image(error.position + 1, error.reason, error.__cause__) from error
        except ValueError as error:
            raise RefusedError(400, str(error)) from error
        total_ms = 1e3 * (time.perf_counter() - start)
        self.metrics.encode.observe(result.encode_ms / 1e3)
        self.metrics.index.labels(engine.name).observe(result.index_ms / 1e3)
        impression_id = None
        if self.recorder and experiment and user_key:
            shown = [(hit.product_id, hit.score) for hit in result.hits]
            facts = user_key, engine.name, _kind(query), shown, total_ms, engine.searcher.encoder.fingerprint
            asked = self._asked(experiment, query, query_id, photo) if experiment.records_queries else None
            impression_id = self.recorder.record(engine.name, lambda: experiment.record(*facts, asked))
        return SearchResponse(engine.name, result, impression_id, total_ms)

    def _asked(self, experiment: Experiment, query: SearchQuery, query_id: str | None, photo: str | None) -> AskedQuery:
        """Return what is recorded of a query: its id alone where a row of queries cannot say all of it."""
        parts = parts_of(query)
        if not is_row(query):
            return experiment.asked(parts, query_id, None, None)
        stored = photo if query.images and query.box is None else None  # the caller's photo is that of the whole image
        if not stored and query.images and self.photos:
            stored = self.photos.store(query.images[0], query.box)
        return experiment.asked(parts, query_id, query.text or None, stored or None)

    def click(self, impression_id: str, product_id: str) -> bool:
        """Record a click; return False for one that was recorded before.

        Raises:
            RefusedError: no experiment, no such impression, it did not show the product, or the event log fails.
        """
        if self.recorder is None:
            raise RefusedError(404, "click: this service runs no experiment")
        return self.recorder.click(impression_id, product_id)

    def product(self, product_id: str, arm: str | None = None) -> dict[str, Any]:
        """Return the index's columns of a product.

        Raises:
            RefusedError: no such product.
        """
        try:
            return self.engine(arm).searcher.index.products([product_id])[0]
        except ValueError as error:
            raise RefusedError(404, str(error)) from error

    def _checked(self, query: SearchQuery, engine: Engine) -> SearchQuery:
        """Return the query with the headers of its images parsed, within the limits."""
        query = replace(query, images=self.limits.check_images(query.images))
        texts = {"text": query.text, "not_text": query.not_text}
        texts |= {f"fields.{name}": text for name, text in query.fields.items()}
        for name, text in texts.items():
            self.limits.check_text(name, text)
        self.limits.check_num_hits(query.num_hits)
        if query.like is not None:
            self.product(query.like, engine.name)
        return query


def open_service(
    config: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    limits: Limits,
    experiment: Experiment | None = None,
    photos: Path | None = None,
    detector: Detector | None = None,
) -> SearchService:
    """Open the engines of all arms; `config` is that of conf/serve.yaml, `photos` the folder of stored photos.

    Raises:
        ValueError: an index or model is missing, damaged, or not of each other.
    """
    metrics, budget = ServiceMetrics(ROUTES), PixelBudget(limits.pixels_in_work)
    encoder = partial(
        BatchingEncoder,
        max_batch_size=config["max_batch_size"],
        on_batch=metrics.observe_batch,
        budget=budget,
    )
    options = {key: config[key] for key in ("device", "precision", "runtime")}
    engines = {}
    for name, arm in arms.items():
        searcher = open_searcher(arm["index"], arm["checkpoint"], drop_null_weights(arm["weights"]), encoder, **options)
        engines[name] = Engine(name, searcher, ProductImages(searcher.index.card))
    stored = None if photos is None else QueryPhotos(photos, budget)
    return SearchService(engines, limits, metrics, experiment, stored, budget, detector)


def read_arms(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every arm with all of its settings, `control` first.

    Raises:
        ValueError: an arm has an unknown key.
    """
    own = {key: config[key] for key in ("index", "checkpoint", "weights", "traffic_fraction")}
    arms = {DEFAULT_ARM: own}
    for name, arm in (config["arms"] or {}).items():
        unknown = sorted(set(arm or {}) - set(own))
        if unknown:
            raise ValueError(f"arms.{name}.{unknown[0]}: no such key; an arm has {', '.join(own)}")
        if arm is not None:
            arms[name] = {**own, "traffic_fraction": 1, **arm, "weights": {**own["weights"], **arm.get("weights", {})}}
            if "index" in arm and "checkpoint" not in arm:
                arms[name]["checkpoint"] = None  # another index has its own model
    return arms


def _kind(query: SearchQuery) -> str:
    has_image = bool(query.images) or query.like is not None
    return "composed" if has_image and query.text else "image" if has_image else "text"
