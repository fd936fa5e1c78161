"""What of Gradio a browser may reach: the few routes that the page needs, with bodies of the form that it sends.

Gradio serves much more than a page asks for (any URL fetched by the server, functions called by name, files of other
pages), and believes its own browser code. This middleware stands before all of it; a request that the page would not
send is answered here, with 4xx and {"error": one line}. Uploads are taken here too: see `Uploads`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mim_lightning.search.service.answers import error_answer, refuse
from mim_lightning.search.service.client_address import client_of
from mim_lightning.search.service.limits import RefusedError
from mim_lightning.search.service.strict_json import read_object
from mim_lightning.search.service.uploads import Uploads

API = "/gradio_api"
UPLOAD, UPLOAD_PROGRESS, JOIN, DATA = (
    f"{API}/{name}" for name in ("upload", "upload_progress", "queue/join", "queue/data")
)
FILE = f"{API}/file="
PAGE = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/logout")
READ = (*PAGE, DATA, UPLOAD_PROGRESS, *(f"{API}/{name}" for name in ("info", "startup-events", "theme.css")))
READ_BELOW = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
WRITTEN = ("/login", "/login/", JOIN, UPLOAD)
MAX_JSON = 64_000  # bytes of a call: words, filters and the name of a photo
MAX_NAME = 255  # bytes of a part of a path
MAX_PENDING = 16  # answers that one open page waits for
SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)
CALL = {  # key -> what it may hold
    "data": list, "fn_index": int, "session_hash": str, "trigger_id": int | None, "event_data": dict | None,
    "event_id": str | None, "simple_format": bool, "batched": bool | None, "oauth_token": str | None,
}  # fmt: skip


class PageAccess:
    """Lets through what the page's own browser code sends.

    Args:
        gradio: the mounted application, for who is logged in.
        page: its blocks, for the functions that may be called.
    """

    def __init__(self, app: ASGIApp, gradio: Any, page: Any, uploads: Uploads) -> None:
        self.app, self.gradio, self.page, self.uploads = app, gradio, page, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (self._refuse_socket(send) if scope["type"] == "websocket" else self.app(scope, receive, send))
            return
        try:
            answer = await self._answer(scope, receive)
        except RefusedError as refusal:
            answer = refuse(refusal)
        except HTTPException as error:  # of the parser of forms, or of the gate for too long a body
            answer = error_answer(error.status_code, error.detail)
        if isinstance(answer, Response):
            await answer(scope, receive, send)
        else:
            # Gradio fails on ranges that it does not foresee; the page asks for none
            headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
            await self.app({**scope, "headers": headers}, answer, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | Receive:
        """Return an answer, or the body to go on with.

        Raises:
            RefusedError: the page has no such route, or would not ask it so.
        """
        path, method = scope["path"], scope["method"]
        if any(len(part.encode(errors="replace")) > MAX_NAME or "\x00" in part for part in path.split("/")):
            raise RefusedError(404, "Not Found")  # no file system has such a name
        if method in ("GET", "HEAD"):
            query = HTTPConnection(scope).query_params
            if path.startswith(FILE):
                self.uploads.shown(path.removeprefix(FILE))
            elif path not in READ and not path.startswith(READ_BELOW):
                raise RefusedError(404, "Not Found")
            elif "deep_link" in query:
                raise RefusedError(404, "the page has no links to its states")
            elif path == DATA and query.get("session_hash", "") not in self.page._queue.pending_messages_per_session:
                raise RefusedError(404, "session_hash: this page asked nothing, or the service was started again")
            elif path == UPLOAD_PROGRESS:  # an upload is read whole before it is written
                return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")
            return receive
        if method != "POST" or path not in WRITTEN:
            raise RefusedError(404 if path not in WRITTEN else 405, "Not Found")
        if path == UPLOAD:
            return await self._take_upload(Request(scope, receive))
        if path == JOIN:
            body = await _read(receive, MAX_JSON)
            self._check_call(read_object("body", body))
            return _replay(body, receive)
        return receive

    async def _take_upload(self, request: Request) -> Response:
        if not self._is_logged_in(request):
            raise RefusedError(401, "log in first")
        try:
            async with request.form(max_files=1, max_fields=1) as form:
                parts = [part for part in form.getlist("files") if not isinstance(part, str)]
                if len(parts) != 1:
                    raise RefusedError(422, "files: give one photo")
                data = await parts[0].read()
        except ClientDisconnect as error:
            raise RefusedError(400, "the upload broke off") from error
        # writing up to 12 MB would keep all others waiting
        photo = await asyncio.to_thread(self.uploads.add, data, client_of(request.scope))
        return JSONResponse([str(photo)])

    def _is_logged_in(self, request: Request) -> bool:
        names = (f"access-token-{self.gradio.cookie_id}", f"access-token-unsecure-{self.gradio.cookie_id}")
        return self.gradio.auth is None or any(request.cookies.get(name) in self.gradio.tokens for name in names)

    def _check_call(self, call: Mapping[str, Any]) -> None:
        for key, value in call.items():
            if key not in CALL:
                raise RefusedError(422, f"{key}: no such key; there are {', '.join(CALL)}")
            if not isinstance(value, CALL[key]) or (isinstance(value, bool) and CALL[key] in (int, int | None)):
                raise RefusedError(422, f"{key}: must be {_named(CALL[key])}")
        if not {"data", "fn_index", "session_hash"} <= set(call):
            raise RefusedError(422, "data, fn_index, session_hash: all of them are needed")
        if call.get("batched") or call.get("event_id") or call.get("simple_format") or call.get("oauth_token"):
            raise RefusedError(422, "batched, event_id, simple_format, oauth_token: are not for the page")
        session, function = call["session_hash"], self.page.fns.get(call["fn_index"])
        if not SESSION.fullmatch(session):
            raise RefusedError(422, "session_hash: must be up to 64 letters and digits")
        if function is None:
            raise RefusedError(422, "fn_index: there is no such function")
        if len(call["data"]) != len(function.inputs):
            raise RefusedError(422, f"data: {len(call['data'])} values, must be {len(function.inputs)}")
        if any(event == "select" for _, event in function.targets) and not _is_click(call.get("event_data")):
            raise RefusedError(422, "event_data: must be a click on a product, with its index and caption")
        waiting: Mapping[str, Collection[str]] = self.page._queue.pending_event_ids_session
        if len(waiting.get(session, ())) >= MAX_PENDING:
            raise RefusedError(429, f"this page waits for {MAX_PENDING} answers already; fetch them first", 1)

    async def _refuse_socket(self, send: Send) -> None:
        await send({"type": "websocket.close", "code": 1008})


async def _read(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "the request broke off")
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > most:
            raise RefusedError(413, f"the request has more than {most:,} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def _is_click(event: Any) -> bool:
    if not isinstance(event, dict) or not isinstance(event.get("value"), dict):
        return False
    return (
        isinstance(event.get("index"), int) and event["index"] >= 0 and isinstance(event["value"].get("caption"), str)
    )


def _named(kind: Any) -> str:
    names = {list: "a list", int: "a whole number", str: "text", bool: "true or false", dict: "an object"}
    return names.get(kind) or f"{next(names[part] for part in kind.__args__ if part in names)} or null"
