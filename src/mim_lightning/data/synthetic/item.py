"""An item of the synthetic shop as an image: shape, color, pattern and the brand's mark."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageChops, ImageFilter

from mim_lightning.data.synthetic.patterns import draw_inks
from mim_lightning.data.synthetic.shapes import SHAPES
from mim_lightning.data.synthetic.vector_paths import SQUARE, Path, box, draw_mask, oval, poly, rim

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (208, 40, 48),
    "orange": (245, 134, 32),
    "yellow": (250, 208, 50),
    "green": (52, 156, 84),
    "blue": (36, 98, 204),
    "purple": (126, 68, 176),
    "pink": (246, 136, 182),
    "brown": (146, 95, 56),
}
MARKS: dict[str, Path] = {  # by brand, on the square of the badge
    "Nordlys": oval(27, 27, 73, 73),
    "Talmo": poly("50,20 77,68 23,68"),
    "Orvelle": rim(14, oval(30, 30, 70, 70)),
    "Brask": box(20, 40, 80, 60),
    "Kivara": poly("50,16 76,50 50,84 24,50"),
}
SIZES: dict[str, float] = {"small": 0.62, "large": 0.92}  # fraction of the catalog image's side

WHITE: Color = (255, 255, 255)
CREAM: Color = (250, 246, 236)  # soles, laces, buttons
INK: Color = (28, 26, 30)  # black of patterns, marks and seams
TRIM_SHADE = 0.66  # of the color, for straps, bands and legs
EDGE_SHADE = 0.34  # of the color, for the outline
SEAM_STRENGTH = 0.45
BADGE_SIDE = 0.2  # of the item's side
CATALOG_SUPERSAMPLING = 2


@dataclass(frozen=True)
class Look:
    """What a photo shows of a product: all but its size. The fields are columns of the products table."""

    category: str
    shape: str
    colour: str
    pattern: str
    brand: str


@dataclass(frozen=True)
class Layers:
    """The gray masks of a shape at one side length, and the shading of its body."""

    outline: Image.Image
    back: Image.Image
    body: Image.Image
    seams: Image.Image
    front: Image.Image
    light: Image.Image
    shading: Image.Image  # RGB, to multiply the fabric with


@lru_cache(maxsize=256)
def draw_item(look: Look, side: int) -> Image.Image:
    """Draw an item as a (side, side) RGBA image, transparent around it."""
    color, layers = COLORS[look.colour], _draw_layers(look.category, look.shape, side)
    trim = _darken(color, TRIM_SHADE)
    canvas = Image.new("RGB", (side, side), _darken(color, EDGE_SHADE))
    canvas.paste(trim, mask=layers.back)
    white, black = draw_inks(look.pattern, side)
    fabric = Image.new("RGB", (side, side), color)
    fabric.paste(WHITE, mask=white)
    fabric.paste(INK, mask=black)
    canvas.paste(ImageChops.multiply(fabric, layers.shading), mask=layers.body)
    canvas.paste(INK, mask=layers.seams)
    canvas.paste(trim, mask=layers.front)
    canvas.paste(CREAM, mask=layers.light)
    _paste_badge(canvas, look)
    canvas.putalpha(layers.outline)
    return canvas


def draw_catalog_image(look: Look, size: str, side: int) -> Image.Image:
    """Draw an item centered on white with a soft shadow, in proportion to its size, as a (side, side) RGB image."""
    large_side = side * CATALOG_SUPERSAMPLING
    item_side = round(SIZES[size] * large_side)
    item, start = draw_item(look, item_side), (large_side - item_side) // 2
    shadow = Image.new("L", (large_side, large_side), 0)
    shadow.paste(90, (start, start + large_side // 40), item.getchannel("A"))
    canvas = Image.new("RGB", (large_side, large_side), WHITE)
    canvas.paste(INK, mask=shadow.filter(ImageFilter.GaussianBlur(large_side / 36)))
    canvas.paste(item, (start, start), item)
    return canvas.reduce(CATALOG_SUPERSAMPLING)


@lru_cache(maxsize=64)
def _draw_layers(category: str, shape: str, side: int) -> Layers:
    """Draw the masks that all products of one shape have in common."""
    outlines = SHAPES[category][shape]
    body = draw_mask(outlines.body, side)
    parts = (*outlines.back, *outlines.body, *outlines.front, *outlines.light)
    edge = max(1, side // 120)
    seams = ImageChops.multiply(draw_mask(outlines.seams, side), body)
    return Layers(
        outline=draw_mask(parts, side).filter(ImageFilter.MaxFilter(2 * edge + 1)),
        back=draw_mask(outlines.back, side),
        body=body,
        seams=seams.point(lambda value: round(value * SEAM_STRENGTH)),
        front=draw_mask(outlines.front, side),
        light=draw_mask(outlines.light, side),
        shading=_draw_shading(body),
    )


def _draw_shading(body: Image.Image) -> Image.Image:
    """Return light from the left and dark edges, which make the outline look round."""
    side = body.width
    roundness = body.filter(ImageFilter.GaussianBlur(side / 22)).point(lambda value: 150 + value * 105 // 255)
    slope = Image.linear_gradient("L").rotate(90).resize((side, side)).point(lambda value: 205 + value * 50 // 255)
    gray = ImageChops.multiply(roundness, slope)
    return Image.merge("RGB", (gray, gray, gray))


def _paste_badge(canvas: Image.Image, look: Look) -> None:
    """Paste the brand's mark."""
    badge = _draw_badge(look.brand, round(BADGE_SIDE * canvas.width))
    center = (canvas.width * position / SQUARE for position in SHAPES[look.category][look.shape].badge)
    x, y = (round(position - badge.width / 2) for position in center)
    canvas.paste(badge, (x, y), badge)


@lru_cache(maxsize=64)
def _draw_badge(brand: str, side: int) -> Image.Image:
    """Draw a brand's mark, dark on a white disc, as a (side, side) RGBA image."""
    badge = Image.new("RGB", (side, side), INK)
    badge.paste(WHITE, mask=draw_mask((oval(5, 5, 95, 95),), side))
    badge.paste(INK, mask=draw_mask((MARKS[brand],), side))
    badge.putalpha(draw_mask((oval(0, 0, 100, 100),), side))
    return badge


def _darken(color: Color, factor: float) -> Color:
    """Scale a color towards black."""
    red, green, blue = (round(channel * factor) for channel in color)
    return red, green, blue
