"""The gate in front of the service: who may ask, how often, how much; and how long every answer took.

An ASGI application goes in, one that refuses comes out. It sees bytes and headers only, before any is parsed.
"""

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

from mim_lightning.search.service.answers import error_answer, refuse
from mim_lightning.search.service.client_address import client_of
from mim_lightning.search.service.limits import Limits, RateLimit, RefusedError

KEY_HEADER = "X-API-Key"
OPEN_PATHS = ("/health",)  # for whoever watches over the service: no key, no rate
ENDLESS_PATHS = ("/gradio_api/heartbeat/",)  # open as long as somebody looks at the page
LOOK_EVERY = 0.5  # seconds
LOG = logging.getLogger(__name__)
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
        self.at_work: Counter[str] = Counter()  # requests, by client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, has_begun = time.perf_counter(), 500, False

        async def note_status(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
            await send(message)

        client = client_of(scope)
        self.at_work[client] += 1
        try:
            self._check(scope, client)
            taken = self._ending(receive) if scope["path"].startswith(ENDLESS_PATHS) else self._counted(receive)
            await self.app(scope, taken, note_status)
        except RefusedError as refusal:
            await refuse(refusal)(scope, receive, note_status)
        except Exception:  # a fault of ours must not end a connection without an answer
            LOG.exception("%s %r failed", scope["method"], scope["path"])
            if not has_begun:
                await error_answer(500, "the service failed; its log says why")(scope, receive, note_status)
        finally:
            self.at_work[client] -= 1
            if not self.at_work[client]:
                del self.at_work[client]
            self.observe(scope["method"], scope["path"], status, time.perf_counter() - started)

    def _check(self, scope: Scope, client: str) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if path in OPEN_PATHS:
            return
        most = self.limits.connections_per_client  # which a proxy's connections do not tell
        if self.at_work[client] > most:
            raise RefusedError(429, f"{most} of your requests are at work, which is all you may have; wait for one", 1)
        if self.api_key is not None and path.startswith(self.guarded):
            given = headers.get(KEY_HEADER, "")
            # as bytes: a key in another encoding than this process's is a key too
            if not hmac.compare_digest(given.encode("latin-1"), os.fsencode(self.api_key)):
                raise RefusedError(401, f"the header {KEY_HEADER} is missing or wrong")
        if scope["method"] == "POST":
            self.rate.take(client)
        length = headers.get("content-length", "0")
        # up to 18 digits: no body is longer, and of thousands of them Python makes no number
        if length.isascii() and length.isdigit() and (size := int(length[:18])) > self.limits.upload_bytes:
            raise RefusedError(413, self._too_large(size))

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
