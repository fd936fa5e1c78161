"""The service without the web: named engines, who is answered by which, and what is recorded of it.

Engines (a searcher and its pictures), limits and perhaps an online experiment come in; the routes and the page ask
`answer` and `click`. Every arm of an experiment is an engine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mim_lightning.inference.image_inputs import ImageInputError
from mim_lightning.search.product_images import ProductImages
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import Searcher, SearchResult
from mim_lightning.search.service.limits import Limits, RefusedError, refused_image
from mim_lightning.search.service.recorder import Recorder
from mim_lightning.search.service.telemetry import Telemetry

if TYPE_CHECKING:
    from mim_lightning.online.assignment import Experiment


@dataclass(frozen=True)
class Engine:
    """One model with one index."""

    name: str
    searcher: Searcher
    pictures: ProductImages

    def facts(self) -> dict[str, Any]:
        card = self.searcher.index.card
        names = ("fingerprint", "gallery", "backend", "kind", "num_products", "num_rows", "created")
        return {name: getattr(card, name) for name in names}


@dataclass(frozen=True)
class Answer:
    """Hits of one search, the arm that found them, and the id of the impression if it was recorded."""

    arm: str
    result: SearchResult
    impression_id: str | None
    total_ms: float


class Shopfront:
    """Answers searches.

    Args:
        engines: by name; the first answers whoever is in no experiment.
        experiment: its arms are names of engines; None: nothing is recorded.
    """

    def __init__(
        self, engines: Mapping[str, Engine], limits: Limits, telemetry: Telemetry, experiment: Experiment | None = None
    ) -> None:
        self.engines, self.limits, self.telemetry, self.experiment = dict(engines), limits, telemetry, experiment
        self.recorder = Recorder(experiment, telemetry) if experiment else None
        for name, engine in self.engines.items():
            telemetry.products.labels(name).set(engine.searcher.index.card.num_products)

    def engine(self, name: str | None = None) -> Engine:
        if name is None:
            return next(iter(self.engines.values()))
        if name not in self.engines:
            raise RefusedError(404, f"arm '{name}': there is no such arm; there are {', '.join(self.engines)}")
        return self.engines[name]

    def answer(self, query: SearchQuery, user_key: str | None = None, arm: str | None = None) -> Answer:
        """Search, and record what was shown if the user is in an experiment; no failure to record fails a search.

        Args:
            user_key: what the caller knows the user by; only its salted hash is stored. Without it, or with an `arm`
                asked for by name, nothing is recorded.

        Raises:
            RefusedError: the query goes beyond a limit, or cannot be answered.
        """
        started = time.perf_counter()
        experiment = self.experiment if arm is None else None
        engine = self.engine(experiment.arm_of(user_key) if experiment and user_key else arm)
        query = self._checked(query, engine)
        try:
            result = engine.searcher.search(query)
        except ImageInputError as error:
            raise refused_image(error.position + 1, error.reason, error.__cause__) from error
        except ValueError as error:
            raise RefusedError(400, str(error)) from error
        total_ms = 1e3 * (time.perf_counter() - started)
        self.telemetry.encode.observe(result.encode_ms / 1e3)
        self.telemetry.index.labels(engine.name).observe(result.index_ms / 1e3)
        impression_id = None
        if self.recorder and experiment and user_key:
            shown = [(hit.product_id, hit.score) for hit in result.hits]
            fingerprint = engine.searcher.encoder.fingerprint
            impression_id = self.recorder.record(user_key, engine.name, _kind(query), shown, total_ms, fingerprint)
        return Answer(engine.name, result, impression_id, total_ms)

    def click(self, impression_id: str, product_id: str) -> bool:
        """Record a click; return False for one that was recorded before.

        Raises:
            RefusedError: there is no experiment, no such impression, it did not show the product, or its log fails.
        """
        if self.recorder is None:
            raise RefusedError(404, "click: this service runs no experiment")
        return self.recorder.click(impression_id, product_id)

    def _checked(self, query: SearchQuery, engine: Engine) -> SearchQuery:
        """Return the query with the headers of its images parsed, within the limits."""
        query = replace(query, images=self.limits.check_images(query.images))
        for name in ("text", "not_text"):
            self.limits.check_text(name, getattr(query, name))
        self.limits.check_num_hits(query.num_hits)
        if query.like is not None:
            self.product(query.like, engine.name)
        return query

    def product(self, product_id: str, arm: str | None = None) -> dict[str, Any]:
        """Return what is known of a product.

        Raises:
            RefusedError: the index does not have it.
        """
        try:
            return self.engine(arm).searcher.index.products([product_id])[0]
        except ValueError as error:
            raise RefusedError(404, str(error)) from error


def _kind(query: SearchQuery) -> str:
    has_image = bool(query.images) or query.like is not None
    return "composed" if has_image and query.text else "image" if has_image else "text"
