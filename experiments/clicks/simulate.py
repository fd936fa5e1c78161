"""Shoppers of the drawn shop: what a photo search showed them, and what they clicked.

    python experiments/clicks/simulate.py <folder>                      the shop, and a log of each kind of shopper
    python experiments/clicks/simulate.py <folder> --coverage 20        how often intervals hold the planted examination

The old search looks at the photo; the promoted one also puts some products first. A query asks for its target: shoppers
like that one best, products that differ from it in color or pattern less. Kinds of shoppers, and of what they see:

    position   examine position k with probability k^-0.7, and click what they like of it
    none       examine everything
    cascade    read from the top, and stop at the first product that they click
    sponsored  as `position`, but what the photo finds is ordered by what the shop earns, not by how well it fits
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mim_lightning.data.clicks.click_log import ClickLog
from mim_lightning.data.clicks.examination import estimate_after_click, estimate_examination
from mim_lightning.data.manifest.row_store import RowStore
from mim_lightning.data.manifest.rows import raise_issue
from mim_lightning.data.manifest.table import open_table
from mim_lightning.data.synthetic import write_synthetic_world

KINDS = ("position", "none", "cascade")
SPONSORED = "sponsored"
EXPONENT, NUM_POSITIONS, NUM_ANSWERS = 0.7, 10, 12
LOOKS = ("category", "shape", "brand", "colour", "pattern")
TARGET, SAME_CATEGORY, OTHER = 0.7, 0.05, 0.02  # relevance: chance of a click if examined
MOOD = 0.5  # of the old search: spread of noise in each answer
COLUMNS = ("impression_id", "query_id", "product_id", "position", "clicked")


@dataclass(frozen=True)
class Search:
    """An old search, and what its shoppers like besides their target."""

    near: float  # relevance of products that differ from the target in color or pattern
    in_photo: float | None  # relevance of the product in the photo; None: as others
    taste: float  # spread of what the search adds to a product for one query
    promotion: float  # spread of what it adds to a product for all queries
    orders: bool = False  # by the promotion alone, among the products that the rest of the score finds


PHOTO = Search(near=0.15, in_photo=0.3, taste=0.6, promotion=0.0)  # of --coverage
PROMOTED = Search(near=0.25, in_photo=None, taste=0.0, promotion=1.0)  # of the logs to train on
ORDERED = replace(PROMOTED, orders=True)


@dataclass(frozen=True)
class Shop:
    """Ids, and what shoppers and the old search think of each product for each query, (Q, P)."""

    query_ids: list[str]
    product_ids: list[str]
    relevance: np.ndarray
    scores: np.ndarray
    order: np.ndarray | None  # (P,) by which the products found are ordered; None: by their scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--coverage", type=int, help="number of logs of each kind")
    parser.add_argument("--queries", type=int, default=400, help="of each log of --coverage")
    parser.add_argument("--image-size", type=int, default=64)
    arguments = parser.parse_args()
    folder = arguments.folder
    if not (folder / "queries.csv").is_file():
        write_synthetic_world(folder, image_size=arguments.image_size)
    products, queries = read(folder / "products.csv"), read(folder / "queries.csv")
    if arguments.coverage:
        write_coverage(products, queries, folder, arguments.coverage, arguments.queries)
        return
    shop = open_shop(products, [query for query in queries if query["split"] == "train"], PROMOTED, seed=0)
    for kind in KINDS:
        write_log(folder / f"log_{kind}.csv", shop, kind, seed=0)
    shop = open_shop(products, [query for query in queries if query["split"] == "train"], ORDERED, seed=0)
    write_log(folder / f"log_{SPONSORED}.csv", shop, "position", seed=0)
    with (folder / "asked.csv").open("w", newline="") as file:  # answers of the training queries are not known
        writer = csv.DictWriter(file, list(queries[0]))
        writer.writeheader()
        writer.writerows({**q, "product_id": "" if q["split"] == "train" else q["product_id"]} for q in queries)


def open_shop(products: Sequence[dict[str, str]], queries: Sequence[dict[str, str]], search: Search, seed: int) -> Shop:
    rng = np.random.default_rng(seed)
    looks = np.array([[product[name] for name in LOOKS] for product in products])
    idx = {product["product_id"]: number for number, product in enumerate(products)}
    target = np.array([idx[query["product_id"]] for query in queries])
    photo = np.array([idx[query["shown_product_id"]] for query in queries])
    num_same = (looks[target][:, None] == looks[None]).sum(2)
    is_same_category = looks[target][:, None, 0] == looks[None, :, 0]
    relevance = np.where(num_same >= len(LOOKS) - 1, search.near, np.where(is_same_category, SAME_CATEGORY, OTHER))
    rows = np.arange(len(queries))
    if search.in_photo is not None:
        relevance[rows, photo] = search.in_photo
    relevance[rows, target] = TARGET
    scores = (looks[photo][:, None] == looks[None]).sum(2).astype(float)
    scores += rng.normal(0, search.taste, relevance.shape) if search.taste else 0.0
    promotion = rng.normal(0, search.promotion, len(products)) if search.promotion else np.zeros(len(products))
    query_ids = [query["query_id"] for query in queries]
    if search.orders:
        return Shop(query_ids, [*idx], relevance, scores, promotion)
    return Shop(query_ids, [*idx], relevance, scores + promotion, None)


def simulate(shop: Shop, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the products of each answer and the clicks on them, (Q, answers, positions)."""
    rng = np.random.default_rng(seed + 1)
    shape = len(shop.query_ids), NUM_ANSWERS, NUM_POSITIONS
    scores = shop.scores[:, None] + rng.normal(0, MOOD, (len(shop.query_ids), NUM_ANSWERS, len(shop.product_ids)))
    shown = np.argsort(-scores, axis=2)[:, :, :NUM_POSITIONS]
    if shop.order is not None:
        earned = shop.order[shown] + rng.normal(0, MOOD, shape)
        shown = np.take_along_axis(shown, np.argsort(-earned, axis=2), 2)
    likes = rng.random(shape) < np.take_along_axis(shop.relevance[:, None].repeat(NUM_ANSWERS, 1), shown, 2)
    if kind == "position":
        likes &= rng.random(shape) < np.arange(1, NUM_POSITIONS + 1) ** -EXPONENT
    elif kind == "cascade":
        likes &= likes.cumsum(2) == 1
    return shown, likes


def rows_of(shop: Shop, kind: str, seed: int) -> Iterator[tuple[str, str, str, int, int]]:
    shown, clicks = simulate(shop, kind, seed)
    for query, query_id in enumerate(shop.query_ids):
        for answer in range(NUM_ANSWERS):
            for position in range(NUM_POSITIONS):
                product = shop.product_ids[shown[query, answer, position]]
                yield f"{query}-{answer}", query_id, product, position + 1, int(clicks[query, answer, position])


def write_log(path: Path, shop: Shop, kind: str, seed: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows_of(shop, kind, seed))


def write_coverage(
    products: Sequence[dict[str, str]], queries: list[dict[str, str]], folder: Path, num_logs: int, num_queries: int
) -> None:
    """Write coverage.csv: of each log and position the estimate with its interval, beside the truth."""
    planted = {"position": np.arange(1, NUM_POSITIONS + 1) ** -EXPONENT, "none": np.ones(NUM_POSITIONS)}
    with (folder / "coverage.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "log", "position", "planted", "examination", "low", "high", "after_click"])
        for kind in KINDS:
            for seed in range(num_logs):
                some = np.random.default_rng(seed).choice(len(queries), num_queries, replace=False)
                write_log(folder / "log.csv", open_shop(products, [queries[i] for i in some], PHOTO, seed), kind, seed)
                log = ClickLog(open_table(folder / "log.csv", "impressions"), {}, RowStore(), 20, raise_issue)
                paired = log.paired_clicks()
                after = estimate_after_click(paired)
                for idx, found in enumerate(estimate_examination(paired)):
                    truth = planted[kind][idx] if kind in planted else ""
                    writer.writerow(
                        [kind, seed, idx + 1, truth, found.value, found.low, found.high, after.value if after else ""]
                    )
                log.store.close()


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


if __name__ == "__main__":
    main()
