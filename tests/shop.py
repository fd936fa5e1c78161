"""A shop of a few products, drawn in a moment: tables and images as a user would bring them."""

import csv
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": "#d03030", "green": "#30a040", "blue": "#3050c0", "yellow": "#e0c030", "grey": "#808080"}
SHAPES = ("disc", "box", "bar")


def write_shop(folder: Path, num_products: int = 6, queries_per_product: int = 3) -> tuple[Path, Path]:
    """Write products.csv and queries.csv, with every third query of the training split repeated as validation."""
    folder.mkdir(parents=True, exist_ok=True)
    products, queries = [], []
    for number in range(num_products):
        colour, shape = list(COLOURS)[number % 5], SHAPES[(number // 5 + number % 5) % 3]
        picture(colour, shape, 0).save(folder / f"shop{number}.jpg")
        products.append(
            {
                "product_id": f"{number:03d}",
                "image": f"shop{number}.jpg",
                "title": f"{colour} {shape}",
                "category": shape,
            }
        )
        for query in range(queries_per_product):
            name = f"street{number}-{query}.jpg"
            picture(colour, shape, query + 1).save(folder / name)
            for split in ("train", "val") if query == 0 else ("train",):
                queries.append({"split": split, "image": name, "text": colour, "product_id": f"{number:03d}"})
    return write_table(folder / "products.csv", products), write_table(folder / "queries.csv", queries)


def picture(colour: str, shape: str, shift: int) -> Image.Image:
    image = Image.new("RGB", (48, 40), "white" if shift == 0 else (200, 190, 180 - 9 * shift))
    box = {"disc": (10, 6, 36, 32), "box": (8, 8, 34, 30), "bar": (4, 15, 42, 24)}[shape]
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "disc" else draw.rectangle)([edge + shift for edge in box], fill=COLOURS[colour])
    return image


def write_table(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def small(folder: Path, *more: str) -> list[str]:
    """Return overrides of train: a small shop, the smallest towers, no progress bar, everything in `folder`."""
    return [
        "data=manifest",
        f"data.source.products={folder}/shop/products.csv",
        f"data.source.queries={folder}/shop/queries.csv",
        f"paths.data={folder}/prepared",
        f"paths.runs={folder}/runs",
        "data.batch_size=8",
        "data.eval_batch_size=8",
        "data.num_workers=0",
        "encoder.image.image_size=32",
        "encoder.image.width=64",
        "encoder.text.width=32",
        "encoder.text.num_layers=1",
        "encoder.text.vocabulary=200",
        "embed_dim=16",
        "trainer=cpu",
        "trainer.max_epochs=2",
        "callbacks.progress_bar=null",
        *more,
    ]
