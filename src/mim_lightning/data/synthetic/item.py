"""One thing of the synthetic shop as a picture: silhouette, colour, pattern and the brand's mark.

In comes a Look; out goes the thing on a transparent square, or on white as the catalogue shows it. `world` takes
the names of colours, brands and sizes from here; `scene` puts things into street pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageChops, ImageFilter

from mim_lightning.data.synthetic.patterns import draw_inks
from mim_lightning.data.synthetic.shapes import SILHOUETTES
from mim_lightning.data.synthetic.vector_paths import SQUARE, Path, box, draw_mask, oval, poly, rim

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (208, 40, 48),
    "orange": (245, 134, 32),
    "yellow": (250, 208, 50),
    "green": (52, 156, 84),
    "blue": (36, 98, 204),
    "purple": (126, 68, 176),
    "pink": (246, 136, 182),
    "brown": (146, 95, 56),
}
MARKS: dict[str, Path] = {  # by brand, on the badge's square
    "Nordlys": oval(27, 27, 73, 73),
    "Talmo": poly("50,20 77,68 23,68"),
    "Orvelle": rim(14, oval(30, 30, 70, 70)),
    "Brask": box(20, 40, 80, 60),
    "Kivara": poly("50,16 76,50 50,84 24,50"),
}
SIZES: dict[str, float] = {"small": 0.62, "large": 0.92}  # share of the catalogue picture's side

WHITE: Colour = (255, 255, 255)
CREAM: Colour = (250, 246, 236)  # soles, laces, buttons
INK: Colour = (28, 26, 30)  # black of patterns, marks and seams
TRIM_SHADE = 0.66  # straps, bands and legs against the colour
EDGE_SHADE = 0.34  # the thin line around everything
SEAM_STRENGTH = 0.45
BADGE_SIDE = 0.2  # of the thing's side
CATALOGUE_SUPERSAMPLING = 2


@dataclass(frozen=True)
class Look:
    """Everything one can see of a product without knowing its size."""

    category: str
    shape: str
    colour: str
    pattern: str
    brand: str


@dataclass(frozen=True)
class Layers:
    """The grey masks of one silhouette at one side length, and how light falls on its body."""

    outline: Image.Image
    back: Image.Image
    body: Image.Image
    seams: Image.Image
    front: Image.Image
    light: Image.Image
    shading: Image.Image  # RGB, multiplied with the fabric


@lru_cache(maxsize=256)
def draw_item(look: Look, side: int) -> Image.Image:
    """Draw the thing as a (side, side) RGBA picture, transparent around it."""
    colour, layers = COLOURS[look.colour], draw_layers(look.category, look.shape, side)
    trim = darken(colour, TRIM_SHADE)
    canvas = Image.new("RGB", (side, side), darken(colour, EDGE_SHADE))
    canvas.paste(trim, mask=layers.back)
    canvas.paste(ImageChops.multiply(draw_fabric(look.colour, look.pattern, side), layers.shading), mask=layers.body)
    canvas.paste(INK, mask=layers.seams)
    canvas.paste(trim, mask=layers.front)
    canvas.paste(CREAM, mask=layers.light)
    paste_badge(canvas, look)
    canvas.putalpha(layers.outline)
    return canvas


def draw_catalogue_picture(look: Look, size: str, side: int) -> Image.Image:
    """Draw the thing centred on white with a soft shadow, as a (side, side) RGB picture that shows its size."""
    large_side = side * CATALOGUE_SUPERSAMPLING
    item_side = round(SIZES[size] * large_side)
    item, start = draw_item(look, item_side), (large_side - item_side) // 2
    shadow = Image.new("L", (large_side, large_side), 0)
    shadow.paste(90, (start, start + large_side // 40), item.getchannel("A"))
    canvas = Image.new("RGB", (large_side, large_side), WHITE)
    canvas.paste(INK, mask=shadow.filter(ImageFilter.GaussianBlur(large_side / 36)))
    canvas.paste(item, (start, start), item)
    return canvas.reduce(CATALOGUE_SUPERSAMPLING)


def draw_fabric(colour: str, pattern: str, side: int) -> Image.Image:
    """Print the pattern's white and black ink on the colour."""
    white, black = draw_inks(pattern, side)
    fabric = Image.new("RGB", (side, side), COLOURS[colour])
    fabric.paste(WHITE, mask=white)
    fabric.paste(INK, mask=black)
    return fabric


@lru_cache(maxsize=64)
def draw_layers(category: str, shape: str, side: int) -> Layers:
    """Draw the masks that all products of one silhouette share."""
    silhouette = SILHOUETTES[category][shape]
    body = draw_mask(silhouette.body, side)
    parts = (*silhouette.back, *silhouette.body, *silhouette.front, *silhouette.light)
    edge = max(1, side // 120)
    seams = ImageChops.multiply(draw_mask(silhouette.seams, side), body)
    return Layers(
        outline=draw_mask(parts, side).filter(ImageFilter.MaxFilter(2 * edge + 1)),
        back=draw_mask(silhouette.back, side),
        body=body,
        seams=seams.point(lambda value: round(value * SEAM_STRENGTH)),
        front=draw_mask(silhouette.front, side),
        light=draw_mask(silhouette.light, side),
        shading=draw_shading(body),
    )


def draw_shading(body: Image.Image) -> Image.Image:
    """Light from the left, and edges that turn away from it: what makes an outline look round."""
    side = body.width
    roundness = body.filter(ImageFilter.GaussianBlur(side / 22)).point(lambda value: 150 + value * 105 // 255)
    slope = Image.linear_gradient("L").rotate(90).resize((side, side)).point(lambda value: 205 + value * 50 // 255)
    grey = ImageChops.multiply(roundness, slope)
    return Image.merge("RGB", (grey, grey, grey))


def paste_badge(canvas: Image.Image, look: Look) -> None:
    """Sew the brand's mark on."""
    badge = draw_badge(look.brand, round(BADGE_SIDE * canvas.width))
    centre = (canvas.width * share / SQUARE for share in SILHOUETTES[look.category][look.shape].badge)
    x, y = (round(place - badge.width / 2) for place in centre)
    canvas.paste(badge, (x, y), badge)


@lru_cache(maxsize=64)
def draw_badge(brand: str, side: int) -> Image.Image:
    """Draw the brand's mark, dark on a white disc, as a (side, side) RGBA picture."""
    badge = Image.new("RGB", (side, side), INK)
    badge.paste(WHITE, mask=draw_mask((oval(5, 5, 95, 95),), side))
    badge.paste(INK, mask=draw_mask((MARKS[brand],), side))
    badge.putalpha(draw_mask((oval(0, 0, 100, 100),), side))
    return badge


def darken(colour: Colour, share: float) -> Colour:
    """Scale a colour towards black."""
    red, green, blue = (round(channel * share) for channel in colour)
    return red, green, blue
