"""Encoded images to the uint8 tensors (3, H, W) of an encoder's ImageSpec, for evaluation and training.

The encoder normalizes them, on the device: uint8 is a quarter of the bytes to transfer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mim_lightning.data.images.codec import EncodedImage, decode_image
from mim_lightning.types import AnyOf, ImageSpec, InputSpec, TowerSpec

MAX_BETWEEN = 1 << 24  # pixels between the two passes of a resize; no image of common shape has so many
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601


@dataclass(frozen=True)
class Augment:
    """How training images vary. Scale and ratio are those of a random resized crop (Inception, our defaults)."""

    min_scale: float = 0.35  # smallest fraction of the area of a crop
    max_ratio: float = 4 / 3  # of the crop's sides
    flip: float = 0.5  # fraction of images mirrored left to right
    brightness: float = 0.0  # 0.3: a factor between 0.7 and 1.3
    contrast: float = 0.0
    saturation: float = 0.0
    image_size: int | None = None  # pixels of a side of a crop; None: as in evaluation

    def __post_init__(self) -> None:
        side = self.image_size
        if side is not None and (not isinstance(side, int) or isinstance(side, bool) or side < 1):
            raise ValueError(f"image_size={side}: give the pixels of a side, as 96, or null: as in evaluation")

    def training_spec(self, spec: TowerSpec) -> TowerSpec:
        """Return how a tower's images are prepared in training, of how its inputs are in evaluation.

        Crops enlarge what they show, so that smaller training images make things as large as evaluation does (Touvron
        et al. 2019, Fixing the train-test resolution discrepancy).
        """
        if isinstance(spec, Mapping):
            parts = {name: self._resized(part) for name, part in spec.items()}
            return AnyOf(parts) if isinstance(spec, AnyOf) else parts
        return self._resized(spec)

    def _resized(self, spec: InputSpec) -> InputSpec:
        if self.image_size is None or not isinstance(spec, ImageSpec):
            return spec
        return replace(spec, size=(self.image_size, self.image_size))


def eval_image(data: bytes | EncodedImage | np.ndarray, spec: ImageSpec) -> Tensor:
    """Resize and crop as in the encoder's training, by its `resize_mode`: see ImageSpec.

    Args:
        data: encoded, or decoded already: (H, W, 3) uint8.
    """
    image = EncodedImage.of(data) if isinstance(data, bytes) else data
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size
    target_h, target_w = spec.size
    if spec.resize_mode == "squash":
        return _resize(_decoded(image, target_h, target_w), spec.size, spec.interpolation)
    if spec.resize_mode != "shortest":
        scaled = _scaled_size(height, width, spec)
        return _center(_resize(_decoded(image, *scaled), scaled, spec.interpolation), spec)
    scale = min(height / target_h, width / target_w) * spec.crop_fraction
    crop_h, crop_w = min(height, round(target_h * scale)), min(width, round(target_w * scale))
    top, left = (height - crop_h) / 2, (width - crop_w) / 2
    return _decode_crop(image, (height, width), (top, left, crop_h, crop_w), spec)


def _scaled_size(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """Return height and width before cropping and padding; rounded as in timm's transforms_imagenet_eval."""
    frame_h, frame_w = (math.floor(side / spec.crop_fraction) for side in spec.size)
    if spec.resize_mode == "squash_crop":
        return frame_h, frame_w
    if spec.resize_mode == "border":
        ratio = max(height / frame_h, width / frame_w)
    elif spec.resize_mode == "shortest_pad":
        if frame_h == frame_w:  # torchvision's resize, which rounds down
            return max(frame_h, int(frame_h * height / width)), max(frame_w, int(frame_w * width / height))
        ratio = min(height / frame_h, width / frame_w)
    else:
        raise ValueError(f"resize_mode '{spec.resize_mode}' is unknown")
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _center(image: Tensor, spec: ImageSpec) -> Tensor:
    """Crop the center of (3, H, W), or pad it on all sides."""
    for dim, side in ((1, spec.size[0]), (2, spec.size[1])):
        extra = image.shape[dim] - side
        image = image.narrow(dim, round(extra / 2), side) if extra > 0 else image
    if image.shape[1:] == spec.size:
        return image
    filled = torch.tensor(spec.fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, *spec.size)
    top, left = ((side - part) // 2 for side, part in zip(spec.size, image.shape[1:], strict=True))
    filled[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return filled


def train_image(data: bytes, spec: ImageSpec, augment: Augment, rng: random.Random) -> Tensor:
    """Crop a random box, resize it and perhaps mirror it; a JPEG is decoded at the scale that this needs."""
    encoded = EncodedImage.of(data)
    box = _random_box(*encoded.size, augment, rng)
    image = _decode_crop(encoded, encoded.size, box, spec)
    return image.flip(-1) if rng.random() < augment.flip else image


def vary_colors(images: Tensor, augment: Augment, rngs: Sequence[random.Random]) -> Tensor:
    """Change brightness, contrast and saturation of uint8 (n, 3, H, W), in place, each by its own generator."""
    strengths = (augment.brightness, augment.contrast, augment.saturation)
    if not any(strengths):
        return images
    factors = torch.tensor([[1 + s * rng.uniform(-1, 1) for s in strengths] for rng in rngs], dtype=torch.float32)
    # a few images at a time: they stay in the processor's cache
    for part, columns in zip(images.split(8), factors.split(8), strict=True):
        part.copy_(_vary(part, *columns.T))
    return images


def _vary(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    brightness, contrast, saturation = (f.view(-1, 1, 1, 1) for f in (brightness, contrast, saturation))
    pixels = images.float().mul_(brightness)
    gray = (pixels * LUMA).sum(1, keepdim=True)
    pixels = torch.lerp(gray, pixels, saturation)
    pixels = torch.lerp(gray.mean((2, 3), keepdim=True), pixels, contrast)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _random_box(height: int, width: int, augment: Augment, rng: random.Random) -> tuple[float, float, float, float]:
    """Return (top, left, height, width) in pixels; a box that does not fit is clipped to the image."""
    area = height * width * rng.uniform(augment.min_scale, 1.0)
    ratio = math.exp(rng.uniform(-1, 1) * math.log(augment.max_ratio))
    crop_h, crop_w = min(height, math.sqrt(area / ratio)), min(width, math.sqrt(area * ratio))
    return rng.uniform(0, height - crop_h), rng.uniform(0, width - crop_w), crop_h, crop_w


def _decode_crop(
    image: EncodedImage | np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float], spec: ImageSpec
) -> Tensor:
    """Decode just large enough for the box to have the target's pixels, then crop and resize."""
    (height, width), (top, left, crop_h, crop_w) = size, box
    shrink = min(crop_h / spec.size[0], crop_w / spec.size[1])
    pixels = _decoded(image, math.ceil(height / shrink), math.ceil(width / shrink))
    scale_h, scale_w = pixels.shape[0] / height, pixels.shape[1] / width
    top_px, left_px = round(top * scale_h), round(left * scale_w)
    bottom_px = min(pixels.shape[0], top_px + max(1, round(crop_h * scale_h)))
    right_px = min(pixels.shape[1], left_px + max(1, round(crop_w * scale_w)))
    return _resize(pixels[top_px:bottom_px, left_px:right_px], spec.size, spec.interpolation)


def _decoded(image: EncodedImage | np.ndarray, min_height: int, min_width: int) -> np.ndarray:
    return decode_image(image, min_height, min_width) if isinstance(image, EncodedImage) else image


def _resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> Tensor:
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    if image.shape[-2] * size[1] > MAX_BETWEEN:
        # width is resized before height: an image of one column would be as wide as the target, at its full height
        size_between = (size[0], image.shape[-1])
        image = F.interpolate(image, size=size_between, mode=interpolation, antialias=True, align_corners=False)
    if image.shape[-2:] != size:
        image = F.interpolate(image, size=size, mode=interpolation, antialias=True, align_corners=False)
    return image[0]
