"""Ask with a photo for the same product without something, in several ways, and count what still has it.

    python experiments/taking_away/measure.py experiments/taking_away --indexes runs/taking_away/index-*

The drawn shop: every photo shows a product whose color and pattern are known. Right are the products that differ from
it in that alone. Writes results.json and table.md into the folder of the record.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from mim_lightning.config import build
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.data.synthetic.catalog import PATTERN_PHRASES
from mim_lightning.metrics.intervals import bootstrap_intervals, paired_difference
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import Searcher, open_searcher

NUM_HITS = 10
ATTRIBUTES = ("colour", "pattern")
LOOK = ("category", "shape", "size", "brand", *ATTRIBUTES)
SUBTRACTED = (0.25, 0.5, 1.0, 2.0)  # weights of the words that are taken away
HEADER = (
    "| taken away | query | hits that still have it | against the photo | hit@1 | against the photo |",
    "| --- | --- | ---: | ---: | ---: | ---: |",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="folder of the record")
    parser.add_argument("--indexes", nargs="+", help="of models that differ in the seed")
    parser.add_argument("--num-photos", type=int, help="default: all of the validation split")
    options = parser.parse_args()
    if options.indexes:
        seeds = [search_all(open_searcher(place), options.num_photos) for place in options.indexes]
        (options.experiment / "results.json").write_text(json.dumps(seeds) + "\n")
    seeds = json.loads((options.experiment / "results.json").read_text())
    text = "\n".join([*HEADER, *table_lines(seeds)]) + "\n"
    (options.experiment / "table.md").write_text(text)
    print(text)


def search_all(searcher: Searcher, num_photos: int | None) -> dict:
    """Return by attribute the shown products, and by way the rate of hits with it and whether the first is right."""
    data = searcher.encoder.config["data"]
    prepared = open_prepared(data["folder"], build(data.get("cache")))
    ids = [fact["product_id"] for fact in prepared.catalog().all_facts()]
    looks = dict(zip(ids, searcher.index.products(ids), strict=True))
    queries = prepared.queries(data["shards"]["val_split"])
    chosen = np.random.default_rng(0).permutation(len(queries))[:num_photos]
    found = {name: {"products": [], "ways": {}} for name in ATTRIBUTES}
    for sample in queries.read_few(sorted(chosen.tolist())):
        shown = (sample.reference_ids or (sample.product_id,))[0]
        for name in ATTRIBUTES:
            value = looks[shown][name]
            right = {other for other, look in looks.items() if differs_in(name, look, looks[shown])}
            if value == "plain" or not right:
                continue
            found[name]["products"].append(shown)
            for way, query in ways_to_ask(sample.inputs["query_image"], name, value).items():
                hits = searcher.search(query).hits
                still = [looks[hit.product_id][name] == value for hit in hits]
                counted = found[name]["ways"].setdefault(way, {"still": [], "hit@1": []})
                counted["still"].append(float(np.mean(still)))
                counted["hit@1"].append(float(hits[0].product_id in right))
    return found


def differs_in(name: str, look: dict, shown: dict) -> bool:
    """Return whether a product differs from the shown one in an attribute, and in nothing else."""
    return look[name] != shown[name] and all(look[other] == shown[other] for other in LOOK if other != name)


def ways_to_ask(photo: bytes, name: str, value: str) -> dict[str, SearchQuery]:
    words = PATTERN_PHRASES[value].replace("with ", "without ") if name == "pattern" else f"not {value}"
    ways = {"the photo": {}, "photo and words": {"text": words}}
    for weight in SUBTRACTED:
        ways[f"words subtracted, weight {weight:g}"] = {"not_text": value, "weights": {"not_text": weight}}
    return {way: SearchQuery(images=(photo,), num_hits=NUM_HITS, **parts) for way, parts in ways.items()}


def table_lines(seeds: list[dict]) -> list[str]:
    lines = []
    for name in ATTRIBUTES:
        products = np.array(seeds[0][name]["products"])
        for way in seeds[0][name]["ways"]:
            cells = []
            for measure in ("still", "hit@1"):
                values_SQ = np.array([seed[name]["ways"][way][measure] for seed in seeds])
                alone_SQ = np.array([seed[name]["ways"]["the photo"][measure] for seed in seeds])
                low, high = bootstrap_intervals({measure: values_SQ}, products)[measure]
                cells.append(f"{values_SQ.mean():.3f} ({low:.3f} - {high:.3f})")
                found = paired_difference(values_SQ, alone_SQ, products)
                cells.append(
                    "" if way == "the photo" else f"{found.difference:+.3f} ({found.low:+.3f} - {found.high:+.3f})"
                )
            lines.append(f"| {'color' if name == 'colour' else name} | {way} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
