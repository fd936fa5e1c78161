"""Make folds of the training rows of grocery and emoji, to choose a recipe without the split that is reported.

python experiments/recipes/make_folds.py <folder> <data>

Writes <folder>/<set>/products.csv and fold-<k>.csv, k from 1 to 3: queries of which split `val` is a part of the
training rows, and `train` the others. Nothing of a set's own val or test is in them.

    grocery   of each product a quarter of its photos, in a row as they were taken: neighbours resemble each other
    emoji     a fifth of the families, with all their photos and composed queries
"""

import csv
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

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
    rows = [
        {
            "query_id": f"q{number:05d}",
            "image": str(source.absolute() / row["query_image"]),
            "text": row["query_text"],
            "product_id": row["product_id"],
        }
        for number, row in enumerate(read(source / "pairs.csv"))
        if row["split"] == "train"
    ]
    of_product = defaultdict[str, list[str]](list)
    for row in rows:
        of_product[row["product_id"]].append(row["query_id"])
    quarter = {id_: 4 * place // len(ids) for ids in of_product.values() for place, id_ in enumerate(ids)}
    return read_products(source), rows, lambda row, fold: quarter[row["query_id"]] == fold


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


SETS = {"grocery": read_grocery, "emoji": read_emoji}


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
