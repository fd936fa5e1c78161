"""ASGI middleware that checks key, rate and size of requests before they are parsed, and measures every response."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections import Counter
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mim_lightning.search.service.connections import client_of
from mim_lightning.search.service.request_limits import Limits, RateLimit, RefusedError, error_response

KEY_HEADER = "X-API-Key"
OPEN_PATHS = ("/health",)  # for monitoring: no key, no rate
ENDLESS_PATHS = ("/gradio_api/heartbeat/",)  # open as long as a browser shows the page
CHECK_SECONDS = 0.5
LOG = logging.getLogger(__name__)


class LimitsMiddleware:
    """Refuses requests that lack the key, come too often or are too large.

    Args:
        api_key: required in the header `X-API-Key` of requests to `guarded` paths; None: no key.
        guarded: prefixes of the paths that require it.
        observe: called with method, path, status and seconds of every response.
        is_stopping: whether the server waits for its last responses; endless ones are ended then.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        api_key: str | None,
        guarded: tuple[str, ...],
        observe: Callable[[str, str, int, float], None],
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app, self.limits, self.api_key, self.guarded = app, limits, api_key, guarded
        self.observe, self.is_stopping = observe, is_stopping
        self.rate = RateLimit(limits.requests_per_minute)
        self.num_running: Counter[str] = Counter()  # requests, by client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, has_begun = time.perf_counter(), 500, False

        async def note_status(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
            await send(message)

        client = client_of(scope)
        self.num_running[client] += 1
        try:
            self._check(scope, client)
            is_endless = scope["path"].startswith(ENDLESS_PATHS)
            body = self._until_stopping(receive) if is_endless else self._counted(receive)
            await self.app(scope, body, note_status)
        except RefusedError as refusal:
            await refusal.response()(scope, receive, note_status)
        except Exception:  # a bug must not end a connection without a response
            LOG.exception("%s %r failed", scope["method"], scope["path"])
            if not has_begun:
                await error_response(500, "internal error; see the service's log")(scope, receive, note_status)
        finally:
            self.num_running[client] -= 1
            if not self.num_running[client]:
                del self.num_running[client]
            self.observe(scope["method"], scope["path"], status, time.perf_counter() - start)

    def _check(self, scope: Scope, client: str) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if path in OPEN_PATHS:
            return
        most = self.limits.connections_per_client  # counted here too, for clients that share a proxy's connections
        if self.num_running[client] > most:
            raise RefusedError(429, f"you have reached the limit of {most} concurrent requests; wait for one", 1)
        if self.api_key is not None and path.startswith(self.guarded):
            given = headers.get(KEY_HEADER, "")
            # compared as bytes: the key may be in another encoding than this process's
            if not hmac.compare_digest(given.encode("latin-1"), os.fsencode(self.api_key)):
                raise RefusedError(401, f"the header {KEY_HEADER} is missing or wrong")
        if scope["method"] == "POST":
            self.rate.take(client)
        length = headers.get("content-length", "0")
        # up to 18 digits: no body is longer, and Python refuses to parse thousands of them
        if length.isascii() and length.isdigit() and (size := int(length[:18])) > self.limits.upload_bytes:
            raise RefusedError(413, self._too_large(size))

    def _counted(self, receive: Receive) -> Receive:
        """Count the bytes of a body as they arrive: the announced length may be false."""
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.limits.upload_bytes:
                raise HTTPException(413, self._too_large(total))  # a class that the form parser does not swallow
            return message

        return counted

    def _until_stopping(self, receive: Receive) -> Receive:
        """Report to an endless response that its client is gone, as soon as the server stops."""

        async def until_stopping() -> Message:
            message = asyncio.ensure_future(receive())
            try:
                while not (await asyncio.wait([message], timeout=CHECK_SECONDS))[0]:
                    if self.is_stopping():
                        return {"type": "http.disconnect"}
                return message.result()
            finally:
                message.cancel()

        return until_stopping

    def _too_large(self, size: int) -> str:
        return f"the request has {size:,} bytes or more, at most {self.limits.upload_bytes:,} are accepted"
