"""The HTTP API of the search service: routes, forms and responses, described at /docs.

Routes are plain functions: each runs on a thread of its own, where it may wait for the encoder's next batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, File, Form, Request, Response, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from mim_lightning.search.query import SearchQuery
from mim_lightning.search.service.middleware import KEY_HEADER, LimitsMiddleware
from mim_lightning.search.service.request_limits import RefusedError, error_response
from mim_lightning.search.service.search_service import ROUTES, SearchResponse, SearchService
from mim_lightning.search.service.strict_json import is_encodable, read_object

MAX_JSON = 20_000  # characters of `weights` or `where`


class Hit(BaseModel):
    """One product, best first."""

    product_id: str
    score: float = Field(description="cosine of the fused query with the product")
    parts: dict[str, float] = Field(description="contributions of image, text, not_text and like to the score")
    title: str | None
    metadata: dict[str, Any]
    picture: str = Field(description="path of its image, if it has one")
    probability: float | None = Field(description="that it answers the query; null: the index is not calibrated for it")


class Timing(BaseModel):
    """Milliseconds."""

    encode: float
    index: float
    total: float


class SearchOutput(BaseModel):
    arm: str
    impression_id: str | None = Field(description="to be sent with a click; null: nothing was recorded")
    hits: list[Hit]
    has_match: bool | None = Field(description="false: nothing here seems to answer the query; null: not calibrated")
    timing_ms: Timing


class SuggestedPart(BaseModel):
    """A part of a photo, best first."""

    box: tuple[float, float, float, float] = Field(description="left, top, right, bottom, as fractions; for `box`")
    score: float = Field(description="how sure the detector is")
    label: str | None = Field(description="what it takes the thing for, if it knows")


class SuggestOutput(BaseModel):
    boxes: list[SuggestedPart]


class ClickEvent(BaseModel):
    impression_id: str
    product_id: str


class ClickOutput(BaseModel):
    recorded: bool = Field(description="false: it was recorded before")


def make_app(
    service: SearchService,
    api_key: str | None = None,
    has_ui: bool = False,
    is_stopping: Callable[[], bool] = lambda: False,
) -> LimitsMiddleware:
    """Return the whole application: routes, user interface, and the limits in front of both.

    Args:
        service: what serves.
        api_key: required in requests to the routes, and the password of the user interface; None: no key.
        has_ui: mount the user interface at the root.
        is_stopping: see `LimitsMiddleware`.
    """
    app = make_routes(service, has_key=api_key is not None)
    if has_ui:
        from mim_lightning.search.service.ui import mount_ui  # importing Gradio takes seconds

        app = mount_ui(app, service, api_key)
    guarded = tuple(f"/{route}" for route in ROUTES)
    return LimitsMiddleware(app, service.limits, api_key, guarded, service.metrics.observe_request, is_stopping)


def make_routes(service: SearchService, has_key: bool = False) -> FastAPI:
    """Return the routes, without limits; with `has_key`, /docs prompts for the API key."""
    app = FastAPI(
        title="mim_lightning",
        description="Multimodal product search by image, text, or both.",
        version="1",
        dependencies=[Security(APIKeyHeader(name=KEY_HEADER, auto_error=False))] if has_key else None,
    )
    for kind in (RefusedError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _on_error)

    @app.post("/search")
    def search(
        image: Annotated[list[UploadFile], File(description="images of the same item")] = [],  # noqa: B006
        box: Annotated[
            str | None, Form(description="part of the first image, as fractions: left,top,right,bottom")
        ] = None,
        text: Annotated[str | None, Form(description="text of the query")] = None,
        not_text: Annotated[str | None, Form(description="text to avoid")] = None,
        like: Annotated[str | None, Form(description="id of a product to find similar ones of")] = None,
        fields: Annotated[str, Form(description='JSON, texts of declared fields: {"query_category": "mugs"}')] = "{}",
        k: Annotated[int, Form(description="number of products")] = 10,
        weights: Annotated[str, Form(description='JSON, such as {"image": 1, "text": 0.5}')] = "{}",
        where: Annotated[str, Form(description='JSON, such as {"category": "mugs", "price": {"max": 20}}')] = "{}",
        user: Annotated[str | None, Form(description="user key for an experiment; only a hash is stored")] = None,
        arm: Annotated[str | None, Form(description="search this arm; nothing is recorded")] = None,
        query_id: Annotated[str | None, Form(description="your id of the query, where queries are recorded")] = None,
        photo: Annotated[str | None, Form(description="where you keep its photo, where queries are recorded")] = None,
    ) -> SearchOutput:
        """Find products by images, text, another product, or all of them."""
        query = _query(
            images=tuple(upload.file.read() for upload in image),
            box=_box(box) if box else None,
            text=_encodable("text", (text or "").strip()),
            not_text=_encodable("not_text", (not_text or "").strip()),
            like=_encodable("like", like),
            fields=_object("fields", fields),
            num_hits=k,
            weights=_numbers("weights", weights),
            where=_object("where", where) or None,
        )
        own = {"query_id": _encodable("query_id", query_id), "photo": _encodable("photo", photo)}
        return _output(service.search(query, _encodable("user", user), _encodable("arm", arm), **own))

    @app.post("/suggest_boxes")
    def suggest_boxes(image: Annotated[UploadFile, File(description="a photo")]) -> SuggestOutput:
        """Suggest parts of a photo to search for, where the service has a detector."""
        suggested = service.photo_parts.suggest(image.file.read())
        return SuggestOutput(boxes=[SuggestedPart(**vars(one)) for one in suggested])

    @app.get("/products/{product_id:path}/picture", response_class=Response)
    def picture(product_id: str, arm: str | None = None) -> Response:
        """The product's image."""
        data = service.engine(arm).images.read([product_id]).get(product_id)
        if data is None:
            raise RefusedError(404, f"product '{product_id}': no image available")
        kind = "jpeg" if data[:2] == b"\xff\xd8" else "png" if data[:4] == b"\x89PNG" else "webp"
        return Response(data, media_type=f"image/{kind}", headers={"cache-control": "max-age=3600"})

    @app.get("/products/{product_id:path}")
    def product(product_id: str, arm: str | None = None) -> dict[str, Any]:
        """The product's metadata."""
        return service.product(product_id, arm)

    @app.post("/click")
    def click(event: ClickEvent) -> ClickOutput:
        """Record a click on a product of a response."""
        return ClickOutput(recorded=service.click(event.impression_id, event.product_id))

    @app.get("/health")
    def health() -> dict[str, Any]:
        """The indexes and models that serve."""
        return {"status": "ok", "arms": {name: engine.facts() for name, engine in service.engines.items()}}

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.expose(), media_type="text/plain; version=0.0.4")

    return app


def _query(**parts: Any) -> SearchQuery:
    try:
        return SearchQuery(**parts)
    except ValueError as error:
        raise RefusedError(422, str(error)) from error


def _box(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(side) for side in text.strip("[]").split(","))
    except ValueError:
        raise RefusedError(422, "box: give four fractions of the image: left,top,right,bottom") from None


def _encodable(name: str, text: str | None) -> str | None:
    """Return a field's text; the charset that a request gives its form may produce a lone surrogate."""
    if text and not is_encodable(text):
        raise RefusedError(422, f"{name}: contains a lone surrogate")
    return text or None


def _object(name: str, text: str) -> dict[str, Any]:
    if len(text) > MAX_JSON:
        raise RefusedError(413, f"{name}: {len(text):,} characters, at most {MAX_JSON:,} are accepted")
    return read_object(name, text or "{}")


def _numbers(name: str, text: str) -> dict[str, float]:
    value = _object(name, text)
    for key, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise RefusedError(422, f"{name}.{key}: must be a number")
        if isinstance(number, int) and number.bit_length() > 64:  # it may exceed a float
            raise RefusedError(422, f"{name}.{key}: too large")
    return value


def _output(response: SearchResponse) -> SearchOutput:
    result = response.result
    hits = [
        Hit(
            product_id=hit.product_id,
            score=hit.score,
            parts=hit.parts,
            title=hit.metadata.get("title"),
            metadata=hit.metadata,
            probability=hit.probability,
            picture=f"/products/{quote(hit.product_id, safe='')}/picture?arm={quote(response.arm)}",
        )
        for hit in result.hits
    ]
    timing = Timing(encode=result.encode_ms, index=result.index_ms, total=response.total_ms)
    return SearchOutput(
        arm=response.arm, impression_id=response.impression_id, hits=hits, has_match=result.has_match, timing_ms=timing
    )


def _on_error(request: Request, error: Exception) -> Response:
    """Return the response to an error; the server logs those that are bugs."""
    if isinstance(error, RefusedError):
        return error.response()
    if isinstance(error, HTTPException):
        return error_response(error.status_code, str(error.detail), dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return error_response(422, f"{key}: {first['msg']}")
    return error_response(500, "internal error; see the service's log")
