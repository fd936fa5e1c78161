"""The page for people: a photo, a few words, filters; a grid of products, each a starting point for the next search.

A Shopfront comes in, Gradio blocks go out; the serve door mounts them on the service. Everything the page does goes
through `Shopfront.answer`, with the limits of the service.
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
from mim_lightning.search.facets import FACETS, choices
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.service.limits import RefusedError
from mim_lightning.search.service.page_access import PageAccess
from mim_lightning.search.service.page_inputs import SearchPage, read_photo, refused
from mim_lightning.search.service.shopfront import Answer, Shopfront
from mim_lightning.search.service.uploads import Uploads

THUMBNAIL = 320  # pixels of the longer side
NUM_HITS = 12
# the hits' pictures lie on disk until they are fetched; what an aborted visit leaves is swept away
SWEEP_SECONDS = (60, 120)
MAX_WAITING = 128  # searches of all pages that wait for their turn
GRADIO_FOLDER = "GRADIO_TEMP_DIR"  # environment variable: where Gradio keeps files, and whence it serves them
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
ASKS_FOR_KEY = "The password is the service's API key; any username will do."
_FOLDERS: set[str] = set()  # that were made here
PLACEHOLDER = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "#ececec")


def make_page(shopfront: Shopfront) -> SearchPage:
    """Return the page; with several engines it can show two of them side by side."""
    uploads = Uploads(_own_folder())
    names = list(shopfront.engines)
    facets = choices(shopfront.engine().searcher.index.card.extra.get(FACETS, {}))
    with SearchPage(uploads, title="mim_lightning", delete_cache=SWEEP_SECONDS, analytics_enabled=False) as page:
        gr.Markdown("## Find the product\nA photo, a few words, or both. Click a product to go on from it.")
        user = gr.BrowserState("", storage_key="mim_user", secret="mim_lightning")
        like, left_hits, right_hits = gr.State(None), gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                photo = gr.Image(
                    sources=["upload", "clipboard", "webcam"], label="Photo", height=260,
                    elem_id="photo",
                )  # fmt: skip
                going_on = gr.Markdown(visible=False, elem_id="going-on")
                forget = gr.Button("Start over", size="sm", elem_id="start-over")
                text = gr.Textbox(label="Words", placeholder="in blue", elem_id="words", submit_btn="Search")
                not_text = gr.Textbox(label="But not", placeholder="leather", elem_id="not-words")
                share = gr.Slider(0, 1, _share(shopfront), step=0.05, label="words ← → photo", elem_id="share")
                filters = _filters(facets)
                left = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="left")
                right = gr.Dropdown(
                    ["none", *names], value="none", label="Beside it", visible=len(names) > 1, elem_id="right"
                )
            with gr.Column(scale=3, min_width=300):
                status = gr.Markdown("", elem_id="status")
                with gr.Row():
                    grid = _gallery("results")
                    beside = _gallery("results-beside", visible=False)
        asked = [photo, text, not_text, share, left, right, like, user, *filters.values()]
        shown = [status, grid, beside, left_hits, right_hits, going_on, user]

        def search(
            photo: Mapping[str, Any] | None,
            text: str,
            not_text: str,
            share: float,
            left: str,
            right: str,
            like: str | None,
            user: str,
            *filter_values: Any,
        ) -> tuple[Any, ...]:
            user, text, not_text = user or uuid.uuid4().hex, text or "", not_text or ""
            if not (photo or text.strip() or like):
                return "Give a photo or a few words.", [], [], None, None, gr.update(visible=False), user
            query = _query(photo, text, not_text, share, like, _where(facets, filters, filter_values))
            # a choice of model is a look behind the curtain, not a customer's visit
            is_visit = right == "none" and left == names[0]
            first = _ask(shopfront, query, user, None if is_visit else left)
            second = None if right == "none" else _ask(shopfront, query, user, right)
            return (
                "\n\n".join(_told(shopfront, answer) for answer in (first, second) if answer),
                _pictures(shopfront, first),
                gr.update(value=_pictures(shopfront, second) if second else [], visible=second is not None),
                first,
                second,
                gr.update(value=_going_on(shopfront, like) if like else "", visible=bool(like)),
                user,
            )

        def search_photo(photo: Mapping[str, Any] | None, *others: Any) -> Any:
            """Search with a new photo; it takes the place of the product that was gone on from."""
            if not photo:
                return gr.skip()
            place = asked.index(like) - 1
            return *search(photo, *others[:place], None, *others[place + 1 :]), None

        def go_on(hits: Answer | None, event: gr.SelectData) -> tuple[Any, Any]:
            """Take the product that was clicked in place of the photo."""
            product_id = _clicked(hits, event) if hits else None
            if hits is None or product_id is None:
                return gr.skip(), gr.skip()
            if hits.impression_id:
                with suppress(RefusedError):  # a click that cannot be recorded leads on all the same
                    shopfront.click(hits.impression_id, product_id)
            return product_id, None

        # not Gradio's own preprocessing: it would open the photo before the limits have seen it
        plain: dict[str, Any] = {"preprocess": False, "api_visibility": "private"}
        for trigger in (text.submit, not_text.submit, share.release, left.input, right.input):
            trigger(search, asked, shown, show_progress="minimal", **plain)
        # not photo.upload: a picture that the camera takes only changes it
        photo.change(search_photo, asked, [*shown, like], show_progress="minimal", **plain)
        for component in filters.values():
            change = component.input if isinstance(component, gr.Dropdown) else component.submit
            change(search, asked, shown, show_progress="minimal", **plain)
        for gallery, hits in ((grid, left_hits), (beside, right_hits)):
            gallery.select(go_on, [hits], [like, photo], api_visibility="private").then(
                search, asked, shown, show_progress="minimal", **plain
            )
        forget.click(lambda: (None, None, "", ""), None, [like, photo, text, not_text], api_visibility="private").then(
            search, asked, shown, **plain
        )
    page.queue(max_size=MAX_WAITING)
    return page


def mount_page(app: FastAPI, shopfront: Shopfront, api_key: str | None) -> FastAPI:
    """Mount the page at the root, under the routes that are there; with an API key it asks for that as password."""
    auth = (lambda user, password: _is_key(password, api_key)) if api_key else None
    page = make_page(shopfront)
    app = gr.mount_gradio_app(
        app, page, "/", auth=auth, auth_message=ASKS_FOR_KEY, max_file_size=shopfront.limits.upload_bytes, css=CSS,
        footer_links=[], enable_monitoring=False, ssr_mode=False, show_error=False, mcp_server=False,
    )  # fmt: skip
    gradio: Any = app.routes[-1].app  # type: ignore[attr-defined]  # mounted last
    gradio.add_middleware(PageAccess, gradio=gradio, page=page, uploads=page.uploads)
    _sweep_while_running(app, page.uploads)
    return app


def _is_key(password: str, api_key: str) -> bool:
    return hmac.compare_digest(password.encode(errors="surrogatepass"), os.fsencode(api_key))


def _own_folder() -> Path:
    """Return the folder of Gradio's files, of this process alone: within the one that the environment names, if any.

    All that lies in it is served by its path, and what the environment names may be /tmp, or other pages' too.
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
        raise refused(f"{label}: '{text}' is not a number") from None


def _query(
    photo: Mapping[str, Any] | None,
    text: str,
    not_text: str,
    share: float,
    like: str | None,
    where: dict[str, Any] | None,
) -> SearchQuery:
    weights = {"image": share, "like": share, "text": 1 - share}
    has_both = bool(text.strip()) and bool(photo or like)
    return SearchQuery(
        images=(read_photo(photo),) if photo and not like else (),
        text=text.strip() or None,
        not_text=not_text.strip() or None,
        like=like,
        weights=weights if has_both else {},
        num_hits=NUM_HITS,
        where=where,
    )


def _ask(shopfront: Shopfront, query: SearchQuery, user: str, arm: str | None) -> Answer:
    try:
        return shopfront.answer(query, user, arm)
    except RefusedError as error:
        raise refused(error.message) from error


def _clicked(answer: Answer, event: gr.SelectData) -> str | None:
    """Return the product under a click; the pictures may have changed since, then it is found by its title."""
    hits = answer.result.hits
    captions = [_caption(hit.metadata, hit.score) for hit in hits]
    clicked = event.value["caption"]
    if event.index < len(hits) and captions[event.index] == clicked:
        return hits[event.index].product_id
    titled = [hit for hit, own in zip(hits, captions, strict=True) if own.split("\n")[0] == clicked.split("\n")[0]]
    return titled[0].product_id if titled else None


def _told(shopfront: Shopfront, answer: Answer) -> str:
    engine, result = shopfront.engine(answer.arm), answer.result
    card = engine.searcher.index.card
    name, fingerprint = (_literal(plain(text)) for text in (engine.name, card.fingerprint))
    return (
        f"**{len(result.hits)}** of {card.num_products:,} products in **{answer.total_ms:.0f} ms** "
        f"(model {result.encode_ms:.0f} ms, index {result.index_ms:.1f} ms) · {name} · {fingerprint}"
    )


def _pictures(shopfront: Shopfront, answer: Answer) -> list[tuple[Image.Image, str]]:
    hits = answer.result.hits
    pictures = shopfront.engine(answer.arm).pictures.read([hit.product_id for hit in hits])
    return [(_thumbnail(pictures.get(hit.product_id)), _caption(hit.metadata, hit.score)) for hit in hits]


def _thumbnail(data: bytes | None) -> Image.Image:
    if data is None:
        return PLACEHOLDER
    try:
        image = Image.fromarray(decode_upright(data, THUMBNAIL, THUMBNAIL))
    except ImageError:  # damaged; the product is found all the same
        return PLACEHOLDER
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _caption(metadata: Mapping[str, Any], score: float) -> str:
    title = metadata.get("title") or metadata["product_id"]
    return "\n".join(plain(part) for part in (title, metadata.get("category"), f"score {score:.3f}") if part)


def _going_on(shopfront: Shopfront, product_id: str) -> str:
    title = plain(shopfront.product(product_id).get("title") or product_id)
    return f"Going on from **{_literal(title)}**"


def _literal(words: str) -> str:
    """Return words that Markdown shows as they are: every sign that might mean something is its number."""
    return "".join(sign if sign.isalnum() or sign == " " else f"&#{ord(sign)};" for sign in words)


def _share(shopfront: Shopfront) -> float:
    weights = shopfront.engine().searcher.weights
    return round(weights["image"] / max(weights["image"] + weights["text"], 1e-9), 2)
