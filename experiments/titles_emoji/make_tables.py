"""Write the tables of the record: few products with photos of shoppers, all of them with title and catalog picture.

python experiments/titles_emoji/make_tables.py <folder> <data/emoji> <seed>

<folder> gets products.csv, shuffled.csv (the titles of the training products are exchanged) and tables of queries. A
table has a row for each training product that is its title alone, photos of a part of the training families, and all
rows of the other splits. Photos are drawn as often as titles, whatever their numbers (column weight).

    photos-<percent>     photos of so many percent of the training families
    own-<percent>        the same, and in the rows of titles the catalog's picture of the product stands for a photo
    composed-<percent>   photos-<percent>, with photo and words of the same families in place of half of the titles
    <artist>-15          photos by one artist alone
"""

import csv
import random
import sys
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str]
PERCENTS = (5, 15, 100)
ARTISTS = ("fluent3d", "twemoji")
TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}


def main() -> None:
    folder, source, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    products = {row["product_id"]: row for row in read(source, "products.csv")}
    trained = [row for row in products.values() if row["split"] == "train"]
    write(folder / "products.csv", [*products.values()])
    write(folder / "shuffled.csv", [*(products | exchanged_titles(trained, rng)).values()])
    queries = [query | {"toned": toned(products[query["product_id"]])} for query in read(source, "queries.csv")]
    evaluated = [query for query in queries if query["split"] != "train"]
    titles = [title_row(product) for product in trained]
    own = [row | {"image": products[row["product_id"]]["image"]} for row in titles]
    families = sorted({product["family"] for product in trained})
    rng.shuffle(families)
    for percent in PERCENTS:
        chosen = set(families[: round(len(families) * percent / 100)])
        rows = [q for q in queries if q["split"] == "train" and products[q["product_id"]]["family"] in chosen]
        photos = [row for row in rows if row["kind"] == "image"]
        composed = [row for row in rows if row["kind"] != "image"]
        tables = {
            f"photos-{percent}": weighted((photos, 1.0), (titles, 1.0)),
            f"own-{percent}": weighted((photos, 1.0), (own, 1.0)),
            f"composed-{percent}": weighted((photos, 1.0), (composed, 0.5), (titles, 0.5)),
        }
        if percent == 15:
            for artist in ARTISTS:
                drawn = [row for row in photos if row["domain"] == artist]
                tables[f"{artist}-{percent}"] = weighted((drawn, 1.0), (titles, 1.0))
        for name, table in tables.items():
            write(folder / f"{name}.csv", [*table, *evaluated])


def exchanged_titles(products: Sequence[Row], rng: random.Random) -> dict[str, Row]:
    """Return the products by id, each with title and description of another one."""
    others = rng.sample(products, len(products))
    texts = [{key: other[key] for key in ("title", "description")} for other in others]
    return {row["product_id"]: row | text for row, text in zip(products, texts, strict=True)}


def title_row(product: Row) -> Row:
    """Return a training row without a photo. Its text is the title, so that four towers learn no more words."""
    product_id = product["product_id"]
    row = {"query_id": f"title-{product_id}", "split": "train", "image": "", "text": product["title"]}
    return row | {"product_id": product_id, "kind": "title", "domain": "none", "toned": toned(product)}


def toned(product: Row) -> str:
    return "yes" if TONES & set(product["codepoints"].split("-")) else "no"


def weighted(*parts: tuple[Sequence[Row], float]) -> list[Row]:
    """Return the rows of all parts with weights that sum to the given mass over a part."""
    return [row | {"weight": f"{1000 * mass / len(rows):.6f}"} for rows, mass in parts for row in rows]


def read(source: Path, name: str) -> list[Row]:
    with (source / name).open(newline="", encoding="utf-8") as file:
        return [row | {"image": str(source.absolute() / row["image"])} for row in csv.DictReader(file)]


def write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]], restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
