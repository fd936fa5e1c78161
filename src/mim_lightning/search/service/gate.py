"""The gate in front of the service: who may ask, how often, how much; and how long every answer took.

An ASGI application goes in, one that refuses comes out. It sees bytes and headers only, before any is parsed.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mim_lightning.search.service.limits import Limits, RateLimit, RefusedError

KEY_HEADER = "X-API-Key"
OPEN_PATHS = ("/health",)  # for whoever watches over the service: no key, no rate
ENDLESS_PATHS = ("/gradio_api/heartbeat/",)  # open as long as somebody looks at the page
LOOK_EVERY = 0.5  # seconds
Observe = Callable[[str, str, int, float], None]  # method, path, status, seconds


class Gate:
    """Refuses requests without the key, too many, or too large.

    Args:
        api_key: wanted in the header `X-API-Key` of requests to `guarded` paths; None: no key.
        guarded: starts of the paths that want it.
        observe: told of every answer.
        is_stopping: is the server waiting for its last answers? Those without an end are ended then.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        api_key: str | None,
        guarded: tuple[str, ...],
        observe: Observe,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.is_stopping = is_stopping
        self.app, self.limits, self.guarded, self.observe = app, limits, guarded, observe
        self.api_key = api_key
        self.rate = RateLimit(limits.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            taken = self._ending(receive) if scope["path"].startswith(ENDLESS_PATHS) else self._counted(receive)
            await self.app(scope, taken, note_status)
        except RefusedError as refusal:
            await refuse(refusal)(scope, receive, note_status)
        finally:
            self.observe(scope["method"], scope["path"], status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if path in OPEN_PATHS:
            return
        if self.api_key is not None and path.startswith(self.guarded):
            given = headers.get(KEY_HEADER, "")
            if not hmac.compare_digest(given.encode("latin-1"), self.api_key.encode()):
                raise RefusedError(401, f"the header {KEY_HEADER} is missing or wrong")
        if scope["method"] == "POST":
            self.rate.take(scope["client"][0] if scope.get("client") else "unknown")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.limits.upload_bytes:
            raise RefusedError(413, self._too_large(int(length)))

    def _counted(self, receive: Receive) -> Receive:
        """Count a body as it comes: a length that is announced need not be true."""
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.limits.upload_bytes:
                raise HTTPException(413, self._too_large(total))  # what the parser of forms lets through
            return message

        return counted

    def _ending(self, receive: Receive) -> Receive:
        """Tell an endless answer that its client has gone, as soon as the server stops."""

        async def ending() -> Message:
            message = asyncio.ensure_future(receive())
            try:
                while not (await asyncio.wait([message], timeout=LOOK_EVERY))[0]:
                    if self.is_stopping():
                        return {"type": "http.disconnect"}
                return message.result()
            finally:
                message.cancel()

        return ending

    def _too_large(self, size: int) -> str:
        return f"the request has {size:,} bytes or more, at most {self.limits.upload_bytes:,} are taken"


def refuse(refusal: RefusedError) -> JSONResponse:
    """Return the answer to a refused request: {"error": one line}."""
    headers = {"retry-after": str(math.ceil(refusal.retry_after))} if refusal.retry_after is not None else None
    return JSONResponse({"error": refusal.message}, refusal.status, headers)
