"""mim search index=<folder> image=<file> text=<text>: one search, in the terminal.

It prints the hits as a table or as JSON, and draws them. Scores are those of the service.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mim_lightning.artifact_paths import validate_index, validate_model
from mim_lightning.cli import run_entry_point
from mim_lightning.next_command import print_next_service

VERBATIM_KEYS = ("index", "checkpoint", "image", "text", "not_text", "like", "output_image")


def main() -> None:
    run_entry_point("search", search, VERBATIM_KEYS)


def search(config: dict[str, Any]) -> None:
    """Search once, then print and draw the hits."""
    validate_index(config["index"])
    if config["checkpoint"] is not None:
        validate_model(config["checkpoint"])
    from mim_lightning.data.images.limits import read_image_file
    from mim_lightning.search.product_images import ProductImages
    from mim_lightning.search.query import SearchQuery, drop_null_weights
    from mim_lightning.search.results import draw_results, print_result, save_image
    from mim_lightning.search.searcher import open_searcher

    images = [config["image"]] if isinstance(config["image"], str) else config["image"] or []
    fields = config["fields"] or {}
    if not isinstance(fields, dict):
        raise ValueError(f"fields={fields}: give texts by name, as fields={{query_category: mugs}}")
    query = SearchQuery(
        images=tuple(images),
        box=_box(config["box"]),
        text=_text(config["text"]),
        not_text=_text(config["not_text"]),
        like=_text(config["like"]),
        fields={name: str(text) for name, text in fields.items() if text is not None},
        weights=drop_null_weights(config["weights"]),
        num_hits=config["k"],
        where=config["where"],
    )
    searcher = open_searcher(config["index"], config["checkpoint"])
    result = searcher.search(query)
    if config["json"]:
        timing = {"encode": result.encode_ms, "index": result.index_ms}
        plain = {"hits": [asdict(hit) for hit in result.hits], "has_match": result.has_match, "timing_ms": timing}
        print(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        print_result(result, searcher.index.card.num_products)
    if config["output_image"]:
        product_ids = [hit.product_id for hit in result.hits] + ([query.like] if query.like else [])
        product_images = ProductImages(searcher.index.card).read(product_ids)
        query_image = read_image_file(images[0]) if images else product_images.get(query.like or "")
        drawn = draw_results(query, query_image, result.hits, product_images)
        save_image(drawn, Path(config["output_image"]))
        if not config["json"]:
            print(f"image: {config['output_image']}")
    if not config["json"]:
        print_next_service(config["index"], config["checkpoint"])


def _box(value: Any) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    sides = value if isinstance(value, list) else [value]
    if len(sides) != 4 or not all(isinstance(side, int | float) for side in sides):
        raise ValueError(f"box={value}: give left, top, right and bottom as fractions, such as box=[0.1,0.2,0.6,0.9]")
    return sides[0], sides[1], sides[2], sides[3]


def _text(value: Any) -> str | None:
    return None if value is None else str(value).strip() or None


if __name__ == "__main__":
    main()
