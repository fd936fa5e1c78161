"""Whether the Hugging Face hub answers, asked before a download: without network its client retries for minutes.

Wrap whatever may download in `cache_unless_connected`. Endpoint, proxy and offline mode are those of huggingface_hub.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session

PATIENCE = 5.0  # seconds for an answer, whichever it is, at the first try; then as many as the client itself waits
PAUSE = 1.0  # seconds before the second try
SILENCE = 20.0  # seconds in which an endpoint that did not answer is not asked again: a model is many files
_answered: set[str] = set()  # endpoints, in this process
_silent: dict[str, float] = {}  # endpoints, by when they did not answer


@contextmanager
def cache_unless_connected(source: str | Path, offline: bool = False) -> Iterator[None]:
    """Within it, the hub's clients read their cache alone if the hub does not answer.

    Args:
        source: of what is loaded; the hub is not asked for a path of this machine.
        offline: the hub is not asked in any case.
    """
    if offline or constants.HF_HUB_OFFLINE or Path(source).exists() or _is_connected():
        yield
        return
    constants.HF_HUB_OFFLINE = True  # read at every request
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def why_not_downloaded() -> str:
    """Return why the hub did not give a file that is not in its cache."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it is not in HF_HOME"
    if constants.ENDPOINT in _answered:
        return f"not on {constants.ENDPOINT}, or not for this account"
    return f"no network: {constants.ENDPOINT} does not answer, and it is not in HF_HOME"


def _is_connected() -> bool:
    """Return whether the hub answers, or has answered this process before."""
    endpoint, session = constants.ENDPOINT, get_session()
    if endpoint in _answered or time.monotonic() - _silent.get(endpoint, float("-inf")) < SILENCE:
        return endpoint in _answered
    # a redirection is an answer: mirrors lead from their first page to another host; requests, of earlier clients,
    # does not follow it
    options: dict[str, Any] = {"follow_redirects": False} if hasattr(session, "follow_redirects") else {}
    for pause, patience in ((0.0, PATIENCE), (PAUSE, max(PATIENCE, constants.HF_HUB_ETAG_TIMEOUT))):
        time.sleep(pause)
        with suppress(Exception):  # proxies, TLS and transports raise their own
            session.head(endpoint, timeout=patience, **options)
            _answered.add(endpoint)
            return True
    _silent[endpoint] = time.monotonic()
    return False
