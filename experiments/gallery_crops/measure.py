"""Search indexes of one catalog with the same photos, and compare what they find, paired by query.

    python experiments/gallery_crops/measure.py experiments/gallery_crops --checkpoint best.ckpt \
        --emoji data/emoji --indexes "clutter, whole=runs/.../whole" "2 x 2 parts=runs/.../grid2"

The first index is the baseline. Writes results.json (hits of each query) and table.md into the folder of the record.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from mim_lightning import load
from mim_lightning.metrics.intervals import bootstrap_intervals, paired_difference
from mim_lightning.search.index.factory import open_index

NUM_HITS = 10
HEADER = (
    "| gallery | vectors a product | bytes a product | hit@1 | hit@10 | hit@1 against the first |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="folder of the record")
    parser.add_argument("--checkpoint", help="that the indexes were built with")
    parser.add_argument("--emoji", type=Path, help="folder with queries.csv")
    parser.add_argument("--indexes", nargs="+", help="<name in the table>=<folder>")
    options = parser.parse_args()
    if options.indexes:
        (options.experiment / "results.json").write_text(json.dumps(search_all(options), indent=1) + "\n")
    record = json.loads((options.experiment / "results.json").read_text())
    text = "\n".join([*HEADER, *table_lines(record)]) + "\n"
    (options.experiment / "table.md").write_text(text)
    print(text)


def search_all(options: argparse.Namespace) -> dict:
    indexes = {name: open_index(place) for name, place in (each.split("=", 1) for each in options.indexes)}
    first = next(iter(indexes.values()))
    known = {row["product_id"] for row in first.products(sorted(list_ids(options.emoji)))}
    rows = csv.DictReader((options.emoji / "queries.csv").open())
    queries = [row for row in rows if row["kind"] == "image" and row["product_id"] in known]
    photos = [options.emoji / row["image"] for row in queries]
    vectors_QD = load(options.checkpoint).embed_images(photos)
    families = {row["product_id"]: row["family"] for row in csv.DictReader((options.emoji / "products.csv").open())}
    record = {"families": [families[row["product_id"]] for row in queries], "indexes": {}}
    for name, index in indexes.items():
        found_QK = index.search(vectors_QD, NUM_HITS).product_ids
        ranks = [
            [*found].index(row["product_id"]) + 1 if row["product_id"] in found else 0
            for row, found in zip(queries, found_QK.tolist(), strict=True)
        ]
        card = index.card
        record["indexes"][name] = {
            "rank": ranks,  # 0: not among the hits
            "num_products": card.num_products,
            "num_rows": card.num_rows,
            "bytes_per_row": card.memory_bytes_per_row,
        }
    return record


def list_ids(folder: Path) -> set[str]:
    return {row["product_id"] for row in csv.DictReader((folder / "products.csv").open()) if row["split"] == "test"}


def table_lines(record: dict) -> list[str]:
    families, lines, baseline = np.array(record["families"]), [], None
    for name, part in record["indexes"].items():
        ranks_Q = np.array(part["rank"])
        hits = {f"hit@{k}": ((ranks_Q > 0) & (ranks_Q <= k)).astype(float) for k in (1, NUM_HITS)}
        ends = bootstrap_intervals(hits, families)
        cells = [f"{hits[key].mean():.3f} ({low:.3f} - {high:.3f})" for key, (low, high) in ends.items()]
        vectors = part["num_rows"] / part["num_products"]
        if baseline is None:
            baseline, difference = hits["hit@1"], ""
        else:
            found = paired_difference(hits["hit@1"], baseline, families)
            difference = f"{found.difference:+.3f} ({found.low:+.3f} - {found.high:+.3f})"
        size = f"{vectors * part['bytes_per_row']:,.0f}"
        lines.append(f"| {name} | {vectors:.1f} | {size} | {' | '.join(cells)} | {difference} |")
    return lines


if __name__ == "__main__":
    main()
