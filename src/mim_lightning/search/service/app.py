"""The search service as a web application: routes, forms and answers, with its OpenAPI page at /docs.

A Shopfront comes in, an ASGI application goes out; the serve door runs it under uvicorn and mounts the page on it.
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
from starlette.types import ASGIApp

from mim_lightning.search.query import SearchQuery
from mim_lightning.search.service.answers import error_answer, refuse
from mim_lightning.search.service.gate import KEY_HEADER, Gate
from mim_lightning.search.service.limits import RefusedError
from mim_lightning.search.service.shopfront import Answer, Shopfront
from mim_lightning.search.service.strict_json import is_encodable, read_object

ROUTES = ("search", "products", "click", "health", "metrics")
GUARDED = tuple(f"/{route}" for route in ROUTES)
MAX_JSON = 20_000  # characters of `weights` or `where`


class Hit(BaseModel):
    """One product, best first."""

    product_id: str
    score: float = Field(description="cosine of the fused query with the product")
    parts: dict[str, float] = Field(description="what image, text, not_text and like add to the score")
    title: str | None
    metadata: dict[str, Any]
    picture: str = Field(description="where its picture is, if it has one")


class Timing(BaseModel):
    """Milliseconds."""

    encode: float
    index: float
    total: float


class SearchAnswer(BaseModel):
    arm: str
    impression_id: str | None = Field(description="to send with a click; null: nothing was recorded")
    hits: list[Hit]
    timing_ms: Timing


class ClickEvent(BaseModel):
    impression_id: str
    product_id: str


class ClickAnswer(BaseModel):
    recorded: bool = Field(description="false: was recorded before")


def make_app(shopfront: Shopfront, has_key: bool = False) -> FastAPI:
    """Return the application with all routes, without the gate (see `behind_gate`).

    Args:
        has_key: the gate will ask for a key, so /docs asks for it too before it tries a route.
    """
    app = FastAPI(
        title="mim_lightning",
        description="Multimodal product search: a photo, a few words, or both.",
        version="1",
        dependencies=[Security(APIKeyHeader(name=KEY_HEADER, auto_error=False))] if has_key else None,
    )
    app.add_exception_handler(RefusedError, _on_refused)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_fault)

    @app.post("/search")
    def search(
        image: Annotated[list[UploadFile], File(description="photos of the same thing")] = [],  # noqa: B006
        text: Annotated[str | None, Form(description="what it should be")] = None,
        not_text: Annotated[str | None, Form(description="what it should not be")] = None,
        like: Annotated[str | None, Form(description="id of a product to go on from")] = None,
        fields: Annotated[str, Form(description='JSON, words for declared fields: {"query_category": "mugs"}')] = "{}",
        k: Annotated[int, Form(description="products wanted")] = 10,
        weights: Annotated[str, Form(description='JSON, such as {"image": 1, "text": 0.5}')] = "{}",
        where: Annotated[str, Form(description='JSON, such as {"category": "mugs", "price": {"max": 20}}')] = "{}",
        user: Annotated[str | None, Form(description="who asks, for an experiment; only a hash is stored")] = None,
        arm: Annotated[str | None, Form(description="ask this arm; nothing is recorded")] = None,
    ) -> SearchAnswer:
        """Find the products that a photo, words, another product, or all of them ask for."""
        query = _query(
            images=tuple(upload.file.read() for upload in image),
            text=_words("text", text),
            not_text=_words("not_text", not_text),
            like=_encodable("like", like),
            fields=_object("fields", fields),
            num_hits=k,
            weights=_numbers("weights", weights),
            where=_object("where", where) or None,
        )
        return _as_answer(shopfront.answer(query, _encodable("user", user), _encodable("arm", arm)))

    @app.get("/products/{product_id:path}/picture", response_class=Response)
    def picture(product_id: str, arm: str | None = None) -> Response:
        """The product's picture."""
        data = shopfront.engine(arm).pictures.read([product_id]).get(product_id)
        if data is None:
            raise RefusedError(404, f"product '{product_id}': has no picture here")
        kind = "jpeg" if data[:2] == b"\xff\xd8" else "png" if data[:4] == b"\x89PNG" else "webp"
        return Response(data, media_type=f"image/{kind}", headers={"cache-control": "max-age=3600"})

    @app.get("/products/{product_id:path}")
    def product(product_id: str, arm: str | None = None) -> dict[str, Any]:
        """What is known of a product."""
        return shopfront.product(product_id, arm)

    @app.post("/click")
    def click(event: ClickEvent) -> ClickAnswer:
        """Record that a product of an answer was clicked."""
        return ClickAnswer(recorded=shopfront.click(event.impression_id, event.product_id))

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Which indexes and models answer."""
        return {"status": "ok", "arms": {name: engine.facts() for name, engine in shopfront.engines.items()}}

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(shopfront.telemetry.expose(), media_type="text/plain; version=0.0.4")

    return app


def behind_gate(
    app: ASGIApp, shopfront: Shopfront, api_key: str | None, is_stopping: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """Put the gate in front of an application and all that is mounted on it."""
    return Gate(app, shopfront.limits, api_key, GUARDED, shopfront.telemetry.observe_request, is_stopping)


def _query(**parts: Any) -> SearchQuery:
    try:
        return SearchQuery(**parts)
    except ValueError as error:
        raise RefusedError(422, str(error)) from error


def _words(name: str, text: str | None) -> str | None:
    return _encodable(name, (text or "").strip())


def _encodable(name: str, text: str | None) -> str | None:
    """Return a field's text; the charset that a request gives its form may make half a surrogate pair."""
    if text and not is_encodable(text):
        raise RefusedError(422, f"{name}: holds half a surrogate pair")
    return text or None


def _object(name: str, text: str) -> dict[str, Any]:
    if len(text) > MAX_JSON:
        raise RefusedError(413, f"{name}: {len(text):,} characters, at most {MAX_JSON:,} are taken")
    return read_object(name, text or "{}")


def _numbers(name: str, text: str) -> dict[str, float]:
    value = _object(name, text)
    for key, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise RefusedError(422, f"{name}.{key}: must be a number")
        if isinstance(number, int) and number.bit_length() > 64:  # more than a float holds, perhaps
            raise RefusedError(422, f"{name}.{key}: too large")
    return value


def _as_answer(answer: Answer) -> SearchAnswer:
    result = answer.result
    hits = [
        Hit(
            product_id=hit.product_id,
            score=hit.score,
            parts=hit.parts,
            title=hit.metadata.get("title"),
            metadata=hit.metadata,
            picture=f"/products/{quote(hit.product_id, safe='')}/picture?arm={quote(answer.arm)}",
        )
        for hit in result.hits
    ]
    timing = Timing(encode=result.encode_ms, index=result.index_ms, total=answer.total_ms)
    return SearchAnswer(arm=answer.arm, impression_id=answer.impression_id, hits=hits, timing_ms=timing)


def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refuse(error)


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_answer(error.status_code, str(error.detail), dict(error.headers or {}))


def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or "request"
    return error_answer(422, f"{place}: {first['msg']}")


def _on_fault(request: Request, error: Exception) -> Response:
    """Answer where nothing else did; whoever runs the application logs the exception, which goes on to them."""
    return error_answer(500, "the service failed; its log says why")
