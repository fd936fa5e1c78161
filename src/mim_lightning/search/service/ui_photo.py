"""A photo in the user interface: where it was clicked, and what is shown of the part that is searched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from PIL import Image

from mim_lightning.data.images.boxes import Box
from mim_lightning.search.service.request_limits import RefusedError
from mim_lightning.search.service.search_service import SearchService
from mim_lightning.search.service.ui_requests import ui_error
from mim_lightning.search.service.ui_results import THUMBNAIL

CORNERS = "Click two opposite corners of what you mean, if the image shows more."
OTHER_CORNER = "Now click the opposite corner."
Kept = TypeVar("Kept")


def read_photo(image: Mapping[str, Any] | None) -> bytes:
    try:
        if image:
            return Path(image["path"]).read_bytes()
    except OSError:
        pass
    raise ui_error("this image was removed; upload it again")


def keep(image: Mapping[str, Any] | None, value: Kept) -> tuple[str, Kept]:
    """Return a value of a photo, such as a corner, as it is kept until it is `kept_of` the photo."""
    return (image or {}).get("path", ""), value


def kept_of(image: Mapping[str, Any] | None, kept: tuple[str, Kept] | None) -> Kept | None:
    """Return what was kept of a photo; None: nothing, or it is of another photo."""
    return kept[1] if image and kept and kept[0] == image["path"] else None


def clicked_position(
    service: SearchService, image: Mapping[str, Any] | None, event: gr.SelectData
) -> tuple[float, float]:
    """Return where an image was clicked, as fractions of its width and height."""
    with shown_refusals():
        return service.photo_parts.position(read_photo(image), *event.index)


def show_part(service: SearchService, image: Mapping[str, Any] | None, box: Box) -> tuple[Any, ...]:
    """Return the values of the components that show a part of an image: no corner, help, part, button."""
    with shown_refusals():
        pixels = service.photo_parts.read(read_photo(image), box, THUMBNAIL)
    return None, CORNERS, gr.update(value=Image.fromarray(pixels), visible=True), gr.update(visible=True)


def show_whole(is_shown: bool = True) -> tuple[Any, ...]:
    """Return the values of the same components for a whole image."""
    return (
        None,
        gr.update(value=CORNERS, visible=is_shown),
        gr.update(value=None, visible=False),
        gr.update(visible=False),
    )


@contextmanager
def shown_refusals() -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise ui_error(error.message) from error


def suggest_parts(service: SearchService, image: Mapping[str, Any] | None) -> tuple[tuple[str, list[Box]], Any]:
    """Return the boxes that the detector suggests for an image, kept with it, and the gallery that shows them."""
    if not image:
        raise ui_error("give an image first")
    data = read_photo(image)
    with shown_refusals():
        boxes, shown = list[Box](), list[tuple[Any, str]]()
        for number, part in enumerate(service.photo_parts.suggest(data), start=1):
            boxes.append(part.box)
            pixels = service.photo_parts.read(data, part.box, THUMBNAIL // 2)
            shown.append((Image.fromarray(pixels), part.label or f"part {number}"))
    if not boxes:
        raise ui_error("nothing was found on this image; click two corners instead")
    return keep(image, boxes), gr.update(value=shown, visible=True)
