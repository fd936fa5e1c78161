"""Checks what a browser sends to the user interface: the routes of Gradio it may request, and the values of components.

Gradio serves much more than the user interface needs (it fetches any URL, runs functions by name, serves files of other
applications) and trusts its own browser code. A request that this code would not send is answered here, with 4xx and
{"error": one line}.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.utils import LRUCache
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mim_lightning.display.text import plain
from mim_lightning.search.service.connections import client_of
from mim_lightning.search.service.request_limits import MAX_MESSAGE, RefusedError, error_response
from mim_lightning.search.service.strict_json import is_encodable, read_object
from mim_lightning.search.service.uploads import MAX_PER_CLIENT, Uploads

API = "/gradio_api"
UPLOAD, UPLOAD_PROGRESS, JOIN, DATA = (
    f"{API}/{name}" for name in ("upload", "upload_progress", "queue/join", "queue/data")
)
FILE = f"{API}/file="
PAGE = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/logout")
GET_PATHS = (*PAGE, DATA, UPLOAD_PROGRESS, *(f"{API}/{name}" for name in ("info", "startup-events", "theme.css")))
GET_PREFIXES = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
POST_PATHS = ("/login", "/login/", JOIN, UPLOAD)
MAX_JSON = 64_000  # bytes of a call: texts, filters and the name of an image
MAX_NAME = 255  # bytes of a part of a path
MAX_PENDING = 16  # events that one open page waits for
MAX_PAGES = 500  # open pages whose state is kept, about 100 kB each
SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)
CALL = {  # key -> type of its value
    "data": list, "fn_index": int, "session_hash": str, "trigger_id": int | None,
    "event_data": dict | list | int | float | None, "event_id": str | None, "simple_format": bool,
    "batched": bool | None, "oauth_token": str | None,
}  # fmt: skip


class UiMiddleware:
    """ASGI middleware that passes on only what the browser code of the user interface sends.

    Args:
        gradio: the mounted application, which knows who is logged in.
        page: its blocks, with the functions that may be called.
    """

    def __init__(self, app: ASGIApp, gradio: Any, page: SearchBlocks) -> None:
        self.app, self.gradio, self.page = app, gradio, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            answer = await self._answer(scope, receive)
        except RefusedError as refusal:
            answer = refusal.response()
        except HTTPException as error:  # of the form parser, or of LimitsMiddleware for too long a body
            answer = error_response(error.status_code, error.detail)
        if isinstance(answer, Response):
            await answer(scope, receive, send)
        else:
            # Gradio fails on some ranges; the user interface requests none
            headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
            await self.app({**scope, "headers": headers}, answer, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | Receive:
        """Return a response, or the body to pass on.

        Raises:
            RefusedError: no such route, or an invalid request.
        """
        path, method = scope["path"], scope["method"]
        if any(len(part.encode(errors="replace")) > MAX_NAME or "\x00" in part for part in path.split("/")):
            raise RefusedError(404, "Not Found")  # no file system has such a name
        if method in ("GET", "HEAD"):
            query = HTTPConnection(scope).query_params
            if path.startswith(FILE):
                self.page.uploads.check_served(path.removeprefix(FILE))
            elif path not in GET_PATHS and not path.startswith(GET_PREFIXES):
                raise RefusedError(404, "Not Found")
            elif "deep_link" in query:
                raise RefusedError(404, "deep links are not supported")
            elif path == DATA and query.get("session_hash", "") not in self.page._queue.pending_messages_per_session:
                raise RefusedError(404, "session_hash: unknown; the page sent no event, or the service was restarted")
            elif path == UPLOAD_PROGRESS:  # an upload is read whole before it is written
                return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")
            return receive
        if method != "POST" or path not in POST_PATHS:
            raise RefusedError(404 if path not in POST_PATHS else 405, "Not Found")
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
            async with request.form(max_files=MAX_PER_CLIENT, max_fields=1) as form:
                parts = [part for part in form.getlist("files") if not isinstance(part, str)]
                if not parts:
                    raise RefusedError(422, "files: give an image")
                images = [await part.read() for part in parts]
        except ClientDisconnect as error:
            raise RefusedError(400, "the upload was interrupted") from error
        # on a thread: writing up to 12 MB would block all other clients
        add, client = self.page.uploads.add, client_of(request.scope)
        return JSONResponse([str(await asyncio.to_thread(add, data, client)) for data in images])

    def _is_logged_in(self, request: Request) -> bool:
        names = (f"access-token-{self.gradio.cookie_id}", f"access-token-unsecure-{self.gradio.cookie_id}")
        return self.gradio.auth is None or any(request.cookies.get(name) in self.gradio.tokens for name in names)

    def _check_call(self, call: Mapping[str, Any]) -> None:
        for key, value in call.items():
            if key not in CALL:
                raise RefusedError(422, f"{key}: no such key; choose from {', '.join(CALL)}")
            if not isinstance(value, CALL[key]) or (isinstance(value, bool) and CALL[key] in (int, int | None)):
                raise RefusedError(422, f"{key}: must be {_type_name(CALL[key])}")
        if not {"data", "fn_index", "session_hash"} <= set(call):
            raise RefusedError(422, "data, fn_index, session_hash: all of them are required")
        if call.get("batched") or call.get("event_id") or call.get("simple_format") or call.get("oauth_token"):
            raise RefusedError(422, "batched, event_id, simple_format, oauth_token: are not supported")
        session, function = call["session_hash"], self.page.fns.get(call["fn_index"])
        if not SESSION.fullmatch(session):
            raise RefusedError(422, "session_hash: must be up to 64 letters and digits")
        if function is None:
            raise RefusedError(422, "fn_index: no such function")
        if len(call["data"]) != len(function.inputs):
            raise RefusedError(422, f"data: {len(call['data'])} values, must be {len(function.inputs)}")
        event_data = call.get("event_data")
        if event_data is not None and not isinstance(event_data, dict):
            sender = (gr.Gallery, "change") if isinstance(event_data, list) else (gr.Slider, "release")
            if not self._is_sent_by(function, *sender):  # which send their value once more
                raise RefusedError(422, "event_data: must be an object or null")
        for number, event in function.targets:
            is_image = number is not None and isinstance(self.page.blocks.get(number), gr.Image)
            if event == "select" and not (_is_position if is_image else _is_click)(call.get("event_data")):
                wanted = "the image, with its position" if is_image else "a product, with its index and caption"
                raise RefusedError(422, f"event_data: must be a click on {wanted}")
        waiting: Mapping[str, Collection[str]] = self.page._queue.pending_event_ids_session
        if len(waiting.get(session, ())) >= MAX_PENDING:
            raise RefusedError(429, f"this page waits for {MAX_PENDING} responses already; fetch them first", 1)

    def _is_sent_by(self, function: Any, kind: type, wanted: str) -> bool:
        """Return whether a function is called by an event of a kind of component."""
        blocks = self.page.blocks
        return any(event == wanted and isinstance(blocks.get(number), kind) for number, event in function.targets)


class SearchBlocks(gr.Blocks):
    """Blocks that accept only plain values and their own uploads from a browser.

    Gradio copies, downloads or opens whatever a value names if it looks like a file, in any component, and its own
    check of that is off for blocks that are mounted instead of launched.
    """

    def __init__(self, uploads: Uploads, num_images: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.uploads, self.num_images = uploads, num_images  # of one search, at most
        # as `launch` sets them: without these Gradio checks no path, and serves uploaded SVG inline
        self.has_launched = self.is_running = True
        self.state_session_capacity = MAX_PAGES

    def queue(self, **settings: Any) -> Any:
        """Set up Gradio's queue, and bound what it keeps for pages that fetch no responses."""
        super().queue(**settings)
        self._queue.pending_messages_per_session = LRUCache(MAX_PAGES)
        self._queue.pending_event_ids_session = LRUCache(4 * MAX_PAGES)
        self._queue.ANALYTICS_MAX_EVENTS = 100  # Gradio makes a table of them after every event
        return self

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *others: Any, **named: Any) -> Any:
        """Check the values of a call before Gradio processes them."""
        if len(inputs) != len(block_fn.inputs):
            raise ui_error(f"{len(inputs)} values, must be {len(block_fn.inputs)}")
        checked = [self._checked(component, value) for component, value in zip(block_fn.inputs, inputs, strict=True)]
        return await super().preprocess_data(block_fn, checked, *others, **named)

    def _checked(self, component: Any, value: Any) -> Any:
        if component.stateful:  # kept here, not by the browser
            return None
        if isinstance(component, gr.Image) and value is not None:
            return self._own_upload(value)
        if isinstance(component, gr.Gallery) and isinstance(value, list):
            if len(value) > self.num_images:  # before any of them is read
                raise ui_error(f"{len(value)} more images, at most {self.num_images} are searched at once")
            return [{"image": self._own_upload(one.get("image") if isinstance(one, dict) else None)} for one in value]
        if not _is_valid(component, value):
            raise ui_error(f"{component.label or 'user'}: invalid value")
        return value

    def _own_upload(self, value: object) -> dict[str, Any]:
        try:
            path = self.uploads.find(value.get("path") if isinstance(value, dict) else None)
        except RefusedError as error:
            raise ui_error(error.message) from error
        return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def ui_error(message: str) -> gr.Error:
    """Return an error that the user interface shows, and that the log needs no call stack of."""
    return gr.Error(html.escape(plain(message, MAX_MESSAGE)), print_exception=False)  # shown as HTML


def _is_valid(component: Any, value: Any) -> bool:
    if isinstance(component, gr.Gallery):
        return value is None  # images of it are checked as uploads
    if isinstance(component, gr.Slider):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and component.minimum <= value <= component.maximum
    if isinstance(component, gr.Dropdown):
        options = [choice for _, choice in component.choices]
        if component.multiselect:
            is_list = isinstance(value, Sequence) and not isinstance(value, str)
            return value is None or (is_list and all(_is_text(item) and item in options for item in value))
        return _is_text(value) and value in options
    return value is None or _is_text(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_encodable(value)


async def _read(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "the request was interrupted")
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


def _is_position(event: Any) -> bool:
    position = event.get("index") if isinstance(event, dict) else None
    if not isinstance(position, list) or len(position) != 2:
        return False
    return all(type(each) is int and 0 <= each < 2**31 for each in position)


def _type_name(kind: Any) -> str:
    names = {list: "a list", int: "a whole number", str: "text", bool: "true or false", dict: "an object"}
    return names.get(kind) or f"{next(names[part] for part in kind.__args__ if part in names)} or null"
