"""Evaluation resizing against Pillow, training crops and colors against plain arithmetic."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm import data as timm_data
from torch import Tensor

from mim_lightning.data.images.transforms import Augment, eval_image, train_image, vary_colors
from mim_lightning.types import AnyOf, ImageSpec, TextSpec
from tests.data.conftest import encoded, jpeg, picture

PIL_MODES = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def reference_eval(data: bytes, spec: ImageSpec) -> np.ndarray:
    """Resize and centre-crop as the model zoos do it, in Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    (height, width), mode = spec.size, PIL_MODES[spec.interpolation]
    if spec.resize_mode == "squash":
        return np.asarray(image.resize((width, height), mode))
    factor = max(height / image.height, width / image.width) / spec.crop_fraction
    image = image.resize((round(image.width * factor), round(image.height * factor)), mode)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def mean_difference(image: Tensor, reference: np.ndarray) -> float:
    return float(np.abs(image.permute(1, 2, 0).numpy().astype(float) - reference).mean())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("shape", [(96, 96), (60, 130), (130, 60), (40, 44), (20, 30), (300, 420)])
def test_eval_image_against_pillow(interpolation: str, mode: str, shape: tuple[int, int]) -> None:
    for crop_fraction in (1.0, 0.875) if mode == "shortest" else (1.0,):
        spec = ImageSpec((40, 40), interpolation, crop_fraction, mode)
        data = encoded(picture(1, *shape))
        image = eval_image(data, spec)
        assert image.shape == (3, 40, 40) and image.dtype == torch.uint8
        # boxes snap to stored pixels, which are coarse where the image is hardly larger than the target
        assert mean_difference(image, reference_eval(data, spec)) < (3.5 if min(shape) >= 60 else 7.0)


@pytest.mark.parametrize(
    ("mode", "fraction"), [("squash_crop", 0.9), ("squash_crop", 0.956), ("border", 1.0), ("shortest_pad", 1.15)]
)
@pytest.mark.parametrize("shape", [(100, 100), (97, 201), (180, 75)])
@pytest.mark.parametrize("size", [(48, 48), (40, 64)])
def test_the_other_modes_against_timm(
    mode: str, fraction: float, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    """Whole numbers of pixels are the same; their values differ by how Pillow and torch round twice."""
    crop_mode = {"squash_crop": "squash", "border": "border", "shortest_pad": "center"}[mode]
    pil = picture(1, *shape)
    transform = timm_data.create_transform(
        (3, *size),
        crop_pct=fraction,
        crop_mode=crop_mode,
        interpolation="bicubic",
        mean=(0.5, 0.4, 0.3),
        normalize=False,
    )
    fill = (128, 102, 76) if mode == "border" else (0, 0, 0)
    image = eval_image(encoded(pil, "PNG"), ImageSpec(size, "bicubic", fraction, mode, fill))
    difference = (image.int() - transform(pil).int()).abs()
    assert difference.max() <= 2, difference.max()


def test_an_unknown_mode_is_rejected() -> None:
    with pytest.raises(ValueError, match="resize_mode 'squish' is unknown"):
        eval_image(jpeg(0, 20, 20), ImageSpec((8, 8), resize_mode="squish"))


def test_eval_image_of_the_right_size_is_unchanged() -> None:
    data = encoded(picture(0, 24, 32), "PNG")
    assert mean_difference(eval_image(data, ImageSpec((24, 32))), np.asarray(picture(0, 24, 32))) == 0
    tall = ImageSpec((48, 24))
    assert mean_difference(eval_image(data, tall), reference_eval(data, tall)) < 3.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (3, 3000)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    data = jpeg(0, *shape)
    for seed in range(5):
        assert train_image(data, ImageSpec((8, 8)), Augment(), random.Random(seed)).shape == (3, 8, 8)
    for mode in ("shortest", "squash"):
        assert eval_image(data, ImageSpec((8, 8), resize_mode=mode, crop_fraction=0.9)).shape == (3, 8, 8)


def ramp(height: int, width: int) -> bytes:
    """Return an image whose pixels encode their position: red from left to right, green from top to bottom."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x / (width - 1) * 255, y / (height - 1) * 255, np.full_like(x, 128)], -1)
    return encoded(Image.fromarray(pixels.round().astype(np.uint8)), "PNG")


def test_train_image_is_a_box_of_the_image() -> None:
    data, augment = ramp(200, 200), Augment(min_scale=0.35, max_ratio=4 / 3, flip=0.0)
    shares, ratios = [], []
    for seed in range(300):
        image = train_image(data, ImageSpec((50, 50)), augment, random.Random(seed)).float() / 255
        # what the outermost pixels' centers span, brought to the box's edges
        width = float(image[0, :, -1].mean() - image[0, :, 0].mean()) * 50 / 49
        height = float(image[1, -1].mean() - image[1, 0].mean()) * 50 / 49
        assert 0 < width < 1.03 and 0 < height < 1.03
        shares.append(width * height)
        ratios.append(width / height)
    assert 0.33 < min(shares) < 0.42 and 0.9 < max(shares) < 1.05
    assert 0.72 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.39


def test_train_image_is_a_function_of_its_generator() -> None:
    data, spec = jpeg(4, 60, 80), ImageSpec((32, 32))
    images = [train_image(data, spec, Augment(), random.Random(seed)) for seed in (1, 1, 2)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_flip() -> None:
    data, spec = jpeg(4, 60, 80), ImageSpec((32, 32))
    plain, mirrored = (train_image(data, spec, Augment(flip=share), random.Random(3)) for share in (0.0, 1.0))
    assert torch.equal(plain.flip(-1), mirrored)
    images = [train_image(data, spec, Augment(), random.Random(seed)) for seed in range(100)]
    plains = [train_image(data, spec, Augment(flip=0.0), random.Random(seed)) for seed in range(100)]
    assert 30 < sum(not torch.equal(a, b) for a, b in zip(images, plains, strict=True)) < 70


def test_training_images_have_a_size_of_their_own_and_texts_stay() -> None:
    text = TextSpec(lambda texts: {}, 8)
    large, wide = ImageSpec((64, 64), "bicubic", 0.9), ImageSpec((32, 48))
    smaller = Augment(image_size=24)
    assert smaller.training_spec(large) == replace(large, size=(24, 24))
    assert smaller.training_spec(text) is text
    either = smaller.training_spec(AnyOf({"query_image": wide, "query_text": text}))
    assert isinstance(either, AnyOf) and either == {"query_image": ImageSpec((24, 24)), "query_text": text}
    assert Augment().training_spec(wide) is wide


@pytest.mark.parametrize("side", [0, -96, 96.0, "96", True])
def test_a_size_that_is_none(side: Any) -> None:
    with pytest.raises(ValueError, match=f"image_size={side}: give the pixels of a side, as 96, or null"):
        Augment(image_size=side)


def test_the_whole_image_without_augmentation() -> None:
    data, spec = jpeg(4, 60, 60), ImageSpec((32, 32))
    augment = Augment(min_scale=1.0, max_ratio=1.0, flip=0.0)
    assert torch.equal(train_image(data, spec, augment, random.Random(0)), eval_image(data, spec))


def reference_colours(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Augment one (3, H, W) image pixel by pixel."""

    def grey(pixel: np.ndarray) -> float:
        return float(0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2])

    out = image.astype(float) * brightness
    places = list(np.ndindex(*image.shape[1:]))
    mean = sum(grey(out[:, y, x]) for y, x in places) / len(places)
    for y, x in places:
        level = grey(out[:, y, x])
        saturated = level + (out[:, y, x] - level) * saturation
        out[:, y, x] = mean + (saturated - mean) * contrast
    return np.clip(out, 0, 255)


def test_color_jitter_against_plain_floats() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (11, 3, 5, 4), dtype=np.uint8))
    augment = Augment(brightness=0.4, contrast=0.5, saturation=0.9)
    before = images.clone()
    varied = vary_colors(images.clone(), augment, [random.Random(seed) for seed in range(11)])
    assert torch.equal(images, before) and varied.dtype == torch.uint8
    for seed in range(11):
        rng = random.Random(seed)
        factors = [1 + strength * rng.uniform(-1, 1) for strength in (0.4, 0.5, 0.9)]
        expected = reference_colours(images[seed].numpy(), *factors)
        assert np.abs(varied[seed].numpy() - expected).max() < 0.51


class Still(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def test_factors_of_one_change_nothing() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16), dtype=np.uint8))
    augment = Augment(brightness=0.4, contrast=0.5, saturation=0.9)
    assert torch.equal(vary_colors(images, augment, [Still()] * 9), images)
    assert vary_colors(images, Augment(), []) is images
