"""A shopper's photo: one product in a cluttered scene, rotated, lit, partly covered, blurred and noisy.

One number between 0 and 1 decides how hard an image is, so that easy and hard ones both occur. Backdrops have low
saturation: the product's color is the strongest in the image.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mim_lightning.data.synthetic.item import COLORS, INK, MARKS, Color, Look, draw_item
from mim_lightning.data.synthetic.patterns import PATTERNS
from mim_lightning.data.synthetic.shapes import SHAPES

SUPERSAMPLING = 2
PRODUCT_SCALE = (0.48, 0.85)  # of the image's side; the smallest in the hardest images
CLUTTER_SCALE = (0.24, 0.42)
CLUTTER_DETAIL = 0.4  # of the image's side: size at which clutter is drawn before it is placed
MAX_CLUTTER = 3  # other items behind the product
MAX_ANGLE = 25.0  # degrees, either way
MAX_SHEAR = 0.12
MAX_CORNER_SHIFT = 0.07  # of the product's side: perspective
COVER_DISTANCE = (-0.05, 0.14)  # from the product's edge to the center of the item in front of it
OCCLUDED_FRACTION = 0.6  # of the images have an item in front of the product
MAX_OCCLUSION = 0.25  # of the product's area; an item that covers more is left out
SHADOW_STRENGTH = 110  # of 255
SHADOW_MARGIN = 0.07  # of the image's side
MAX_CAST = 0.09  # change of one color channel
MAX_NOISE = 9.0  # standard deviation, of 255
MAX_BLUR = 0.008  # of the image's side
MOTTLE_CELLS = 7  # light and dark patches across the image
MOTTLE_RANGE = (210, 255)

Points = NDArray[np.float64]  # (4, 2): x and y of a square's corners
SQUARE = ((0, 0), (1, 0), (1, 1), (0, 1))


@dataclass(frozen=True)
class Pose:
    """Position and orientation of an item: center and scale as fractions of the image, angle in degrees."""

    x: float
    y: float
    scale: float
    angle: float
    shear: float
    is_flipped: bool
    corner_shifts: tuple[float, ...]  # x and y of four corners, as fractions of the item's side


@dataclass(frozen=True)
class PlacedItem:
    """An item in the image: its pixels, and the position of their upper left corner."""

    pixels: Image.Image  # RGBA, with a margin for the shadow
    corner: tuple[int, int]


def draw_street_image(look: Look, side: int, rng: random.Random) -> Image.Image:
    """Draw the product in a random scene, as a (side, side) RGB image."""
    hardness, large_side = rng.random(), side * SUPERSAMPLING
    canvas = _draw_backdrop(large_side, rng)
    for _ in range(rng.randint(1, 1 + round(MAX_CLUTTER * hardness))):
        _paste(canvas, _place_clutter(look, rng.random(), rng.random(), large_side, rng))
    pose = _product_pose(hardness, rng)
    product = _place(draw_item(look, large_side), pose, large_side)
    _paste(canvas, product)
    if rng.random() < OCCLUDED_FRACTION:
        _cover(canvas, product, pose, look, rng)
    return _photograph(canvas.reduce(SUPERSAMPLING), hardness, rng)


def _product_pose(hardness: float, rng: random.Random) -> Pose:
    """Return a random pose off the center, smaller in harder images, with most of the product in the frame."""
    small, large = PRODUCT_SCALE
    scale = min(large, max(small, large - (large - small) * hardness + rng.uniform(-0.1, 0.1)))
    slack = (1 - scale) / 2
    return _random_pose(0.5 + slack * rng.uniform(-1, 1), 0.5 + slack * rng.uniform(-1, 1), scale, rng)


def _random_pose(x: float, y: float, scale: float, rng: random.Random) -> Pose:
    """Return a pose at a position with random rotation, shear, flip and perspective."""
    return Pose(
        x,
        y,
        scale,
        angle=rng.uniform(-MAX_ANGLE, MAX_ANGLE),
        shear=rng.uniform(-MAX_SHEAR, MAX_SHEAR),
        is_flipped=rng.random() < 0.5,
        corner_shifts=tuple(rng.uniform(-MAX_CORNER_SHIFT, MAX_CORNER_SHIFT) for _ in range(8)),
    )


def _place_clutter(look: Look, x: float, y: float, side: int, rng: random.Random) -> PlacedItem:
    """Place a random item of another category than the look's at x, y."""
    category = rng.choice([name for name in SHAPES if name != look.category])
    shape = rng.choice(list(SHAPES[category]))
    clutter = Look(category, shape, rng.choice(list(COLORS)), rng.choice(list(PATTERNS)), rng.choice(list(MARKS)))
    item = draw_item(clutter, round(side * CLUTTER_DETAIL))
    return _place(item, _random_pose(x, y, rng.uniform(*CLUTTER_SCALE), rng), side)


def _place(item: Image.Image, pose: Pose, side: int) -> PlacedItem:
    """Return an item in its pose in an image of the given side."""
    quad, margin = side * _find_quad(pose), side * SHADOW_MARGIN
    left, top = np.floor(quad.min(axis=0) - margin).astype(int).tolist()
    right, bottom = np.ceil(quad.max(axis=0) + margin).astype(int).tolist()
    perspective = _solve_perspective(quad - (left, top), item.width)
    size = (right - left, bottom - top)
    pixels = item.transform(size, Image.Transform.PERSPECTIVE, perspective, Image.Resampling.BILINEAR)
    return PlacedItem(pixels, (left, top))


def _find_quad(pose: Pose) -> Points:
    """Return the positions of the four corners of the item's square, as fractions of the image."""
    square = np.array(SQUARE) - 0.5 + np.array(pose.corner_shifts).reshape(4, 2)
    square[:, 0] += pose.shear * square[:, 1]
    cos, sin = math.cos(math.radians(pose.angle)), math.sin(math.radians(pose.angle))
    quad = (pose.x, pose.y) + pose.scale * square @ np.array([[cos, sin], [-sin, cos]])
    return quad[[1, 0, 3, 2]] if pose.is_flipped else quad


def _solve_perspective(quad: Points, item_side: int) -> list[float]:
    """Return the eight coefficients of Pillow's perspective transform, from image to item."""
    rows, wanted = [], []
    for (x, y), (u, v) in zip(quad, item_side * np.array(SQUARE), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        wanted += [u, v]
    coefficients: list[float] = np.linalg.solve(np.array(rows), np.array(wanted)).tolist()
    return coefficients


def _paste(canvas: Image.Image, item: PlacedItem) -> None:
    """Paste an item with its shadow."""
    side, alpha = canvas.width, item.pixels.getchannel("A")
    shadow = Image.new("L", alpha.size, 0)
    shadow.paste(SHADOW_STRENGTH, (side // 60, side // 40), alpha)
    canvas.paste(INK, item.corner, shadow.filter(ImageFilter.BoxBlur(side / 48)))
    canvas.paste(item.pixels, item.corner, alpha)


def _cover(canvas: Image.Image, product: PlacedItem, pose: Pose, look: Look, rng: random.Random) -> None:
    """Paste another item in front of the product's edge, unless it covers too much of the product."""
    direction, distance = rng.uniform(0, 2 * math.pi), pose.scale / 2 + rng.uniform(*COVER_DISTANCE)
    x, y = pose.x + distance * math.cos(direction), pose.y + distance * math.sin(direction)
    item = _place_clutter(look, x, y, canvas.width, rng)
    if _occlusion(product, item) <= MAX_OCCLUSION:
        _paste(canvas, item)


def _occlusion(product: PlacedItem, item: PlacedItem) -> float:
    """Return the fraction of the product that an item covers."""
    alpha, cover_alpha = product.pixels.getchannel("A"), item.pixels.getchannel("A")
    shift = (item.corner[0] - product.corner[0], item.corner[1] - product.corner[1])
    left = alpha.copy()
    left.paste(0, shift, cover_alpha)
    return 1 - float(np.asarray(left).sum() / np.asarray(alpha).sum())


def _photograph(scene: Image.Image, hardness: float, rng: random.Random) -> Image.Image:
    """Apply blur, contrast, brightness, a color cast and noise."""
    if rng.random() < 0.6:
        scene = scene.filter(ImageFilter.GaussianBlur(scene.width * MAX_BLUR * hardness * rng.random()))
    pixels = np.asarray(scene, dtype=np.float32)
    contrast, brightness = rng.uniform(0.85, 1.12), rng.uniform(0.82, 1.15)
    cast = np.array([1 + rng.uniform(-MAX_CAST, MAX_CAST) for _ in range(3)], dtype=np.float32)
    grain = np.random.default_rng(rng.getrandbits(32)).standard_normal(pixels.shape[:2], dtype=np.float32)
    lit = (128 + contrast * (pixels - 128)) * brightness * cast
    noisy = lit + grain[..., None] * (MAX_NOISE * hardness * rng.random())
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _draw_backdrop(side: int, rng: random.Random) -> Image.Image:
    """Draw a random backdrop, (side, side) RGB."""
    draw = rng.choice((_draw_room, _draw_tiles, _draw_planks, _draw_bricks, _draw_street_lights))
    return ImageChops.multiply(draw(side, rng), _draw_mottle(side, rng))


def _draw_room(side: int, rng: random.Random) -> Image.Image:
    """A wall above a floor, with a skirting board between."""
    canvas = _draw_gradient(side, _muted_color(rng), _muted_color(rng))
    pen, floor = ImageDraw.Draw(canvas), side * rng.uniform(0.55, 0.85)
    pen.rectangle((0, floor, side, side), fill=_muted_color(rng))
    pen.rectangle((0, floor - side * 0.03, side, floor), fill=_muted_color(rng))
    return canvas


def _draw_tiles(side: int, rng: random.Random) -> Image.Image:
    """Square tiles of two tones with joints between."""
    return _draw_courses(side, rng, rng.uniform(0.12, 0.3), 1.0, 0.0)


def _draw_bricks(side: int, rng: random.Random) -> Image.Image:
    """Courses of bricks, every second one shifted."""
    return _draw_courses(side, rng, rng.uniform(0.08, 0.14), rng.uniform(2.0, 2.6), 0.5)


def _draw_planks(side: int, rng: random.Random) -> Image.Image:
    """Long boards, horizontal or vertical."""
    boards = _draw_courses(side, rng, rng.uniform(0.09, 0.2), 9.0, 0.37)
    return boards.transpose(Image.Transpose.ROTATE_90) if rng.random() < 0.5 else boards


def _draw_courses(side: int, rng: random.Random, height: float, length: float, shift: float) -> Image.Image:
    """Rows of stones: `height` as a fraction of the side, `length` in heights, `shift` of each row in lengths."""
    stone, tall = _muted_color(rng), height * side
    canvas = Image.new("RGB", (side, side), _shade(stone, 0.72))
    pen, joint, wide = ImageDraw.Draw(canvas), max(1, side // 90), length * tall
    for row in range(int(side / tall) + 1):
        left = -wide * ((row * shift) % 1)
        while left < side:
            box = (left, row * tall, left + wide - joint, (row + 1) * tall - joint)
            pen.rectangle(box, fill=_shade(stone, rng.uniform(0.86, 1.06)))
            left += wide
    return canvas


def _draw_street_lights(side: int, rng: random.Random) -> Image.Image:
    """Lights out of focus."""
    canvas = _draw_gradient(side, _muted_color(rng), _muted_color(rng))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(8, 16)):
        x, y, radius = rng.random() * side, rng.random() * side, side * rng.uniform(0.03, 0.12)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_muted_color(rng))
    return canvas.filter(ImageFilter.BoxBlur(side / 60))


def _draw_gradient(side: int, top: Color, bottom: Color) -> Image.Image:
    """A gradient from one color at the top to another at the bottom."""
    slope = Image.linear_gradient("L").resize((side, side))
    return Image.composite(Image.new("RGB", (side, side), bottom), Image.new("RGB", (side, side), top), slope)


def _draw_mottle(side: int, rng: random.Random) -> Image.Image:
    """Soft patches of light and shadow, to multiply an image with."""
    low, high = MOTTLE_RANGE
    cells = np.array([rng.randint(low, high) for _ in range(MOTTLE_CELLS**2)], dtype=np.uint8)
    patches = Image.fromarray(cells.reshape(MOTTLE_CELLS, MOTTLE_CELLS))
    return patches.resize((side, side), Image.Resampling.BICUBIC).convert("RGB")


def _muted_color(rng: random.Random) -> Color:
    """Return a random color of low saturation."""
    return _shade(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.03, 0.24), rng.uniform(0.5, 0.97)), 255)


def _shade(color: tuple[float, float, float], factor: float) -> Color:
    """Scale a color and round it to channels of 0 to 255."""
    red, green, blue = (min(255, round(channel * factor)) for channel in color)
    return red, green, blue
