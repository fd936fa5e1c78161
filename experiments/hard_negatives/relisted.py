"""A drawn shop in which every fourth product is sold twice, and what miners took for negatives there.

    python experiments/hard_negatives/relisted.py write <folder>
    python experiments/hard_negatives/relisted.py count <folder> <arm>=<folder of a run> ...

A second listing has an id of its own; half of them keep the picture (encoded again), the others have one taken anew:
turned, cropped and brighter. Of a product's training queries every other one names the second listing as its only
answer, so the first is a right answer that nobody named. Validation queries name both. `count` writes false.csv and
false.md: of the negatives that runs mined, those that are the other listing.
"""

import argparse
import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
from PIL import Image, ImageEnhance

from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.data.preparation.product_groups import find_product_groups
from mim_lightning.data.synthetic.writer import write_synthetic_world
from mim_lightning.ids import hash_id
from mim_lightning.metrics.intervals import bootstrap_intervals

TARGET = Path(__file__).parent
LIMITS, PICTURE = (None, 1.0, 0.95, 0.9, 0.8), "skip_duplicates=true"
EVERY, NUM_PRODUCTS = 4, 240
SAME, NEW = "same picture", "new picture"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "count"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="*")
    arguments = parser.parse_args()
    {"write": write, "count": count}[arguments.action](arguments.folder, arguments.runs)


def write(folder: Path, _: list[str]) -> None:
    paths = write_synthetic_world(folder, NUM_PRODUCTS, 4, 2, 64, change_share=0.0)
    products, queries = (list(csv.DictReader(path.open())) for path in paths)
    second = {row["product_id"]: f"{row['product_id']}-b" for row in products[::EVERY]}
    for number, row in enumerate(products[::EVERY]):
        image = Image.open(folder / row["image"])
        path = f"images/shop/{second[row['product_id']]}.jpg"
        kind = SAME if number % 2 else NEW
        _taken_anew(image).save(folder / path, quality=92) if kind == NEW else image.save(folder / path, quality=75)
        products.append({**row, "product_id": second[row["product_id"]], "image": path, "relisted": kind})
    seen: dict[str, int] = defaultdict(int)
    for row in queries:
        first = row["product_id"]
        if first in second:
            seen[first] += 1
            row["product_id"] = (
                f"{first}|{second[first]}" if row["split"] == "val" else (first, second[first])[seen[first] % 2]
            )
        row["shown_product_id"] = row["product_id"]
    for path, rows in zip(paths, (products, queries), strict=True):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row))
            writer.writeheader()
            writer.writerows(rows)


def _taken_anew(image: Image.Image) -> Image.Image:
    side = image.width
    turned = image.rotate(8, Image.Resampling.BICUBIC, fillcolor=image.getpixel((1, 1)))
    cropped = turned.crop((side // 12, side // 16, side - side // 20, side - side // 14)).resize((side, side))
    return ImageEnhance.Brightness(cropped).enhance(1.12)


def count(folder: Path, runs: list[str]) -> None:
    rows = list(csv.DictReader((folder / "products.csv").open()))
    kind_of = {row["product_id"]: row["relisted"] for row in rows if row["relisted"]}
    other: dict[str, str] = {}
    for second in kind_of:
        first = second.removesuffix("-b")
        other |= {first: second, second: first}
    kinds = {hash_id(one): kind_of.get(one) or kind_of[two] for one, two in other.items()}
    twin = {hash_id(one): hash_id(two) for one, two in other.items()}
    group = {hash_id(one): hash_id(min(one, two)) for one, two in other.items()}
    queries = list(csv.DictReader((folder / "queries.csv").open()))
    answers = {hash_id(row["query_id"]): hash_id(row["product_id"]) for row in queries}
    groups = find_product_groups(open_prepared(folder / "prepared"), None, skip_duplicates=True)
    picture = dict(zip(groups.product_keys.tolist(), groups.group_keys.tolist(), strict=True))
    found = []
    for entry in runs:
        arm, _, run = entry.partition("=")
        for path in sorted((Path(run) / "negatives").glob("pass-*.parquet")):
            table = read(path)
            for limit in (*LIMITS, PICTURE) if arm == "unguarded" else (None,):
                for kind in (SAME, NEW):
                    own = [row for row in table if kinds.get(answers[row.query_key]) == kind]
                    kept = [row.kept(None if limit == PICTURE else limit) for row in own]
                    if limit == PICTURE:
                        shown = [picture.get(answers[row.query_key], 0) for row in own]
                        kept = [
                            [key for key in keys if picture.get(key, 1) != one]
                            for keys, one in zip(kept, shown, strict=True)
                        ]
                    false = [twin[answers[row.query_key]] in keys for row, keys in zip(own, kept, strict=True)]
                    clusters = np.array([group[answers[row.query_key]] for row in own])
                    low, high = bootstrap_intervals({"": np.array(false, dtype=float)}, clusters, 1000)[""]
                    found.append(
                        {
                            "arm": arm,
                            "run": Path(run).name,
                            "table": path.stem,
                            "guard": limit or "",
                            "second listing": kind,
                            "queries": len(own),
                            "negatives": sum(map(len, kept)),
                            "false": sum(false),
                            "low": low,
                            "high": high,
                        }
                    )
    write_csv("false.csv", found)
    last = max(row["table"] for row in found)
    lines = [
        "| mined | second listing | queries | negatives a query | false, of the negatives | of queries, 95 % |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for arm, limit in dict.fromkeys((row["arm"], row["guard"]) for row in found):
        for kind in (SAME, NEW):
            these = [
                row
                for row in found
                if (row["arm"], row["guard"], row["second listing"]) == (arm, limit, kind) and row["table"] == last
            ]
            queries, negatives, false = (sum(row[key] for row in these) for key in ("queries", "negatives", "false"))
            low, high = (np.mean([row[key] for row in these]) for key in ("low", "high"))
            name = f"{arm}, then {PICTURE if limit == PICTURE else f'max_relative_score={limit}'}" if limit else arm
            lines.append(
                f"| {name} | {kind} | {queries} | {negatives / queries:.1f} | {false / max(1, negatives):.1%} | "
                f"{false / queries:.1%} [{low:.1%}, {high:.1%}] |"
            )
    (TARGET / "false.md").write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Row:
    """The negatives of a query, best first."""

    query_key: int
    positive: float
    negatives: list
    scores: list[float]

    def kept(self, limit: float | None) -> list:
        """Return those that the guard by score leaves."""
        if limit is None:
            return self.negatives
        highest = self.positive - (1 - limit) * abs(self.positive) if math.isfinite(self.positive) else -math.inf
        return [one for one, score in zip(self.negatives, self.scores, strict=True) if score <= highest]


def read(path: Path) -> list[Row]:
    columns = ("query_key", "positive_score", "negative_keys", "scores")
    return [Row(*(row[name] for name in columns)) for row in pyarrow.parquet.read_table(path).to_pylist()]


def write_csv(name: str, rows: list[dict]) -> None:
    with (TARGET / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
