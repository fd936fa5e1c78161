"""A page that shows what the synthetic world holds: catalogue pictures beside the photos shoppers took.

In comes a folder that `writing` filled; out goes one RGB picture. Called by the README's example. A photo whose
text asks for another product carries a small picture of the true answer in its corner.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PANELS_PER_ROW = 2
PHOTOS_PER_PRODUCT = 4
CELL = 120  # pixels, every picture's side on the sheet
GAP = 8
MARGIN = 24
TITLE_HEIGHT = 26
CAPTION_HEIGHT = 32
ANSWER_SIDE = 46
TITLE_FONT_SIZE, CAPTION_FONT_SIZE = 15, 13
PAPER, TEXT, QUIET, ACCENT = (255, 255, 255), (34, 34, 40), (120, 120, 128), (196, 62, 28)
PANEL_WIDTH = (1 + PHOTOS_PER_PRODUCT) * (CELL + GAP) + MARGIN
PANEL_HEIGHT = TITLE_HEIGHT + CELL + CAPTION_HEIGHT

Row = dict[str, str]


def draw_contact_sheet(folder: Path, products: int = 12) -> Image.Image:
    """Draw that many products, evenly picked from the catalogue, each with photos and their texts.

    Raises:
        ValueError: the number of products is not positive, or the folder holds no tables.
    """
    catalogue, photos = read_tables(folder)
    if products < 1:
        raise ValueError(f"products must be at least 1, not {products}")
    count = min(products, len(catalogue))
    stride = len(catalogue) // count
    ids = [list(catalogue)[idx * stride + idx % stride] for idx in range(count)]  # another place in its family each
    num_rows = -(-count // PANELS_PER_ROW)
    size = (min(count, PANELS_PER_ROW) * PANEL_WIDTH + MARGIN, num_rows * PANEL_HEIGHT + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    for idx, product_id in enumerate(ids):
        row, column = divmod(idx, PANELS_PER_ROW)
        corner = (MARGIN + column * PANEL_WIDTH, MARGIN // 2 + row * PANEL_HEIGHT)
        draw_panel(sheet, corner, folder, catalogue, catalogue[product_id], photos[product_id])
    return sheet


def read_tables(folder: Path) -> tuple[dict[str, Row], dict[str, list[Row]]]:
    """Return the products by id, and the queries by the product that their photo shows."""
    for name in ("products.csv", "queries.csv"):
        if not (folder / name).is_file():
            raise ValueError(f"folder {folder} holds no {name}: write a synthetic world there first")
    photos = defaultdict(list)
    for row in read_rows(folder / "queries.csv"):
        photos[row["shown_product_id"]].append(row)
    return {row["product_id"]: row for row in read_rows(folder / "products.csv")}, photos


def read_rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw_panel(
    sheet: Image.Image,
    corner: tuple[int, int],
    folder: Path,
    catalogue: dict[str, Row],
    product: Row,
    photos: list[Row],
) -> None:
    """Draw one product: its title, its catalogue picture, then its photos with their texts."""
    (x, y), pen = corner, ImageDraw.Draw(sheet)
    pen.text((x, y + 3), product["title"], fill=TEXT, font=ImageFont.load_default(TITLE_FONT_SIZE))
    y += TITLE_HEIGHT
    sheet.paste(read_picture(folder / product["image"], CELL), (x, y))
    pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=QUIET)
    write_caption(pen, x, y, product["product_id"], QUIET)
    for query in pick_photos(photos):
        x += CELL + GAP
        sheet.paste(read_picture(folder / query["image"], CELL), (x, y))
        is_change = query["kind"] == "change"
        write_caption(pen, x, y, query["text"], ACCENT if is_change else TEXT)
        if is_change:
            paste_answer(sheet, x, y, folder / catalogue[query["product_id"]]["image"])


def pick_photos(photos: list[Row]) -> list[Row]:
    """Pick photos of both kinds, those that ask for a change last."""
    changes = [row for row in photos if row["kind"] == "change"][: PHOTOS_PER_PRODUCT // 2]
    same = [row for row in photos if row["kind"] == "same"][: PHOTOS_PER_PRODUCT - len(changes)]
    return same + changes


def write_caption(pen: ImageDraw.ImageDraw, x: int, y: int, text: str, colour: tuple[int, int, int]) -> None:
    """Write a text centred under the picture at x, y."""
    font = ImageFont.load_default(CAPTION_FONT_SIZE)
    pen.text((x + CELL / 2, y + CELL + 4), text, fill=colour, font=font, anchor="ma")


def paste_answer(sheet: Image.Image, x: int, y: int, path: Path) -> None:
    """Put the true answer into the lower right corner of the photo at x, y."""
    left, top = x + CELL - ANSWER_SIDE, y + CELL - ANSWER_SIDE
    sheet.paste(ACCENT, (left - 2, top - 2, x + CELL, y + CELL))
    sheet.paste(read_picture(path, ANSWER_SIDE - 2), (left, top))


def read_picture(path: Path, side: int) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
