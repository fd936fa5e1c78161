"""The curves of small vectors of all runs, pooled over seeds.

    python experiments/small_vectors/curves.py runs/small_vectors/*/

Writes curves.csv (a row a run and index), table.md and a figure of each arm beside this file. Of each index one
candidate is compared by its vector for each hit (rerank 1): with more, the few products of this shop are all compared.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.analysis.embeddings import read_embeddings
from mim_lightning.analysis.index_curve import METRIC, CurvePoint, draw_points, evaluate_with, read_ends
from mim_lightning.analysis.record import read_record
from mim_lightning.metrics import bootstrap_intervals, paired_difference
from mim_lightning.search.measured_index import all_settings, build_temporary, make_rows, measure_speed

HERE = Path(__file__).parent
WIDTHS, PRECISIONS, KINDS, NUM_ROWS = [None, 32, 16, 8], ["float32", "int8", "binary"], ["flat", "ivf"], 20_000
EXACT = "exact"


def main(folders: list[str]) -> None:
    scores: dict[str, dict[Any, dict[int, np.ndarray]]] = defaultdict(lambda: defaultdict(dict))
    clusters: dict[int, np.ndarray] = {}
    sizes: dict[Any, tuple[float, float]] = {}
    speeds: dict[Any, float] = {}
    rows = []
    for folder in folders:
        record = read_record(Path(folder))
        config = record.facts.config
        arm, seed = "with" if config["loss"].get("widths") else "without", int(config["seed"])
        ends = read_ends(record, read_embeddings(record.folder), None)
        exact = evaluate_with(ends)
        scores[arm][EXACT][seed] = exact.scores[METRIC].numpy()
        clusters[seed] = exact.cluster_keys.numpy()
        for settings in all_settings(WIDTHS, PRECISIONS, KINDS, rerank=1):
            built = build_temporary(ends.vectors, ends.product_keys, settings)
            key = settings.dimension or ends.vectors.shape[1], settings.precision, built.kind
            report = evaluate_with(ends, built.find)
            scores[arm][key][seed] = report.scores[METRIC].numpy()
            sizes[key] = built.memory_bytes, built.disk_bytes
            if key not in speeds:
                speeds[key] = measure_speed(make_rows(ends.vectors, NUM_ROWS), ends.query_vectors, settings)
            facts = {"arm": arm, "seed": seed, "width": key[0], "precision": key[1], "kind": key[2]}
            size = {"memory_bytes": sizes[key][0], "disk_bytes": sizes[key][1], "queries_per_second": speeds[key]}
            rows.append({**facts, METRIC: report.values[METRIC], "exact": exact.values[METRIC], **size})
            print(rows[-1], flush=True)
    with (HERE / "curves.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    seeds = sorted(set.intersection(*({*by_seed} for arm in scores.values() for by_seed in arm.values())))
    clusters_Q = np.concatenate([clusters[seed] for seed in seeds])

    def pooled(arm: str, key: Any) -> np.ndarray:
        return np.concatenate([scores[arm][key][seed] for seed in seeds])

    def change(left_Q: np.ndarray, right_Q: np.ndarray) -> str:
        found = paired_difference(left_Q, right_Q, clusters_Q)
        return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"

    lines = [
        "| width | precision | index | bytes in memory | queries/s | trained with widths: nDCG@10 | less than whole "
        "| without: nDCG@10 | less than whole | with - without |",
        "|" + " ---: |" * 10,
    ]
    points: dict[str, list[CurvePoint]] = defaultdict(list)
    for key, speed in speeds.items():
        cells = [str(key[0]), key[1], key[2], f"{sizes[key][0]:,.0f}", f"{speed:,.0f}"]
        for arm in ("with", "without"):
            found_Q, whole_Q = pooled(arm, key), pooled(arm, EXACT)
            cells += [f"{found_Q.mean():.3f}", change(found_Q, whole_Q)]
            low, high = bootstrap_intervals({METRIC: found_Q}, clusters_Q)[METRIC]
            quality = float(found_Q.mean()), low, high, 0.0, 0.0, 0.0
            points[arm].append(CurvePoint(*key, *quality, *sizes[key], None, speed))
        lines.append(f"| {' | '.join([*cells, change(pooled('with', key), pooled('without', key))])} |")
    (HERE / "table.md").write_text("\n".join(lines) + "\n")
    for arm, found in points.items():
        draw_points(f"trained {arm} widths, {len(seeds)} seeds", found, HERE / f"curve_{arm}.png")
    print(json.dumps({"seeds": seeds, "num_queries": len(clusters_Q)}))


if __name__ == "__main__":
    main(sys.argv[1:])
