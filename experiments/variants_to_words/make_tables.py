"""Write the tables of the record: products with style and attributes, query logs with and without composed rows.

python experiments/variants_to_words/make_tables.py <folder> <data/emoji>

<folder>/shop and <folder>/emoji get products.csv, real.csv (all queries) and plain.csv (without the composed rows of
the training split). In the shop, a style is a category, shape, size and brand, and every fifth style is evaluated
alone. Of emoji, which has splits by concept, it is the title without skin tone and without woman or man.
"""

import csv
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mim_lightning.data.synthetic import write_synthetic_world
from mim_lightning.ids import hash_id

Row = dict[str, Any]
TONE = re.compile(r":?,? ?\b((?:light|medium-light|medium|medium-dark|dark) skin tone)\b")
GENDER = re.compile(r"\b(woman|man|person|women|men|people)\b:? ?")
GENDERS = {"women": "woman", "men": "man", "people": "person"}
STYLE = ("category", "shape", "size", "brand")


def main() -> None:
    folder, emoji = map(Path, sys.argv[1:])
    write_emoji(folder / "emoji", emoji)
    write_shop(folder / "shop")


def write_shop(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_synthetic_world(folder, 480, 4, 2, image_size=64, num_processes=1)
    products = [{**row, "style": " ".join(row[name] for name in STYLE)} for row in read(folder / "products.csv")]
    held_out = {row["product_id"] for row in products if hash_id(row["style"]) % 5 == 0}
    queries = []
    for row in read(folder / "queries.csv"):
        if row["product_id"] in held_out:
            queries.append({**row, "split": "val"})
        elif row["split"] == "train":
            queries.append(row)
    write(folder, products, queries, lambda row: row["kind"] == "change")


def write_emoji(folder: Path, source: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    products = [absolute({**row, **attributes(row["title"])}, source) for row in read(source / "products.csv")]
    sizes = Counter(row["style"] for row in products)
    products = [row for row in products if sizes[row["style"]] > 1]  # concepts with variants
    kept = {row["product_id"] for row in products}
    queries = [absolute(row, source) for row in read(source / "queries.csv") if row["product_id"] in kept]
    queries = [row for row in queries if (row["shown_product_id"] or row["product_id"]) in kept]
    write(folder, products, queries, lambda row: row["kind"] != "image")


def attributes(title: str) -> Row:
    """Return the style, skin tone and gender of a title such as "woman cook: dark skin tone"."""
    tone, gender = TONE.search(title), GENDER.search(title)
    style = GENDER.sub("", TONE.sub("", title)).strip(" :,") or "person"
    word = gender[1] if gender else "person"
    return {"style": style, "tone": tone[1] if tone else "no skin tone", "gender": GENDERS.get(word, word)}


def absolute(row: Row, root: Path) -> Row:
    return {**row, "image": str(root.absolute() / row["image"])}


def read(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def write(folder: Path, products: list[Row], queries: list[Row], is_composed: Callable[[Row], bool]) -> None:
    plain = [row for row in queries if row["split"] != "train" or not is_composed(row)]
    for name, rows in (("products", products), ("real", queries), ("plain", plain)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"{folder / name}.csv: {len(rows)} rows")


if __name__ == "__main__":
    main()
