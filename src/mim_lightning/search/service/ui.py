"""The user interface of the search service, in Gradio: images, texts and filters, and a grid of products.

A click on a product searches for similar ones; two clicks on the image, on opposite corners, search for what is
between them. Every search goes through `SearchService.search`, with its limits.
"""

from __future__ import annotations

import asyncio
import atexit
import hmac
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from mim_lightning.data.images.boxes import Box
from mim_lightning.search.facets import FACETS, select_choices
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.service.request_limits import RefusedError
from mim_lightning.search.service.search_service import SearchResponse, SearchService
from mim_lightning.search.service.ui_filters import make_filters, read_filters
from mim_lightning.search.service.ui_photo import (
    CORNERS,
    OTHER_CORNER,
    clicked_position,
    keep,
    kept_of,
    read_photo,
    show_part,
    show_whole,
    shown_refusals,
    suggest_parts,
)
from mim_lightning.search.service.ui_requests import SearchBlocks, UiMiddleware, ui_error
from mim_lightning.search.service.ui_results import (
    clicked_product,
    describe_response,
    describe_similar,
    show_images,
)
from mim_lightning.search.service.uploads import Uploads

NUM_HITS = 12
# images of hits are on disk until they are fetched: every 60 s, those of aborted visits that are 120 s old are removed
CACHE_SECONDS = (60, 120)
MAX_WAITING = 128  # queued searches of all pages
GRADIO_FOLDER = "GRADIO_TEMP_DIR"  # environment variable: the folder in which Gradio keeps and serves files
CSS = """
footer {display: none !important}
.grid-container {grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important}
#suggestions .grid-container {grid-template-columns: repeat(auto-fill, minmax(80px, 1fr)) !important}
.grid-wrap {max-height: none !important; min-height: 0 !important}
.thumbnail-lg {aspect-ratio: auto !important; height: auto !important; display: flex !important; flex-direction: column}
.thumbnail-lg > img {aspect-ratio: 1; height: auto !important}
.caption-label {position: static !important; max-width: none !important; width: 100%; text-align: left;
  white-space: pre-line; font-size: 11px !important; line-height: 1.25; padding: 2px 6px !important}
#photo .icon-button, #photo .icon, .reset-button {min-width: 24px; min-height: 24px; justify-content: center}
@media (max-width: 640px) {.gradio-container {padding: 6px !important}}
"""
LOGIN_TEXT = "The password is the service's API key; any username will do."
_FOLDERS: set[str] = set()  # created by this process


def make_blocks(service: SearchService) -> SearchBlocks:
    """Return the user interface; with several engines it can show two of them side by side."""
    uploads = Uploads(_own_folder())
    names = list(service.engines)
    facets = select_choices(service.engine().searcher.index.card.extra.get(FACETS, {}))
    with SearchBlocks(
        uploads, service.limits.num_images, title="mim_lightning", delete_cache=CACHE_SECONDS, analytics_enabled=False
    ) as page:
        gr.Markdown("# Find the product\nBy an image, a text, or both. Click a product to find similar ones.")
        user = gr.BrowserState("", storage_key="mim_user", secret="mim_lightning")
        like, left_hits, right_hits = gr.State(None), gr.State(None), gr.State(None)
        corner, box = gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                image = gr.Image(
                    sources=["upload", "clipboard", "webcam"], label="Image", height=260,
                    elem_id="photo", alt_text="the image that is searched for",
                )  # fmt: skip
                corners = gr.Markdown(CORNERS, visible=False, elem_id="corners")
                with gr.Row():
                    part = gr.Image(
                        label="Searched part", height=140, interactive=False, visible=False, buttons=[], scale=3,
                        elem_id="part", alt_text="the part of the image that is searched for",
                    )  # fmt: skip
                    whole = gr.Button("Whole image", size="sm", visible=False, scale=1, elem_id="whole")
                suggest = gr.Button("Suggest parts", size="sm", visible=False, elem_id="suggest")
                suggested, suggestions = gr.State(None), _gallery("suggestions", visible=False)
                with gr.Accordion("More images of the same thing", open=False, elem_id="more"):
                    more = gr.Gallery(
                        file_types=["image"], sources=["upload"], interactive=True, columns=3, height=160, buttons=[],
                        allow_preview=False, show_label=False, elem_id="more-photos",
                    )  # fmt: skip
                similar_to = gr.Markdown(visible=False, elem_id="going-on")
                reset = gr.Button("Start over", size="sm", elem_id="start-over")
                text = gr.Textbox(label="Text", placeholder="in blue", elem_id="words", submit_btn="Search")
                not_text = gr.Textbox(label="But not", placeholder="leather", elem_id="not-words")
                weight = gr.Slider(0, 1, _image_weight(service), step=0.05, label="text ← → image", elem_id="share")
                filters = make_filters(facets)
                left = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="left")
                right = gr.Dropdown(
                    ["none", *names], value="none", label="Second model", visible=len(names) > 1, elem_id="right"
                )
            with gr.Column(scale=3, min_width=300):
                status = gr.Markdown("", elem_id="status")
                with gr.Row():
                    grid = _gallery("results")
                    beside = _gallery("results-beside", visible=False)
        inputs = [image, more, box, text, not_text, weight, left, right, like, user, *filters.values()]
        outputs = [status, grid, beside, left_hits, right_hits, similar_to, user]
        with_part = [*outputs, like, box, corner, corners, part, whole]

        def search(
            image: Mapping[str, Any] | None,
            more: Sequence[Mapping[str, Any]] | None,
            box: tuple[str, Box] | None,
            text: str,
            not_text: str,
            weight: float,
            left: str,
            right: str,
            like: str | None,
            user: str,
            *filter_values: Any,
        ) -> tuple[Any, ...]:
            user, text, not_text = user or uuid.uuid4().hex, text or "", not_text or ""
            if not (image or more or text.strip() or like):
                return "Give an image or a text.", [], [], None, None, gr.update(visible=False), user
            chosen = None if weight == _image_weight(service) else weight  # else the model's own
            images = (
                [] if like else [read_photo(one) for one in (image, *(photo["image"] for photo in more or ())) if one]
            )
            where = read_filters(facets, filters, filter_values)
            query = _query(images, kept_of(image, box), text, not_text, chosen, like, where)
            # a search with a chosen model is a test, and not recorded for the experiment
            is_recorded = right == "none" and left == names[0]
            first = _search(service, query, user, None if is_recorded else left)
            second = None if right == "none" else _search(service, query, user, right)
            return (
                "\n\n".join(describe_response(service, response) for response in (first, second) if response),
                show_images(service, first),
                gr.update(value=show_images(service, second) if second else [], visible=second is not None),
                first,
                second,
                gr.update(value=describe_similar(service, like) if like else "", visible=bool(like)),
                user,
            )

        def search_image(*values: Any) -> Any:
            """Search with a new image, all of it, instead of a product."""
            if not values[0]:
                return *(gr.skip() for _ in [*outputs, like]), None, *show_whole(is_shown=False)
            return *search(*replaced(values, {like: None, box: None})), None, None, *show_whole()

        def search_more(*values: Any) -> Any:
            """Search with further images instead of a product."""
            has_more = bool(values[1])  # none are left where the last was removed
            return *search(*replaced(values, {like: None} if has_more else {})), None if has_more else gr.skip()

        def click(event: gr.SelectData, corner: tuple[str, tuple[float, float]] | None, *values: Any) -> Any:
            """Remember the first click on the image; search with what is between it and the second."""
            position, first = clicked_position(service, values[0], event), kept_of(values[0], corner)
            if first is None:
                none = [gr.skip() for _ in [*outputs, like, box]]
                return *none, keep(values[0], position), OTHER_CORNER, gr.skip(), gr.skip()
            (left, right), (top, bottom) = (sorted(sides) for sides in zip(first, position, strict=True))
            if left == right or top == bottom:
                raise ui_error("there is nothing between the two corners; click the opposite one again")
            return search_part((left, top, right, bottom), *values)

        def search_part(chosen: Box, *values: Any) -> Any:
            """Search with a part of the image, instead of a product."""
            shown, kept = show_part(service, values[0], chosen), keep(values[0], chosen)
            return *search(*replaced(values, {like: None, box: kept})), None, kept, *shown

        def search_suggested(event: gr.SelectData, suggested: tuple[str, list[Box]] | None, *values: Any) -> Any:
            boxes = kept_of(values[0], suggested)
            if not boxes or event.index >= len(boxes):
                raise ui_error("these parts are of another image; let them be suggested again")
            return search_part(boxes[event.index], *values)

        def search_whole(*values: Any) -> Any:
            """Search with all of the image again."""
            return *search(*replaced(values, {box: None})), gr.skip(), None, *show_whole()

        def replaced(values: Sequence[Any], changed: Mapping[Any, Any]) -> list[Any]:
            return [changed.get(component, value) for component, value in zip(inputs, values, strict=True)]

        def select(hits: SearchResponse | None, event: gr.SelectData) -> tuple[Any, Any]:
            """Search with the clicked product instead of the image."""
            product_id = clicked_product(hits, event) if hits else None
            if hits is None or product_id is None:
                return gr.skip(), gr.skip()
            if hits.impression_id:
                with suppress(RefusedError):  # a click that cannot be recorded is no reason not to search
                    service.click(hits.impression_id, product_id)
            return product_id, None

        # without Gradio's preprocessing, which would open the image before the limits are checked
        private: dict[str, Any] = {"api_visibility": "private"}
        plain: dict[str, Any] = {"preprocess": False, **private}
        # not left.input: a menu sends it whenever it loses the focus
        for trigger in (text.submit, not_text.submit, weight.release, left.change, right.change):
            trigger(search, inputs, outputs, show_progress="minimal", **plain)
        # not image.upload: an image that the camera takes only changes it
        image.change(search_image, inputs, with_part, show_progress="minimal", **plain)
        # "once" would lose a second click that comes while the page shows what the first one changed
        image.select(click, [corner, *inputs], with_part, show_progress="minimal", trigger_mode="multiple", **plain)
        whole.click(search_whole, inputs, with_part, show_progress="minimal", **plain)
        if service.photo_parts.suggests:
            for_new = [suggest, suggested, suggestions]
            image.change(
                lambda image: (gr.update(visible=bool(image)), None, gr.update(value=[], visible=False)),
                image, for_new, **plain,
            )  # fmt: skip
            suggest.click(partial(suggest_parts, service), image, [suggested, suggestions], **plain)
            suggestions.select(search_suggested, [suggested, *inputs], with_part, show_progress="minimal", **plain)
        more.change(search_more, inputs, [*outputs, like], show_progress="minimal", **plain)
        for component in filters.values():
            change = component.input if isinstance(component, gr.Dropdown) else component.submit
            change(search, inputs, outputs, show_progress="minimal", **plain)
        for gallery, hits in ((grid, left_hits), (beside, right_hits)):
            gallery.select(select, [hits], [like, image], **private).then(
                search, inputs, outputs, show_progress="minimal", **plain
            )
        reset.click(lambda: (None, None, None, "", ""), None, [like, image, more, text, not_text], **private).then(
            search, inputs, outputs, **plain
        )
    page.queue(max_size=MAX_WAITING)
    return page


def mount_ui(app: FastAPI, service: SearchService, api_key: str | None) -> FastAPI:
    """Mount the user interface at the root, below the existing routes; an API key is its password."""
    auth = (lambda user, password: _is_key(password, api_key)) if api_key else None
    page = make_blocks(service)
    app = gr.mount_gradio_app(
        app, page, "/", auth=auth, auth_message=LOGIN_TEXT, max_file_size=service.limits.upload_bytes, css=CSS,
        footer_links=[], enable_monitoring=False, ssr_mode=False, show_error=False, mcp_server=False,
    )  # fmt: skip
    gradio: Any = app.routes[-1].app  # type: ignore[attr-defined]  # mounted last
    gradio.add_middleware(UiMiddleware, gradio=gradio, page=page)
    _sweep_while_running(app, page.uploads)
    return app


def _is_key(password: str, api_key: str) -> bool:
    return hmac.compare_digest(password.encode(errors="surrogatepass"), os.fsencode(api_key))


def _own_folder() -> Path:
    """Return a folder for Gradio's files that only this process uses, in the one that the environment names, if any.

    Gradio serves everything in it by its path, and the folder that the environment names may be /tmp, or shared.
    """
    given = os.environ.get(GRADIO_FOLDER)
    if given is None or given not in _FOLDERS:
        if given is not None:
            Path(given).mkdir(parents=True, exist_ok=True)
        os.environ[GRADIO_FOLDER] = folder = tempfile.mkdtemp(prefix="mim_page_", dir=given)
        _FOLDERS.add(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(os.environ[GRADIO_FOLDER])


def _sweep_while_running(app: FastAPI, uploads: Uploads) -> None:
    around = app.router.lifespan_context

    @asynccontextmanager
    async def sweeping(app: FastAPI) -> AsyncIterator[Any]:
        async with around(app) as state:
            sweep = asyncio.create_task(uploads.sweep())
            try:
                yield state
            finally:
                sweep.cancel()
                uploads.remove_older_than(0)

    app.router.lifespan_context = sweeping


def _gallery(elem_id: str, visible: bool = True) -> gr.Gallery:
    return gr.Gallery(
        columns=4, object_fit="contain", allow_preview=False, buttons=[], show_label=False, height="auto",
        elem_id=elem_id, visible=visible, interactive=False,
    )  # fmt: skip


def _query(
    images: Sequence[bytes],
    box: Box | None,
    text: str,
    not_text: str,
    weight: float | None,
    like: str | None,
    where: dict[str, Any] | None,
) -> SearchQuery:
    weights = {} if weight is None else {"image": weight, "like": weight, "text": 1 - weight}
    has_both = bool(text.strip()) and bool(images or like)
    return SearchQuery(
        images=tuple(images),
        box=box if images else None,
        text=text.strip() or None,
        not_text=not_text.strip() or None,
        like=like,
        weights=weights if has_both else {},
        num_hits=NUM_HITS,
        where=where,
    )


def _search(service: SearchService, query: SearchQuery, user: str, arm: str | None) -> SearchResponse:
    with shown_refusals():
        return service.search(query, user, arm)


def _image_weight(service: SearchService) -> float:
    weights = service.engine().searcher.weights
    return round(weights["image"] / max(weights["image"] + weights["text"], 1e-9), 2)
