"""Answers to requests that are not served: an HTTP status, and {"error": one line}."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

from mim_lightning.display.text import plain
from mim_lightning.search.service.limits import RefusedError

MAX_LENGTH = 500  # of a message: what a client wrote is quoted in it


def error_answer(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the answer that says what is wrong, in one line that every client can decode."""
    return JSONResponse({"error": plain(message, MAX_LENGTH)}, status, headers)


def refuse(refusal: RefusedError) -> JSONResponse:
    """Return the answer to a refused request."""
    headers = {"retry-after": str(math.ceil(refusal.retry_after))} if refusal.retry_after is not None else None
    return error_answer(refusal.status, refusal.message, headers)
