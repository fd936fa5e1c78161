"""Is a calibration true? `python benchmarks/calibration.py --index <folder>` of an index of the drawn shop, flat.

Every held-out query is searched for once, and all products are ranked. From these scores catalogs are drawn in which
the products of some queries are really missing; half of the queries calibrate, the other half is counted. Queries of a
product stay together. Prints a table; `--output` also writes JSON, `--tables` the tables of such a file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from record import add_output, table, write_record, write_tables

from mim_lightning.config import build
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.search.calibration import KINDS, fit_calibration
from mim_lightning.search.judged_searches import answers_of, query_of
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import Searcher, open_searcher

NUM_HITS, RATE = 10, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", help="folder of an index, beside the data that its model was trained with")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--missing", type=float, default=0.25, help="fraction of the products that are left out")
    parser.add_argument("--grown-from", type=float, default=0.25, help="fraction of a catalog before it grew")
    add_output(parser, tables=True)
    options = parser.parse_args()
    if options.tables:
        write_table(options.tables)
        return
    searcher = open_searcher(options.index)
    record: dict[str, Any] = {"draws": options.draws, "missing": options.missing, "grown_from": options.grown_from}
    record |= {"machine": describe_machine(), "num_products": searcher.index.card.num_products, "kinds": {}}
    for kind in KINDS:
        scores_QN, is_right_QN, groups_Q = rank_all(searcher, kind)
        lines = [count(scores_QN, is_right_QN, groups_Q, options, seed) for seed in range(options.draws)]
        record["kinds"][kind] = {"num_queries": len(scores_QN), "draws": lines}
    write_record(options.output, record)
    if options.output:
        write_table(options.output)


def rank_all(searcher: Searcher, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the score of every product (Q, N), whether it answers the query, and a number for the query's product."""
    data = searcher.encoder.config["data"]  # type: ignore[attr-defined]
    queries = open_prepared(data["folder"], build(data.get("cache"))).queries(data["shards"]["val_split"])
    num_products, places, groups = searcher.index.card.num_products, dict[str, int](), dict[str, int]()
    rows = []
    for sample in queries.read_few(range(len(queries))):
        query, right = query_of(sample, kind), answers_of(sample, kind)
        if query is None or not right:
            continue
        hits = searcher.search(SearchQuery(**query, num_hits=num_products)).hits
        for hit in hits:
            places.setdefault(hit.product_id, len(places))
        scores_N, is_right_N = np.zeros(num_products), np.zeros(num_products, dtype=bool)
        for hit in hits:
            place = places[hit.product_id]
            scores_N[place], is_right_N[place] = hit.score, hit.product_id in right
        rows.append((scores_N, is_right_N, groups.setdefault(min(right), len(groups))))
    scores, is_right, group = zip(*rows, strict=True)
    return np.array(scores), np.array(is_right), np.array(group)


def count(
    scores_QN: np.ndarray, is_right_QN: np.ndarray, groups_Q: np.ndarray, options: argparse.Namespace, seed: int
) -> dict[str, float]:
    """Return the rates of one draw: of the queries that did not calibrate, in a catalog where some products miss."""
    rng = np.random.default_rng(seed)
    num_groups, num_products = int(groups_Q.max()) + 1, scores_QN.shape[1]
    calibrates_Q = (rng.permutation(num_groups) < num_groups // 2)[groups_Q]
    order_N = rng.permutation(num_products)
    there_N = order_N >= options.missing * num_products
    small_N = order_N >= (1 - options.grown_from) * num_products  # a part of what is there

    def judge(is_of_Q: np.ndarray, is_there_N: np.ndarray) -> tuple[np.ndarray, ...]:
        scores, is_right = scores_QN[is_of_Q][:, is_there_N], is_right_QN[is_of_Q][:, is_there_N]
        best = np.argsort(-scores, 1)[:, :NUM_HITS]
        wrong = np.where(is_right, -np.inf, scores).max(1)
        found = np.take_along_axis(scores, best, 1), np.take_along_axis(is_right, best, 1)
        return *found, wrong, is_right.any(1), groups_Q[is_of_Q]

    fitted = fit_calibration(*judge(calibrates_Q, there_N), RATE, seed)
    stale = fit_calibration(*judge(calibrates_Q, small_N), RATE, seed)
    scores, is_right, _, has_answer, _ = judge(~calibrates_Q, there_N)
    chance = np.interp(scores, fitted.scores, fitted.probabilities)
    parts = np.array_split(np.argsort(chance, axis=None), 10)
    gaps = [abs(chance.ravel()[part].mean() - is_right.ravel()[part].mean()) for part in parts]
    first = scores[:, 0]
    return {
        "false_alarms": float((first[~has_answer] >= fitted.threshold).mean()),
        "false_alarms_of_former": float((first[~has_answer] >= stale.threshold).mean()),
        "detected": float((first[has_answer] >= fitted.threshold).mean()),
        "error": float(np.mean(gaps)),
        "stated_false_alarms": fitted.false_alarms.value,
        "stated_detected": fitted.detected.value,
        "stated_error": fitted.error,
    }


def write_table(path: Path) -> None:
    record = json.loads(path.read_text())
    rows = []
    for kind, found in record["kinds"].items():
        cells = []
        for name in ("false_alarms", "stated_false_alarms", "detected", "stated_detected", "error", "stated_error"):
            cells.append(spread([draw[name] for draw in found["draws"]]))
        cells.append(spread([draw["false_alarms_of_former"] for draw in found["draws"]]))
        rows.append([kind, found["num_queries"], *cells])
    headings = ["query", "queries", "false alarms", "stated", "detected", "stated", "error", "stated"]
    missing, former = f"{record['missing']:.0%}", f"{record['grown_from']:.0%}"
    note = (
        f"mean of {record['draws']} draws, and between which nine of ten lie; asked for a false alarm rate of "
        f"{RATE:g}; {record['num_products']} products, {missing} of them missing; former: calibrated when the catalog "
        f"was {former} of it; {record['machine']}"
    )
    write_tables(path.parent, table=table([*headings, "false alarms, former"], rows, note))


def spread(values: list[float]) -> str:
    low, high = np.quantile(values, [0.05, 0.95])
    return f"{np.mean(values):.3f} ({low:.2f} - {high:.2f})"


if __name__ == "__main__":
    main()
