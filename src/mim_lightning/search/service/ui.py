"""The user interface of the search service, in Gradio: an image, texts and filters, and a grid of products.

A click on a product searches for similar ones. Every search goes through `SearchService.search`, with its limits.
"""

from __future__ import annotations

import asyncio
import atexit
import hmac
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from PIL import Image

from mim_lightning.data.images.codec import decode_upright
from mim_lightning.data.images.limits import ImageError
from mim_lightning.display.text import plain
from mim_lightning.search.facets import FACETS, select_choices
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.service.request_limits import RefusedError
from mim_lightning.search.service.search_service import SearchResponse, SearchService
from mim_lightning.search.service.ui_requests import SearchBlocks, UiMiddleware, ui_error
from mim_lightning.search.service.uploads import Uploads

THUMBNAIL = 320  # pixels of the longer side
NUM_HITS = 12
# images of hits are on disk until they are fetched: every 60 s, those of aborted visits that are 120 s old are removed
CACHE_SECONDS = (60, 120)
MAX_WAITING = 128  # queued searches of all pages
GRADIO_FOLDER = "GRADIO_TEMP_DIR"  # environment variable: the folder in which Gradio keeps and serves files
CSS = """
footer {display: none !important}
.grid-container {grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important}
.grid-wrap {max-height: none !important; min-height: 0 !important}
.thumbnail-lg {aspect-ratio: auto !important; height: auto !important; display: flex !important; flex-direction: column}
.thumbnail-lg > img {aspect-ratio: 1; height: auto !important}
.caption-label {position: static !important; max-width: none !important; width: 100%; text-align: left;
  white-space: pre-line; font-size: 11px !important; line-height: 1.25; padding: 2px 6px !important}
@media (max-width: 640px) {.gradio-container {padding: 6px !important}}
"""
LOGIN_TEXT = "The password is the service's API key; any username will do."
_FOLDERS: set[str] = set()  # created by this process
PLACEHOLDER = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "#ececec")


def make_blocks(service: SearchService) -> SearchBlocks:
    """Return the user interface; with several engines it can show two of them side by side."""
    uploads = Uploads(_own_folder())
    names = list(service.engines)
    facets = select_choices(service.engine().searcher.index.card.extra.get(FACETS, {}))
    with SearchBlocks(uploads, title="mim_lightning", delete_cache=CACHE_SECONDS, analytics_enabled=False) as page:
        gr.Markdown("## Find the product\nBy an image, a text, or both. Click a product to find similar ones.")
        user = gr.BrowserState("", storage_key="mim_user", secret="mim_lightning")
        like, left_hits, right_hits = gr.State(None), gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                image = gr.Image(
                    sources=["upload", "clipboard", "webcam"], label="Image", height=260,
                    elem_id="photo",
                )  # fmt: skip
                similar_to = gr.Markdown(visible=False, elem_id="going-on")
                reset = gr.Button("Start over", size="sm", elem_id="start-over")
                text = gr.Textbox(label="Text", placeholder="in blue", elem_id="words", submit_btn="Search")
                not_text = gr.Textbox(label="But not", placeholder="leather", elem_id="not-words")
                weight = gr.Slider(0, 1, _image_weight(service), step=0.05, label="text ← → image", elem_id="share")
                filters = _filters(facets)
                left = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="left")
                right = gr.Dropdown(
                    ["none", *names], value="none", label="Second model", visible=len(names) > 1, elem_id="right"
                )
            with gr.Column(scale=3, min_width=300):
                status = gr.Markdown("", elem_id="status")
                with gr.Row():
                    grid = _gallery("results")
                    beside = _gallery("results-beside", visible=False)
        inputs = [image, text, not_text, weight, left, right, like, user, *filters.values()]
        outputs = [status, grid, beside, left_hits, right_hits, similar_to, user]

        def search(
            image: Mapping[str, Any] | None,
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
            if not (image or text.strip() or like):
                return "Give an image or a text.", [], [], None, None, gr.update(visible=False), user
            chosen = None if weight == _image_weight(service) else weight  # else the model's own
            query = _query(image, text, not_text, chosen, like, _where(facets, filters, filter_values))
            # a search with a chosen model is a test, and not recorded for the experiment
            is_recorded = right == "none" and left == names[0]
            first = _search(service, query, user, None if is_recorded else left)
            second = None if right == "none" else _search(service, query, user, right)
            return (
                "\n\n".join(_status(service, response) for response in (first, second) if response),
                _images(service, first),
                gr.update(value=_images(service, second) if second else [], visible=second is not None),
                first,
                second,
                gr.update(value=_similar_to(service, like) if like else "", visible=bool(like)),
                user,
            )

        def search_image(image: Mapping[str, Any] | None, *others: Any) -> Any:
            """Search with a new image instead of a product."""
            if not image:
                return gr.skip()
            idx = inputs.index(like) - 1
            return *search(image, *others[:idx], None, *others[idx + 1 :]), None

        def select(hits: SearchResponse | None, event: gr.SelectData) -> tuple[Any, Any]:
            """Search with the clicked product instead of the image."""
            product_id = _clicked(hits, event) if hits else None
            if hits is None or product_id is None:
                return gr.skip(), gr.skip()
            if hits.impression_id:
                with suppress(RefusedError):  # a click that cannot be recorded is no reason not to search
                    service.click(hits.impression_id, product_id)
            return product_id, None

        # without Gradio's preprocessing, which would open the image before the limits are checked
        plain: dict[str, Any] = {"preprocess": False, "api_visibility": "private"}
        for trigger in (text.submit, not_text.submit, weight.release, left.input, right.input):
            trigger(search, inputs, outputs, show_progress="minimal", **plain)
        # not image.upload: an image that the camera takes only changes it
        image.change(search_image, inputs, [*outputs, like], show_progress="minimal", **plain)
        for component in filters.values():
            change = component.input if isinstance(component, gr.Dropdown) else component.submit
            change(search, inputs, outputs, show_progress="minimal", **plain)
        for gallery, hits in ((grid, left_hits), (beside, right_hits)):
            gallery.select(select, [hits], [like, image], api_visibility="private").then(
                search, inputs, outputs, show_progress="minimal", **plain
            )
        reset.click(lambda: (None, None, "", ""), None, [like, image, text, not_text], api_visibility="private").then(
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


def _filters(facets: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    """Return a field for each choice and each end of a range, by column and "values", "min" or "max"."""
    fields: dict[tuple[str, str], Any] = {}
    if not facets:
        return fields
    with gr.Accordion("Filters", open=False, elem_id="filters"):
        for name, facet in facets.items():
            if "values" in facet:
                fields[name, "values"] = gr.Dropdown(facet["values"], multiselect=True, label=name)
                continue
            with gr.Row():
                # not gr.Number: the browser sends 0 for one that is empty
                for end in ("min", "max"):
                    fields[name, end] = gr.Textbox(label=f"{name}, {end}", placeholder=f"{facet[end]:g}", min_width=80)
    return fields


def _where(
    facets: Mapping[str, Any], filters: Mapping[tuple[str, str], Any], values: tuple[Any, ...]
) -> dict[str, Any] | None:
    where: dict[str, Any] = {}
    for (name, kind), value in zip(filters, values, strict=True):
        if kind == "values" and value:
            where[name] = value
        elif kind != "values" and (value or "").strip():
            where.setdefault(name, {})[kind] = _number(f"{name}, {kind}", value)
    return where or None


def _number(label: str, text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise ui_error(f"{label}: '{text}' is not a number") from None


def _query(
    image: Mapping[str, Any] | None,
    text: str,
    not_text: str,
    weight: float | None,
    like: str | None,
    where: dict[str, Any] | None,
) -> SearchQuery:
    weights = {} if weight is None else {"image": weight, "like": weight, "text": 1 - weight}
    has_both = bool(text.strip()) and bool(image or like)
    try:
        images = (Path(image["path"]).read_bytes(),) if image and not like else ()
    except OSError:
        raise ui_error("this image was removed; upload it again") from None
    return SearchQuery(
        images=images,
        text=text.strip() or None,
        not_text=not_text.strip() or None,
        like=like,
        weights=weights if has_both else {},
        num_hits=NUM_HITS,
        where=where,
    )


def _search(service: SearchService, query: SearchQuery, user: str, arm: str | None) -> SearchResponse:
    try:
        return service.search(query, user, arm)
    except RefusedError as error:
        raise ui_error(error.message) from error


def _clicked(response: SearchResponse, event: gr.SelectData) -> str | None:
    """Return the clicked product, by its title if the grid has changed since."""
    hits = response.result.hits
    captions = [_caption(hit.metadata, hit.score) for hit in hits]
    clicked = event.value["caption"]
    if event.index < len(hits) and captions[event.index] == clicked:
        return hits[event.index].product_id
    titled = [hit for hit, own in zip(hits, captions, strict=True) if own.split("\n")[0] == clicked.split("\n")[0]]
    return titled[0].product_id if titled else None


def _status(service: SearchService, response: SearchResponse) -> str:
    engine, result = service.engine(response.arm), response.result
    card = engine.searcher.index.card
    name, fingerprint = (_literal(plain(text)) for text in (engine.name, card.fingerprint))
    return (
        f"**{len(result.hits)}** of {card.num_products:,} products in **{response.total_ms:.0f} ms** "
        f"(model {result.encode_ms:.0f} ms, index {result.index_ms:.1f} ms) · {name} · {fingerprint}"
    ) + ("" if result.has_match is not False else " · **nothing here seems to match**")


def _images(service: SearchService, response: SearchResponse) -> list[tuple[Image.Image, str]]:
    hits = response.result.hits
    images = service.engine(response.arm).images.read([hit.product_id for hit in hits])
    return [(_thumbnail(images.get(hit.product_id)), _caption(hit.metadata, hit.score)) for hit in hits]


def _thumbnail(data: bytes | None) -> Image.Image:
    if data is None:
        return PLACEHOLDER
    try:
        image = Image.fromarray(decode_upright(data, THUMBNAIL, THUMBNAIL))
    except ImageError:  # damaged; the product is shown without it
        return PLACEHOLDER
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _caption(metadata: Mapping[str, Any], score: float) -> str:
    title = metadata.get("title") or metadata["product_id"]
    return "\n".join(plain(part) for part in (title, metadata.get("category"), f"score {score:.3f}") if part)


def _similar_to(service: SearchService, product_id: str) -> str:
    title = plain(service.product(product_id).get("title") or product_id)
    return f"Similar to **{_literal(title)}**"


def _literal(text: str) -> str:
    """Return Markdown that shows a text as it is: every character that may be markup is a numeric entity."""
    return "".join(letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text)


def _image_weight(service: SearchService) -> float:
    weights = service.engine().searcher.weights
    return round(weights["image"] / max(weights["image"] + weights["text"], 1e-9), 2)
