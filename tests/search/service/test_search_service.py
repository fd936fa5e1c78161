"""A search parses and decodes each image once, within the service's limits; arms inherit from the command line."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from mim_lightning.data.images import codec as decode
from mim_lightning.data.images.codec import normalize_encoding
from mim_lightning.data.images.transforms import eval_image
from mim_lightning.inference.image_inputs import prepare_images
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.service.request_limits import RefusedError
from mim_lightning.search.service.search_service import read_arms
from mim_lightning.types import ImageSpec
from tests.search.service.color_shop import color_service, square


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a header is parsed and pixels are decoded."""
    counts: Counter[str] = Counter()

    def count(module: Any, name: str, what: str) -> None:
        function = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[what] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    count(decode, "read_header", "headers")
    count(simplejpeg, "decode_jpeg", "decodes")
    count(decode, "open_image", "decodes")
    return counts


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("side", [32, 600])  # as it is stored, and larger than stored images are
def test_an_image_is_parsed_once_and_decoded_once(kind: str, side: int, tmp_path: Path, calls: Counter[str]) -> None:
    shop = color_service(tmp_path, pixels=400_000)
    calls.clear()
    answer = shop.search(SearchQuery(images=(square("red", kind, side),)))
    assert answer.result.hits[0].product_id == "red-1"
    assert calls == {"headers": 1, "decodes": 1}
    calls.clear()
    with pytest.raises(RefusedError, match="image 2: 700 x 700 pixels, at most 400,000 are decoded"):
        shop.search(SearchQuery(images=(square("red", kind, side), square("red", kind, 700))))
    assert calls == {"headers": 2}, "the limits come before any pixel"


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "border"])
def test_decoded_once_gives_the_same_pixels_as_the_stored_image(kind: str, mode: str, orientation: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (210, 330, 3), np.uint8))
    exif, out = noise.getexif(), io.BytesIO()
    exif[0x0112] = orientation
    noise.save(out, kind, exif=exif)
    spec = ImageSpec((48, 48), resize_mode=mode)
    expected = eval_image(normalize_encoding(out.getvalue(), 512), spec)
    assert torch.equal(prepare_images([out.getvalue()], spec, 512, [0])[0], expected)


def test_arms_inherit_from_control() -> None:
    own = {"index": "shop", "checkpoint": "a.ckpt", "weights": {"image": None, "text": 2}, "traffic_fraction": 0.5}
    arms = {"words": {"weights": {"text": 3}}, "other": {"index": "new"}, "off": None}
    found = read_arms({**own, "arms": arms})
    assert list(found) == ["control", "words", "other"] and found["control"] == own
    assert found["words"] == {**own, "traffic_fraction": 1, "weights": {"image": None, "text": 3}}
    assert found["other"] == {**own, "traffic_fraction": 1, "index": "new", "checkpoint": None}, (
        "another index has its own model"
    )
    with pytest.raises(ValueError, match=r"arms\.words\.weigths: no such key; an arm has index, checkpoint"):
        read_arms({**own, "arms": {"words": {"weigths": {}}}})
