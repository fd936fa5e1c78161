"""Where a shopper stands: the muted, textured backgrounds of street pictures.

In come a side length and a random source; out goes an RGB picture without any product in it. `scene` puts the
things in front. Backdrops keep to low saturation, so that a product's colour stays the strongest in the picture.
"""

from __future__ import annotations

import colorsys
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mim_lightning.data.synthetic.item import Colour

MOTTLE_CELLS = 7  # coarse light and dark patches across the picture
MOTTLE_RANGE = (210, 255)


def draw_backdrop(side: int, rng: random.Random) -> Image.Image:
    """Draw a random backdrop of the given side."""
    draw = rng.choice((draw_room, draw_tiles, draw_planks, draw_bricks, draw_street_lights))
    return ImageChops.multiply(draw(side, rng), draw_mottle(side, rng))


def draw_room(side: int, rng: random.Random) -> Image.Image:
    """A wall above a floor, with a skirting board between."""
    canvas = draw_gradient(side, pick_muted(rng), pick_muted(rng))
    pen, floor = ImageDraw.Draw(canvas), side * rng.uniform(0.55, 0.85)
    pen.rectangle((0, floor, side, side), fill=pick_muted(rng))
    pen.rectangle((0, floor - side * 0.03, side, floor), fill=pick_muted(rng))
    return canvas


def draw_tiles(side: int, rng: random.Random) -> Image.Image:
    """Square tiles of two tones with joints between."""
    return draw_courses(side, rng, rng.uniform(0.12, 0.3), 1.0, 0.0)


def draw_bricks(side: int, rng: random.Random) -> Image.Image:
    """Courses of bricks, every second one shifted."""
    return draw_courses(side, rng, rng.uniform(0.08, 0.14), rng.uniform(2.0, 2.6), 0.5)


def draw_planks(side: int, rng: random.Random) -> Image.Image:
    """Long boards, lying or standing."""
    boards = draw_courses(side, rng, rng.uniform(0.09, 0.2), 9.0, 0.37)
    return boards.transpose(Image.Transpose.ROTATE_90) if rng.random() < 0.5 else boards


def draw_courses(side: int, rng: random.Random, height: float, length: float, shift: float) -> Image.Image:
    """Rows of stones: `height` in parts of the side, `length` in heights, `shift` of each row in lengths."""
    stone, tall = pick_muted(rng), height * side
    canvas = Image.new("RGB", (side, side), shade(stone, 0.72))
    pen, joint, wide = ImageDraw.Draw(canvas), max(1, side // 90), length * tall
    for row in range(int(side / tall) + 1):
        left = -wide * ((row * shift) % 1)
        while left < side:
            box = (left, row * tall, left + wide - joint, (row + 1) * tall - joint)
            pen.rectangle(box, fill=shade(stone, rng.uniform(0.86, 1.06)))
            left += wide
    return canvas


def draw_street_lights(side: int, rng: random.Random) -> Image.Image:
    """Blurred lights and blotches out of focus."""
    canvas = draw_gradient(side, pick_muted(rng), pick_muted(rng))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(8, 16)):
        x, y, radius = rng.random() * side, rng.random() * side, side * rng.uniform(0.03, 0.12)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=pick_muted(rng))
    return canvas.filter(ImageFilter.BoxBlur(side / 60))


def draw_gradient(side: int, top: Colour, bottom: Colour) -> Image.Image:
    """Run from one colour at the top to another at the bottom."""
    slope = Image.linear_gradient("L").resize((side, side))
    return Image.composite(Image.new("RGB", (side, side), bottom), Image.new("RGB", (side, side), top), slope)


def draw_mottle(side: int, rng: random.Random) -> Image.Image:
    """Soft patches of light and shadow, to be multiplied with a picture."""
    low, high = MOTTLE_RANGE
    cells = np.array([rng.randint(low, high) for _ in range(MOTTLE_CELLS**2)], dtype=np.uint8)
    patches = Image.fromarray(cells.reshape(MOTTLE_CELLS, MOTTLE_CELLS))
    return patches.resize((side, side), Image.Resampling.BICUBIC).convert("RGB")


def pick_muted(rng: random.Random) -> Colour:
    """Pick a colour of low saturation."""
    return shade(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.03, 0.24), rng.uniform(0.5, 0.97)), 255)


def shade(colour: tuple[float, float, float], factor: float) -> Colour:
    """Scale a colour and round it to whole channels within range."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue
