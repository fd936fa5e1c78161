"""A shopper's photo: one product in a cluttered scene, turned, lit, partly hidden, blurred and noisy.

In come the product's Look, a side length and a random source; out goes an RGB picture. `writing` calls it once a
query. One number between 0 and 1 decides how hard a picture is, so that easy and hard ones both occur.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mim_lightning.data.synthetic.backdrop import draw_backdrop
from mim_lightning.data.synthetic.item import COLOURS, INK, MARKS, Look, draw_item
from mim_lightning.data.synthetic.patterns import PATTERNS
from mim_lightning.data.synthetic.shapes import SILHOUETTES

SUPERSAMPLING = 2
PRODUCT_SCALE = (0.48, 0.85)  # of the picture's side; the smallest in the hardest pictures
CLUTTER_SCALE = (0.24, 0.42)
CLUTTER_DETAIL = 0.4  # of the picture's side: how large clutter is drawn before it is placed
MAX_CLUTTER = 3  # other things behind the product
MAX_ANGLE = 25.0  # degrees, either way
MAX_SHEAR = 0.12
MAX_CORNER_SHIFT = 0.07  # of the product's side: perspective
COVER_DISTANCE = (-0.05, 0.14)  # from the product's edge to the middle of what is put in front of it
OCCLUDED_SHARE = 0.6  # of the pictures get something in front of the product
MAX_OCCLUSION = 0.25  # of the product's area; more than that and nothing is put in front
SHADOW_STRENGTH = 110  # of 255
SHADOW_MARGIN = 0.07  # of the picture's side: how far a shadow reaches
MAX_CAST = 0.09  # change of one colour channel
MAX_NOISE = 9.0  # standard deviation, of 255
MAX_BLUR = 0.008  # of the picture's side

Points = NDArray[np.float64]  # (4, 2): x and y of a square's corners
SQUARE = ((0, 0), (1, 0), (1, 1), (0, 1))


@dataclass(frozen=True)
class Pose:
    """Where and how a thing stands: centre and scale in parts of the picture, angle in degrees."""

    x: float
    y: float
    scale: float
    angle: float
    shear: float
    is_flipped: bool
    corner_shifts: tuple[float, ...]  # x and y of four corners, in parts of the thing's side


@dataclass(frozen=True)
class Placed:
    """A thing as it stands in the picture: its pixels, and where their upper left corner belongs."""

    pixels: Image.Image  # RGBA, with room for the shadow
    corner: tuple[int, int]


def draw_street_picture(look: Look, side: int, rng: random.Random) -> Image.Image:
    """Draw the product in a random scene, as a (side, side) RGB picture."""
    hardness, large_side = rng.random(), side * SUPERSAMPLING
    canvas = draw_backdrop(large_side, rng)
    for _ in range(rng.randint(1, 1 + round(MAX_CLUTTER * hardness))):
        put_down(canvas, place_clutter(look, rng.random(), rng.random(), large_side, rng))
    pose = pick_product_pose(hardness, rng)
    product = place(draw_item(look, large_side), pose, large_side)
    put_down(canvas, product)
    if rng.random() < OCCLUDED_SHARE:
        cover(canvas, product, pose, look, rng)
    return photograph(canvas.reduce(SUPERSAMPLING), hardness, rng)


def pick_product_pose(hardness: float, rng: random.Random) -> Pose:
    """Pick a pose off the centre, smaller in harder pictures, with most of the product in the frame."""
    small, large = PRODUCT_SCALE
    scale = min(large, max(small, large - (large - small) * hardness + rng.uniform(-0.1, 0.1)))
    slack = (1 - scale) / 2
    return draw_pose(0.5 + slack * rng.uniform(-1, 1), 0.5 + slack * rng.uniform(-1, 1), scale, rng)


def draw_pose(x: float, y: float, scale: float, rng: random.Random) -> Pose:
    """Turn, shear, flip and tilt at random at the given place."""
    return Pose(
        x,
        y,
        scale,
        angle=rng.uniform(-MAX_ANGLE, MAX_ANGLE),
        shear=rng.uniform(-MAX_SHEAR, MAX_SHEAR),
        is_flipped=rng.random() < 0.5,
        corner_shifts=tuple(rng.uniform(-MAX_CORNER_SHIFT, MAX_CORNER_SHIFT) for _ in range(8)),
    )


def place_clutter(look: Look, x: float, y: float, side: int, rng: random.Random) -> Placed:
    """Place any thing of another category than the look's at x, y."""
    item = draw_item(pick_clutter(look, rng), round(side * CLUTTER_DETAIL))
    return place(item, draw_pose(x, y, rng.uniform(*CLUTTER_SCALE), rng), side)


def pick_clutter(look: Look, rng: random.Random) -> Look:
    """Pick any thing of another category."""
    category = rng.choice([name for name in SILHOUETTES if name != look.category])
    shape = rng.choice(list(SILHOUETTES[category]))
    return Look(category, shape, rng.choice(list(COLOURS)), rng.choice(list(PATTERNS)), rng.choice(list(MARKS)))


def place(item: Image.Image, pose: Pose, side: int) -> Placed:
    """Set a thing into a picture of the given side."""
    quad, margin = side * find_quad(pose), side * SHADOW_MARGIN
    left, top = np.floor(quad.min(axis=0) - margin).astype(int).tolist()
    right, bottom = np.ceil(quad.max(axis=0) + margin).astype(int).tolist()
    perspective = solve_perspective(quad - (left, top), item.width)
    size = (right - left, bottom - top)
    pixels = item.transform(size, Image.Transform.PERSPECTIVE, perspective, Image.Resampling.BILINEAR)
    return Placed(pixels, (left, top))


def find_quad(pose: Pose) -> Points:
    """Return where the four corners of the thing's square come to lie, in parts of the picture."""
    square = np.array(SQUARE) - 0.5 + np.array(pose.corner_shifts).reshape(4, 2)
    square[:, 0] += pose.shear * square[:, 1]
    cos, sin = math.cos(math.radians(pose.angle)), math.sin(math.radians(pose.angle))
    quad = (pose.x, pose.y) + pose.scale * square @ np.array([[cos, sin], [-sin, cos]])
    return quad[[1, 0, 3, 2]] if pose.is_flipped else quad


def solve_perspective(quad: Points, item_side: int) -> list[float]:
    """Return the eight coefficients that Pillow's perspective transform wants: from picture to thing."""
    rows, wanted = [], []
    for (x, y), (u, v) in zip(quad, item_side * np.array(SQUARE), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        wanted += [u, v]
    coefficients: list[float] = np.linalg.solve(np.array(rows), np.array(wanted)).tolist()
    return coefficients


def put_down(canvas: Image.Image, thing: Placed) -> None:
    """Paste a placed thing with the shadow it throws on what is behind it."""
    side, alpha = canvas.width, thing.pixels.getchannel("A")
    shadow = Image.new("L", alpha.size, 0)
    shadow.paste(SHADOW_STRENGTH, (side // 60, side // 40), alpha)
    canvas.paste(INK, thing.corner, shadow.filter(ImageFilter.BoxBlur(side / 48)))
    canvas.paste(thing.pixels, thing.corner, alpha)


def cover(canvas: Image.Image, product: Placed, pose: Pose, look: Look, rng: random.Random) -> None:
    """Put another thing in front of the product's edge, if little enough of the product gets hidden."""
    direction, distance = rng.uniform(0, 2 * math.pi), pose.scale / 2 + rng.uniform(*COVER_DISTANCE)
    x, y = pose.x + distance * math.cos(direction), pose.y + distance * math.sin(direction)
    thing = place_clutter(look, x, y, canvas.width, rng)
    if measure_occlusion(product, thing) <= MAX_OCCLUSION:
        put_down(canvas, thing)


def measure_occlusion(product: Placed, thing: Placed) -> float:
    """Return the share of the placed product that the placed thing hides."""
    alpha, cover_alpha = product.pixels.getchannel("A"), thing.pixels.getchannel("A")
    shift = (thing.corner[0] - product.corner[0], thing.corner[1] - product.corner[1])
    left = alpha.copy()
    left.paste(0, shift, cover_alpha)
    return 1 - float(np.asarray(left).sum() / np.asarray(alpha).sum())


def photograph(scene: Image.Image, hardness: float, rng: random.Random) -> Image.Image:
    """Light the scene and take the picture: brightness, contrast, colour cast, blur and noise."""
    if rng.random() < 0.6:
        scene = scene.filter(ImageFilter.GaussianBlur(scene.width * MAX_BLUR * hardness * rng.random()))
    pixels = np.asarray(scene, dtype=np.float32)
    contrast, brightness = rng.uniform(0.85, 1.12), rng.uniform(0.82, 1.15)
    cast = np.array([1 + rng.uniform(-MAX_CAST, MAX_CAST) for _ in range(3)], dtype=np.float32)
    grain = np.random.default_rng(rng.getrandbits(32)).standard_normal(pixels.shape[:2], dtype=np.float32)
    lit = (128 + contrast * (pixels - 128)) * brightness * cast
    noisy = lit + grain[..., None] * (MAX_NOISE * hardness * rng.random())
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
