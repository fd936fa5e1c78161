"""Compare kinds of fusion on the evaluations of finished runs, and write results.csv and table.md.

    python experiments/fusions/kinds.py experiments/fusions grocery=runs/<run> emoji=runs/<run> synthetic=runs/<run>

Nothing is embedded again. What is chosen or learned (weights, a gate) is chosen on one half of the products and
measured on the other, both ways, so that every query counts once, with what its own product had no part in.
"""

import argparse
import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mim_lightning.analysis.embeddings import EvaluationEmbeddings, read_embeddings
from mim_lightning.analysis.record import read_record
from mim_lightning.metrics import EmbeddingTable, paired_difference
from mim_lightning.metrics.directions import evaluate_directions
from mim_lightning.model.fusion import Fusion
from mim_lightning.types import Direction, RetrievalReport

METRICS = ("hit@1", "mrr")
DIRECTIONS = ("image_to_product", "composed_to_product")
WEIGHTS = np.linspace(0, 1, 11)
NUM_STEPS, RATE, DECAY = 150, 1e-2, 1e-2  # of what is learned
Make = Callable[[str, Mapping[str, float]], Fusion]  # fusion -> weights -> fusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("runs", nargs="+", help="<name of the data>=<folder of a run>")
    arguments = parser.parse_args()
    rows = []
    for entry in arguments.runs:
        data, _, folder = entry.partition("=")
        record = read_record(Path(folder))
        for name in DIRECTIONS:
            study = Study(read_embeddings(record.folder), name, Direction(**record.facts.config["directions"][name]))
            for kind, scores in study.variants():
                rows.append({"data": data, "direction": name, "kind": kind, **study.measure(scores)})
                print(rows[-1], flush=True)
    with (arguments.experiment / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = list(table_lines(rows))
    (arguments.experiment / "table.md").write_text("\n".join(lines) + "\n")


Scores = dict[str, np.ndarray]  # metric -> (Q,)


class Study:
    """One direction of one evaluation, of which the fusions change."""

    def __init__(self, embeddings: EvaluationEmbeddings, name: str, direction: Direction) -> None:
        self.embeddings, self.name, self.direction = embeddings, name, direction
        self.weights = {fusion: made.weights for fusion, made in embeddings.fusions.items()}
        self.width = next(iter(embeddings.queries.vectors.values())).shape[1]
        self.tables = {"query": embeddings.queries, "product": embeddings.gallery}
        self.means = {
            part: table.vectors[part][table.present[part]].mean(0)
            for table in self.tables.values()
            for part in table.vectors
        }
        self.used = [side for side in (direction.query, direction.gallery) if side in self.weights]
        self.report = self.rank({})
        self.trained = scores_of(self.report)
        self.is_odd = self.report.cluster_keys.numpy() % 2 == 1

    def rank(
        self, changed: Mapping[str, Fusion], tables: Mapping[str, EmbeddingTable] | None = None
    ) -> RetrievalReport:
        queries, gallery = (tables or self.tables)["query"], (tables or self.tables)["product"]
        fusions = {**self.embeddings.fusions, **changed}
        return evaluate_directions({self.name: self.direction}, queries, gallery, fusions)[self.name]

    def make(self, fusion: str, weights: Mapping[str, float] | None = None, **options: Any) -> Fusion:
        made = Fusion(fusion, {**(weights or self.weights[fusion]), **options}, self.width)
        if made.center:
            made.set_means({part: self.means[part] for part in made})
        return made

    def variants(self) -> Any:
        yield "fixed_sum, as trained", self.trained
        for side in self.used:
            for part in self.weights[side]:
                others = {name: float(name == part) for name in self.weights[side]}
                yield f"{part} alone", scores_of(self.rank({side: self.make(side, others)}))
        yield "fixed_sum, weights chosen", self.choose()
        yield "learned_sum, fitted", self.fit(kind="learned_sum")
        yield "gate, fitted", self.fit(kind="gate")
        yield "gate (linear), fitted", self.fit(kind="gate", hidden_width=0)
        yield "fixed_sum, centered", self.all_sides(center="measured")
        yield "fixed_sum, centered, weights chosen", self.choose(center="measured")
        for center in (None, "measured"):
            words = ", centered" if center else ""
            yield f"standardized_sum{words}", self.all_sides(kind="standardized_sum", center=center)
            yield f"score_product{words}", self.all_sides(kind="score_product", center=center)
            yield f"score_product, no floor{words}", self.all_sides(kind="score_product", floor=None, center=center)
        yield "standardized_sum, weights chosen", self.choose(kind="standardized_sum")
        yield "score_product, weights chosen", self.choose(kind="score_product")
        for rank in (64, 16):
            tables = self.projected(rank)
            yield f"score_product, {rank} components", self.all_sides(tables, kind="score_product")
            yield f"fixed_sum, {rank} components", self.all_sides(tables)

    def all_sides(self, tables: Mapping[str, EmbeddingTable] | None = None, **options: Any) -> Scores:
        return scores_of(self.rank({side: self.make(side, **options) for side in self.used}, tables))

    def choose(self, **options: Any) -> Scores:
        """Choose the weights of one side after the other, on the other half of the products."""
        found = {metric: scores.copy() for metric, scores in self.trained.items()}
        for half in (self.is_odd, ~self.is_odd):
            chosen = {side: self.make(side, **options) for side in self.used}
            for side in self.used:
                first, second = self.weights[side]
                points = [
                    {**chosen, side: self.make(side, {first: float(w), second: float(1 - w)}, **options)}
                    for w in WEIGHTS
                ]
                values = [scores_of(self.rank(point)) for point in points]
                chosen = points[int(np.argmax([value["mrr"][~half].mean() for value in values]))]
            best = scores_of(self.rank(chosen))
            for metric in METRICS:
                found[metric][half] = best[metric][half]
        return found

    def fit(self, **options: Any) -> Scores:
        """Learn the fusions by InfoNCE on the other half of the queries, the towers as they are."""
        found = {metric: scores.copy() for metric, scores in self.trained.items()}
        queries, gallery = self.embeddings.queries, self.embeddings.gallery
        rows_Q = torch.searchsorted(queries.row_keys, self.report.hits.query_keys)
        truth_QR = queries.columns["shown_keys" if self.direction.truth == "reference" else "asked_keys"][rows_Q]
        positives_QN = (truth_QR[:, :, None] == gallery.columns["product_keys"]).any(dim=1).float()
        for half in (self.is_odd, ~self.is_odd):
            torch.manual_seed(0)
            fusions = {side: self.make(side, **options).train() for side in self.used}
            scale = nn.Parameter(torch.tensor(3.0))
            parameters = [p for fusion in fusions.values() for p in fusion.parameters()]
            optimizer = torch.optim.AdamW([{"params": parameters}, {"params": [scale]}], lr=RATE, weight_decay=DECAY)
            kept_Q = torch.from_numpy(~half)
            targets_QN = normalize(positives_QN[kept_Q], p=1, dim=1)
            for _ in range(NUM_STEPS):
                query_QD = side_of(self.direction.query, queries.take(rows_Q[kept_Q]), fusions)
                logits_QN = query_QD @ side_of(self.direction.gallery, gallery, fusions).T * scale.exp()
                optimizer.zero_grad()
                cross_entropy(logits_QN, targets_QN).backward()
                optimizer.step()
            best = scores_of(self.rank({side: fusion.eval() for side, fusion in fusions.items()}))
            for metric in METRICS:
                found[metric][half] = best[metric][half]
        return found

    def projected(self, rank: int) -> dict[str, EmbeddingTable]:
        """Return centered tables, those of images within the first components of the titles (BASIC)."""
        texts = self.tables["product"].vectors["product_text"][self.tables["product"].present["product_text"]]
        _, _, components_DD = torch.linalg.svd(texts - texts.mean(0), full_matrices=False)
        projection_DD = components_DD[:rank].T @ components_DD[:rank]
        found = {}
        for side, table in self.tables.items():
            vectors = {}
            for part, vectors_ND in table.vectors.items():
                centered_ND = vectors_ND - self.means[part]
                if part.endswith("image"):
                    centered_ND = centered_ND @ projection_DD
                vectors[part] = normalize(centered_ND, dim=-1) * table.present[part][:, None]
            found[side] = EmbeddingTable(table.row_keys, vectors, table.present, table.columns)
        return found

    def measure(self, scores: Scores) -> dict[str, Any]:
        clusters = self.report.cluster_keys.numpy()
        found: dict[str, Any] = {"num_queries": len(clusters)}
        for metric in METRICS:
            difference = paired_difference(scores[metric], self.trained[metric], clusters, 2000)
            found |= {metric: float(scores[metric].mean()), f"{metric} difference": difference.difference}
            found |= {f"{metric} low": difference.low, f"{metric} high": difference.high}
        return found


def side_of(name: str, table: EmbeddingTable, fusions: Mapping[str, Fusion]) -> Tensor:
    return fusions[name](table.vectors, table.present) if name in fusions else table.vectors[name]


def scores_of(report: RetrievalReport) -> Scores:
    return {metric: report.scores[metric].numpy() for metric in METRICS}


def table_lines(rows: list[dict[str, Any]]) -> Any:
    columns = list(dict.fromkeys((row["data"], row["direction"]) for row in rows))
    yield "| kind | " + " | ".join(f"{data}: {direction}" for data, direction in columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        cells = []
        for column in columns:
            found = [row for row in rows if (row["data"], row["direction"]) == column and row["kind"] == kind]
            cells += [cell(row) for row in found] or ["-"]
        yield f"| {kind} | " + " | ".join(cells) + " |"


def cell(row: dict[str, Any]) -> str:
    low, high = row["hit@1 low"], row["hit@1 high"]
    ends = f"{row['hit@1']:.3f} ({row['hit@1 difference']:+.3f} [{low:+.3f}, {high:+.3f}])"
    is_clear = low > 0 or high < 0
    return f"**{ends}**" if is_clear else ends


if __name__ == "__main__":
    main()
