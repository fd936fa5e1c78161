"""Write small catalogs to choose and measure a recipe on: random parts of emoji and of grocery.

python experiments/small_catalog/make_subsets.py <folder> <MIM_DATA_DIR>/data <number of subsets>

<folder>/emoji-<k> has about 420 concepts of whole families, three in five of them trained on and the others evaluated;
<folder>/grocery-<k> the 81 products with 9 of their training photos, evaluated on the photos of val. Each has
products.csv, queries.csv, and train.csv without the evaluated rows, to compare recipes on folds of it.
"""

import csv
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str]
NUM_PRODUCTS, TRAINED_FRACTION, NUM_PHOTOS = 420, 0.6, 9


def main() -> None:
    folder, data, num_subsets = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for k in range(1, num_subsets + 1):
        write(folder / f"emoji-{k}", *emoji_subset(data / "emoji", random.Random(k)))
        write(folder / f"grocery-{k}", *grocery_subset(data / "grocery", random.Random(k)))


def emoji_subset(source: Path, rng: random.Random) -> tuple[list[Row], list[Row]]:
    families = defaultdict[str, list[Row]](list)
    for product in read(source / "products.csv"):
        families[product["family"]].append(product)
    names = sorted(families)
    rng.shuffle(names)
    products: list[Row] = []
    split_of: dict[str, str] = {}
    while len(products) < NUM_PRODUCTS:
        family = families[names.pop()]
        split = "train" if len(products) < TRAINED_FRACTION * NUM_PRODUCTS else "val"
        split_of |= {product["product_id"]: split for product in family}
        products += family
    queries = [row for row in read(source / "queries.csv") if row["product_id"] in split_of]
    return products, [row | {"split": split_of[row["product_id"]]} for row in queries]


def grocery_subset(source: Path, rng: random.Random) -> tuple[list[Row], list[Row]]:
    rows = [
        {"split": row["split"], "image": row["query_image"], "text": row["query_text"], "product_id": row["product_id"]}
        for row in read(source / "pairs.csv", "query_image")
        if row["split"] != "test"
    ]
    rng.shuffle(rows)
    queries, num_taken = [], Counter[str]()
    for number, row in enumerate(rows):
        num_taken[row["product_id"]] += row["split"] == "train"
        if row["split"] == "val" or num_taken[row["product_id"]] <= NUM_PHOTOS:
            queries.append(row | {"query_id": f"q{number:05d}", "shown_product_id": "", "kind": ""})
    return read(source / "products.csv"), queries


def read(path: Path, image: str = "image") -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [row | {image: str(path.parent.absolute() / row[image])} for row in csv.DictReader(file)]


def write(folder: Path, products: Sequence[Row], queries: Sequence[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train = [row for row in queries if row["split"] == "train"]
    for name, rows in (("products", products), ("queries", queries), ("train", train)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(f"{folder}: {len(products)} products, {len(train)} rows of {len(queries)} to train on")


if __name__ == "__main__":
    main()
