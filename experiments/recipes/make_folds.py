"""Make folds of the training rows of grocery and emoji, to choose a recipe without the split that is reported.

python experiments/recipes/make_folds.py <folder> <data>

Writes <folder>/<set>/products.csv and fold-<k>.csv, k from 1 to 3: queries of which split `val` is a part of the
training rows, and `train` the others. Nothing of a set's own val or test is in them.

    grocery          of each product a quarter of its photos, in a row as they were taken: neighbours look alike
    grocery_apart    of each product one of three groups of photos that look alike in colors and light, the smallest
                     first: nearer to photos of another store
    emoji            a fifth of the families, with all their photos and composed queries
"""

import csv
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import faiss
import numpy as np
from PIL import Image

NUM_FOLDS = 3
Row = dict[str, str]


def main() -> None:
    folder, data = map(Path, sys.argv[1:])
    for name, read_rows in SETS.items():
        products, rows, is_held_out = read_rows(data / name)
        write(folder / name / "products.csv", products)
        for fold in range(NUM_FOLDS):
            split = [row | {"split": "val" if is_held_out(row, fold) else "train"} for row in rows]
            write(folder / name / f"fold-{fold + 1}.csv", split)


IsHeldOut = Callable[[Row, int], bool]


def read_grocery(source: Path) -> tuple[list[Row], list[Row], IsHeldOut]:
    rows = read_grocery_rows(source)
    quarter = {id_: 4 * place // len(ids) for ids in by_product(rows) for place, id_ in enumerate(ids)}
    return read_products(source), rows, lambda row, fold: quarter[row["query_id"]] == fold


def read_grocery_apart(source: Path) -> tuple[list[Row], list[Row], IsHeldOut]:
    source = source.parent / "grocery"
    rows = read_grocery_rows(source)
    looks = {row["query_id"]: thumbnail(row["image"]) for row in rows}
    group = {id_: number for ids in by_product(rows) for id_, number in zip(ids, groups(ids, looks), strict=True)}
    return read_products(source), rows, lambda row, fold: group[row["query_id"]] == fold


def thumbnail(path: str) -> np.ndarray:
    """Return the colors of a photo, 8 by 8 pixels, flat."""
    with Image.open(path) as photo:
        return np.asarray(photo.convert("RGB").resize((8, 8), Image.Resampling.BOX), dtype=np.float32).ravel()


def groups(ids: Sequence[str], looks: Mapping[str, np.ndarray]) -> list[int]:
    """Return the group of each photo by k-means, 0 the smallest."""
    colors = np.stack([looks[id_] for id_ in ids])
    kmeans = faiss.Kmeans(colors.shape[1], NUM_FOLDS, niter=50, nredo=5, seed=0, min_points_per_centroid=1)
    kmeans.train(colors)
    nearest = kmeans.index.search(colors, 1)[1].ravel()
    by_size = np.argsort(np.bincount(nearest, minlength=NUM_FOLDS), kind="stable").tolist()
    return [by_size.index(number) for number in nearest]


def read_grocery_rows(source: Path) -> list[Row]:
    return [
        {
            "query_id": f"q{number:05d}",
            "image": str(source.absolute() / row["query_image"]),
            "text": row["query_text"],
            "product_id": row["product_id"],
        }
        for number, row in enumerate(read(source / "pairs.csv"))
        if row["split"] == "train"
    ]


def by_product(rows: Sequence[Row]) -> Iterable[list[str]]:
    """Return the ids of the queries of each product."""
    ids = defaultdict[str, list[str]](list)
    for row in rows:
        ids[row["product_id"]].append(row["query_id"])
    return ids.values()


def read_emoji(source: Path) -> tuple[list[Row], list[Row], IsHeldOut]:
    products = read_products(source)
    family = {row["product_id"]: row["family"] for row in products}
    rows = [
        row | {"image": str(source.absolute() / row["image"])}
        for row in read(source / "queries.csv")
        if row["split"] == "train"
    ]
    families = sorted({family[row["product_id"]] for row in rows})
    random.Random(0).shuffle(families)
    fifth = {name: 5 * place // len(families) for place, name in enumerate(families)}
    return products, rows, lambda row, fold: fifth[family[row["product_id"]]] == fold


SETS = {"grocery": read_grocery, "grocery_apart": read_grocery_apart, "emoji": read_emoji}


def read_products(source: Path) -> list[Row]:
    return [row | {"image": str(source.absolute() / row["image"])} for row in read(source / "products.csv")]


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
