"""Put clutter around the pictures of a catalog: emoji, each in a scene with others, with the box that it has there.

    python experiments/gallery_crops/clutter.py data/emoji runs/gallery_crops/data --num-products 672

Writes clutter.csv and clean.csv, the products of the test split with pictures in scenes and as they are, and
queries.csv, the queries that are a picture alone. The clutter is of products of the training split, in neither table.
"""

import argparse
import csv
import random
from pathlib import Path

from PIL import Image, ImageChops

SIDE = 256  # pixels of a scene
SCALES = (0.35, 0.55)  # of a picture in its scene
NUM_OTHERS = (3, 5)  # pictures around it
MAX_COVERED = 0.1  # of the product's box, by each of the others
KEYS = ("query_id", "split", "product_id")  # of a query

Box = tuple[int, int, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emoji", type=Path, help="folder with products.csv and images")
    parser.add_argument("output", type=Path)
    parser.add_argument("--num-products", type=int, help="default: all of the test split")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = list(csv.DictReader((options.emoji / "products.csv").open()))
    others = [row for row in rows if row["split"] == "train"]
    products = [row for row in rows if row["split"] == "test"][: options.num_products]
    (options.output / "images").mkdir(parents=True, exist_ok=True)
    clutter, clean = [], []
    for row in products:
        rng = random.Random(f"{options.seed} {row['product_id']}")
        scene, box = draw_scene(row, rng.sample(others, rng.randint(*NUM_OTHERS)), options.emoji, rng)
        path = options.output / "images" / f"{row['product_id']}.jpg"
        scene.save(path, quality=88)
        facts = {name: row[name] for name in ("product_id", "title", "category", "family")}
        clutter.append(facts | {"image": str(path.resolve()), "parts": ",".join(f"{side / SIDE:.4f}" for side in box)})
        clean.append(facts | {"image": str((options.emoji / row["image"]).resolve()), "parts": ""})
    queries = [row for row in csv.DictReader((options.emoji / "queries.csv").open()) if row["kind"] == "image"]
    images = [
        {"image": str((options.emoji / row["image"]).resolve()), "text": ""} | {name: row[name] for name in KEYS}
        for row in queries
    ]
    for name, table in (("clutter", clutter), ("clean", clean), ("queries", images)):
        with (options.output / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*table[0]])
            writer.writeheader()
            writer.writerows(table)
    print(f"{options.output}: {len(products)} products, in scenes and as they are")


def draw_scene(row: dict, others: list[dict], folder: Path, rng: random.Random) -> tuple[Image.Image, Box]:
    """Return a picture in a scene, nothing in front of it, and where it is in pixels."""
    canvas = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(150, 255) for _ in range(3)))
    own = place(rng)
    for other in others:
        for _ in range(50):
            box = place(rng)
            if overlap(own, box) <= MAX_COVERED * area(own):
                paste(canvas, folder / other["image"], box)
                break
    paste(canvas, folder / row["image"], own)
    return canvas, own


def place(rng: random.Random) -> Box:
    side = round(SIDE * rng.uniform(*SCALES))
    left, top = rng.randint(0, SIDE - side), rng.randint(0, SIDE - side)
    return left, top, left + side, top + side


def overlap(one: Box, other: Box) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def paste(canvas: Image.Image, path: Path, box: Box) -> None:
    """Paste a picture without its white background."""
    picture = Image.open(path).convert("RGB").resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
    away = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).convert("L")
    canvas.paste(picture, box, away.point(lambda value: 255 if value > 12 else 0))


if __name__ == "__main__":
    main()
