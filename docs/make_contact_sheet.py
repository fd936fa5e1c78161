"""Draw the contact sheet of the README: catalog images of the synthetic shop beside street photos and their texts.

python docs/make_contact_sheet.py docs/images/contact_sheet.webp

A photo whose target is another product has a small image of the target in its corner.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mim_lightning.data.synthetic import write_synthetic_world

PANELS_PER_ROW = 2
PHOTOS_PER_PRODUCT = 4
CELL = 120  # pixels, the side of every image on the sheet
GAP = 8
MARGIN = 24
TITLE_HEIGHT = 26
CAPTION_HEIGHT = 32
TARGET_SIDE = 46
TITLE_FONT_SIZE, CAPTION_FONT_SIZE = 15, 13
PAPER, TEXT, FAINT, ACCENT = (255, 255, 255), (34, 34, 40), (120, 120, 128), (196, 62, 28)
PANEL_WIDTH = (1 + PHOTOS_PER_PRODUCT) * (CELL + GAP) + MARGIN
PANEL_HEIGHT = TITLE_HEIGHT + CELL + CAPTION_HEIGHT

Row = dict[str, str]


def draw_contact_sheet(folder: Path, num_products: int = 12) -> Image.Image:
    """Draw products, evenly picked from the catalog of a synthetic shop, each with photos and their texts."""
    catalog = {row["product_id"]: row for row in read_rows(folder / "products.csv")}
    photos = defaultdict(list)  # by the product in the photo
    for row in read_rows(folder / "queries.csv"):
        photos[row["shown_product_id"]].append(row)
    count = min(num_products, len(catalog))
    stride = len(catalog) // count
    ids = [list(catalog)[idx * stride + idx % stride] for idx in range(count)]  # at different positions of a family
    num_rows = -(-count // PANELS_PER_ROW)
    size = (min(count, PANELS_PER_ROW) * PANEL_WIDTH + MARGIN, num_rows * PANEL_HEIGHT + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    for idx, product_id in enumerate(ids):
        row, column = divmod(idx, PANELS_PER_ROW)
        corner = (MARGIN + column * PANEL_WIDTH, MARGIN // 2 + row * PANEL_HEIGHT)
        draw_panel(sheet, corner, folder, catalog, catalog[product_id], photos[product_id])
    return sheet


def read_rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw_panel(
    sheet: Image.Image,
    corner: tuple[int, int],
    folder: Path,
    catalog: dict[str, Row],
    product: Row,
    photos: list[Row],
) -> None:
    """Draw one product: its title, its catalog image, then its photos with their texts."""
    (x, y), pen = corner, ImageDraw.Draw(sheet)
    pen.text((x, y + 3), product["title"], fill=TEXT, font=ImageFont.load_default(TITLE_FONT_SIZE))
    y += TITLE_HEIGHT
    sheet.paste(read_image(folder / product["image"], CELL), (x, y))
    pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=FAINT)
    draw_caption(pen, x, y, product["product_id"], FAINT)
    for query in pick_photos(photos):
        x += CELL + GAP
        sheet.paste(read_image(folder / query["image"], CELL), (x, y))
        is_change = query["kind"] == "change"
        draw_caption(pen, x, y, query["text"], ACCENT if is_change else TEXT)
        if is_change:
            left, top = x + CELL - TARGET_SIDE, y + CELL - TARGET_SIDE
            sheet.paste(ACCENT, (left - 2, top - 2, x + CELL, y + CELL))
            sheet.paste(read_image(folder / catalog[query["product_id"]]["image"], TARGET_SIDE - 2), (left, top))


def pick_photos(photos: list[Row]) -> list[Row]:
    """Return photos of both kinds, those with another target last."""
    changes = [row for row in photos if row["kind"] == "change"][: PHOTOS_PER_PRODUCT // 2]
    same = [row for row in photos if row["kind"] == "same"][: PHOTOS_PER_PRODUCT - len(changes)]
    return same + changes


def draw_caption(pen: ImageDraw.ImageDraw, x: int, y: int, text: str, color: tuple[int, int, int]) -> None:
    """Write a text centered under the image at x, y."""
    font = ImageFont.load_default(CAPTION_FONT_SIZE)
    pen.text((x + CELL / 2, y + CELL + 4), text, fill=color, font=font, anchor="ma")


def read_image(path: Path, side: int) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_world(Path(folder))
        draw_contact_sheet(Path(folder)).save(parser.parse_args().output, quality=75, method=6)
