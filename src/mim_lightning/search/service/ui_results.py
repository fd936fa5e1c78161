"""What the user interface shows of a response: a line about it, and the images and captions of its products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from PIL import Image

from mim_lightning.data.images.codec import decode_upright
from mim_lightning.data.images.limits import ImageError
from mim_lightning.display.text import plain
from mim_lightning.search.service.search_service import SearchResponse, SearchService

THUMBNAIL = 320  # pixels of the longer side
PLACEHOLDER = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "#ececec")


def clicked_product(response: SearchResponse, event: gr.SelectData) -> str | None:
    """Return the clicked product, by its title if the grid has changed since."""
    hits = response.result.hits
    captions = [_caption(hit.metadata, hit.score) for hit in hits]
    clicked = event.value["caption"]
    if event.index < len(hits) and captions[event.index] == clicked:
        return hits[event.index].product_id
    titled = [hit for hit, own in zip(hits, captions, strict=True) if own.split("\n")[0] == clicked.split("\n")[0]]
    return titled[0].product_id if titled else None


def describe_response(service: SearchService, response: SearchResponse) -> str:
    engine, result = service.engine(response.arm), response.result
    card = engine.searcher.index.card
    name, fingerprint = (_literal(plain(text)) for text in (engine.name, card.fingerprint))
    return (
        f"**{len(result.hits)}** of {card.num_products:,} products in **{response.total_ms:.0f} ms** "
        f"(model {result.encode_ms:.0f} ms, index {result.index_ms:.1f} ms) · {name} · {fingerprint}"
    ) + ("" if result.has_match is not False else " · **nothing here seems to match**")


def show_images(service: SearchService, response: SearchResponse) -> list[tuple[Image.Image, str]]:
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


def describe_similar(service: SearchService, product_id: str) -> str:
    title = plain(service.product(product_id).get("title") or product_id)
    return f"Similar to **{_literal(title)}**"


def _literal(text: str) -> str:
    """Return Markdown that shows a text as it is: every character that may be markup is a numeric entity."""
    return "".join(letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text)
