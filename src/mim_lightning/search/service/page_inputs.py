"""What a browser sends as the value of each component, checked before Gradio touches it.

Gradio copies, downloads or opens whatever a value names if it looks like a file, in any component, and its own check
of that is off for a page that is mounted and not launched. Here a photo must be an upload, and all else plain.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import LRUCache

from mim_lightning.display.text import plain
from mim_lightning.search.service.limits import RefusedError
from mim_lightning.search.service.strict_json import is_encodable
from mim_lightning.search.service.uploads import Uploads

MAX_ERROR = 500  # characters
MAX_PAGES = 500  # that are open, and kept in mind: about 100 kB each


class SearchPage(gr.Blocks):
    """Blocks that take nothing from a browser but plain values and its own uploads."""

    def __init__(self, uploads: Uploads, **settings: Any) -> None:
        super().__init__(**settings)
        self.uploads = uploads
        # what `launch` would set: without these Gradio checks no path, and serves uploaded SVG inline
        self.has_launched = self.is_running = True
        self.state_session_capacity = MAX_PAGES

    def queue(self, **settings: Any) -> Any:
        """Set up the queue, as Gradio does, with an end to what it keeps of pages that fetch no answers."""
        super().queue(**settings)
        self._queue.pending_messages_per_session = LRUCache(MAX_PAGES)
        self._queue.pending_event_ids_session = LRUCache(4 * MAX_PAGES)
        self._queue.ANALYTICS_MAX_EVENTS = 100  # a table is made of them after every search
        return self

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *others: Any, **named: Any) -> Any:
        """Replace what came by what may be used, then go on as Gradio does."""
        if len(inputs) != len(block_fn.inputs):
            raise refused(f"{len(inputs)} values, must be {len(block_fn.inputs)}")
        checked = [self._checked(component, value) for component, value in zip(block_fn.inputs, inputs, strict=True)]
        return await super().preprocess_data(block_fn, checked, *others, **named)

    def _checked(self, component: Any, value: Any) -> Any:
        if component.stateful:  # lies here, and not with the browser
            return None
        if isinstance(component, gr.Image):
            return value if value is None else self._photo(value)
        if not _may_hold(component, value):
            raise refused(f"{component.label or 'user'}: is not of the form that the page sends")
        return value

    def _photo(self, value: Any) -> dict[str, Any]:
        path = value.get("path") if isinstance(value, dict) else None
        try:
            return {"path": str(self.uploads.find(path)), "meta": {"_type": "gradio.FileData"}}
        except RefusedError as error:
            raise refused(error.message) from error


def refused(message: str) -> gr.Error:
    """Return an error that the page shows, and that needs no call stack in the log."""
    return gr.Error(html.escape(plain(message, MAX_ERROR)), print_exception=False)  # shown as HTML


def read_photo(photo: Mapping[str, Any]) -> bytes:
    """Return an upload's bytes; what they are is for the limits to say, before anything is decoded.

    Raises:
        gr.Error: it was removed meanwhile.
    """
    try:
        return Path(photo["path"]).read_bytes()
    except OSError:
        raise refused("this photo is no longer here; upload it again") from None


def _may_hold(component: Any, value: Any) -> bool:
    if isinstance(component, gr.Slider):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and component.minimum <= value <= component.maximum
    if isinstance(component, gr.Dropdown):
        options = [choice for _, choice in component.choices]
        if component.multiselect:
            return value is None or (_is_texts(value) and all(item in options for item in value))
        return _is_text(value) and value in options
    return value is None or _is_text(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(_is_text(item) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_encodable(value)
