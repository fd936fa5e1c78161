"""Train on clicks of the drawn shop, weighed in several ways, and ask for products whose answers are known.

    python experiments/clicks/arms.py <folder of simulate.py> features            once: of frozen encoders
    python experiments/clicks/arms.py <folder of simulate.py> <group> ...         train the arms of a group

Only the projections are trained, on principal components of frozen encoders' features: the matcher and the objective
of `train`, without its trainer, so that a run takes seconds of one core. Each run writes the rank of every query.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim_lightning.config import build_matcher, build_objective, compose
from mim_lightning.data.images.transforms import eval_image
from mim_lightning.data.manifest.manifest import Manifest, read_manifest
from mim_lightning.data.sources.clicks import ClicksSource
from mim_lightning.ids import NO_KEY, hash_id
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import LOG_FREQUENCY, WEIGHT, Batch, ImageSpec, TextSpec

TOWERS = ("query_image", "query_text", "product_image", "product_text")
NUM_STEPS, BATCH_SIZE, LR, WEIGHT_DECAY, SEEDS = 300, 128, 2e-3, 0.05, (1, 2, 3)
NUM_COMPONENTS = 192  # of the features, which are 1280 and 384 wide
KINDS = ("position", "none", "cascade", "sponsored")
AT_ONCE = 64
WEIGHED = {"row_weights": True}


@dataclass(frozen=True)
class Rows:
    """Training rows: a query and one of its products, (N,), with all products of the query."""

    queries: np.ndarray
    products: np.ndarray
    weights: np.ndarray
    answers: dict[int, dict[int, int]]  # of a query: product -> grade


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("groups", nargs="+", choices=["features", *KINDS, "popular", "graded"])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--output", type=Path, default=Path("runs/clicks"))
    parser.add_argument("--weights", default="external/weights/mobilenetv2_100.safetensors")
    arguments = parser.parse_args()
    image = {"pretrained": arguments.weights, "image_size": 64, "mean": "[0.5,0.5,0.5]", "std": "[0.5,0.5,0.5]"}
    config = compose(
        "train",
        [
            *("model=4tower", "encoder=mobilenetv2_minilm", "+encoder.image.model_kwargs.pad_type=same"),
            *(f"encoder.image.{key}={value}" for key, value in image.items()),
            *("encoder.text.max_length=32", *(f"model.towers.{name}.train=frozen" for name in TOWERS)),
        ],
    )
    matcher = build_matcher(config)
    shop = read_manifest(arguments.folder / "products.csv", arguments.folder / "queries.csv").in_memory()
    path = arguments.folder / "features.pt"
    if "features" in arguments.groups:
        torch.save(compute_features(matcher, shop), path)
    features = {name: principal(part) for name, part in torch.load(path).items()}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for group in arguments.groups:
        for arm, rows, loss in arms_of(group, shop, arguments.folder):
            for seed in arguments.seeds:
                ranks = train(matcher, config, features, shop, rows, loss, seed)
                write_ranks(arguments.output / f"{group}-{arm}-{seed}.csv", shop, ranks)
                print(f"{group} {arm} {seed}: hit@1 {(ranks == 1).mean():.3f} mrr {(1 / ranks).mean():.3f}", flush=True)


def arms_of(group: str, shop: Manifest, folder: Path) -> list[tuple[str, Rows, dict[str, Any]]]:
    if group in KINDS:
        counted, debiased = (clicked_rows(folder, group, examination) for examination in ("none", "estimated"))
        arms = [("counted", counted, WEIGHED), ("debiased", debiased, WEIGHED)]
        if group in ("position", "sponsored"):
            plain = [("alike", counted, {})] + [("known", known_rows(shop), {})] * (group == "position")
            grades = [
                (f"{name} grades", rows, {"grades": "linear"})
                for name, rows in zip(("counted", "debiased"), (counted, debiased), strict=True)
            ]
            arms += [*plain, *grades]
        return arms
    if group == "popular":
        rows = popular_rows(shop)
        balanced = replace(rows, weights=1 / frequencies(rows))
        return [("plain", rows, {}), ("logQ", rows, {"popularity_correction": True}), ("weights", balanced, WEIGHED)]
    if group == "graded":
        rows = graded_rows(shop)
        return [("plain", rows, {}), *((name, rows, {"grades": name}) for name in ("linear", "exponential"))]
    return []


# --- rows -----------------------------------------------------------------------------------------------


def clicked_rows(folder: Path, kind: str, examination: str) -> Rows:
    """Return the rows that `data=clicks` makes of a log."""
    source = ClicksSource(
        str(folder / f"log_{kind}.csv"),
        str(folder / "products.csv"),
        str(folder / "asked.csv"),
        {"queries": {"shown_product_id": None}},
        examination,
    )
    with tempfile.TemporaryDirectory() as work_dir:
        return rows_of(source.read(Path(work_dir)))


def known_rows(shop: Manifest) -> Rows:
    return rows_of(shop)


def popular_rows(shop: Manifest, exponent: float = 1.0) -> Rows:
    """Return as many rows as there are, drawn so that the frequency of products falls with their rank (Zipf)."""
    rows, rng = rows_of(shop), np.random.default_rng(0)
    popularity = (1 + rng.permutation(len(shop.products))) ** -exponent
    drawn = rng.choice(len(rows.products), len(rows.products), p=(chance := popularity[rows.products]) / chance.sum())
    return replace(rows, queries=rows.queries[drawn], products=rows.products[drawn], weights=rows.weights[drawn])


def graded_rows(shop: Manifest) -> Rows:
    """Return each query with its product, grade 4, and with the one in its photo, grade 1, where that is another."""
    idx = {product_id: number for number, product_id in enumerate(shop.products)}
    train = [(number, query) for number, query in enumerate(shop.queries) if query.split == "train"]
    pairs = [
        (n, idx[p], g) for n, q in train for p, g in {**dict.fromkeys(q.reference_ids, 1), q.target_ids[0]: 4}.items()
    ]
    answers: dict[int, dict[int, int]] = {}
    for number, product, grade in pairs:
        answers.setdefault(number, {})[product] = grade
    queries, products, _ = (np.array(part) for part in zip(*pairs, strict=True))
    return Rows(queries, products, np.ones(len(pairs)), answers)


def rows_of(manifest: Manifest) -> Rows:
    idx = {product_id: number for number, product_id in enumerate(manifest.products)}
    queries, products, weights, answers = [], [], [], {}
    for number, query in numbered(manifest):
        answers[number] = {idx[p]: g for p, g in zip(query.target_ids, query.target_grades, strict=True)}
        for product_id in query.target_ids if query.split == "train" else ():
            queries.append(number)
            products.append(idx[product_id])
            weights.append(query.product_weights.get(product_id, query.weight))
    return Rows(np.array(queries), np.array(products), np.array(weights), answers)


def numbered(manifest: Manifest) -> list[tuple[int, Any]]:
    """Return the queries with their number in the shop, of which a log may lack some."""
    # ids are train-000001 to train-002400, then val-000001
    num_train = 2400
    return [(int(q.query_id[-6:]) - 1 + (0 if q.split == "train" else num_train), q) for q in manifest.queries]


def frequencies(rows: Rows) -> np.ndarray:
    counts = np.bincount(rows.products)
    return counts[rows.products] / counts[counts > 0].mean()


# --- training -------------------------------------------------------------------------------------------


def train(
    matcher: Matcher,
    config: Mapping[str, Any],
    features: Mapping[str, Tensor],
    shop: Manifest,
    rows: Rows,
    loss: Mapping[str, Any],
    seed: int,
) -> np.ndarray:
    """Train projections and return the rank of the right product of each validation query."""
    torch.manual_seed(seed)
    for name in matcher.towers:
        tower = matcher.tower(name)
        tower.projection = torch.nn.Linear(NUM_COMPONENTS, tower.width, bias=False)
    objective = build_objective({**config, "loss": {**config["loss"], **loss}}, matcher.names, matcher.dimension)
    parameters = [p for part in (matcher, objective) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY)
    keys = torch.tensor([hash_id(product_id) for product_id in shop.products])
    columns = {
        WEIGHT: torch.tensor(rows.weights).float(),
        LOG_FREQUENCY: torch.tensor(np.log(frequencies(rows))).float(),
    }
    rng = np.random.default_rng(seed)
    order = np.concatenate(
        [rng.permutation(len(rows.queries)) for _ in range(1 + NUM_STEPS * BATCH_SIZE // len(rows.queries))]
    )
    matcher.train()
    for step in range(NUM_STEPS):
        chosen = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        batch = make_batch(features, keys, rows, chosen, {name: columns[name][chosen] for name in objective.columns})
        result = objective(matcher(batch), batch)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    return ranks_of(matcher.eval(), features, keys, shop)


def make_batch(
    features: Mapping[str, Tensor], keys: Tensor, rows: Rows, chosen: np.ndarray, columns: dict[str, Tensor]
) -> Batch:
    places = {"query": torch.tensor(rows.queries[chosen]), "product": torch.tensor(rows.products[chosen])}
    answers = [rows.answers[number] for number in rows.queries[chosen]]
    width = max(map(len, answers))
    targets, grades = torch.full((len(chosen), width), NO_KEY), torch.zeros(len(chosen), width, dtype=torch.int64)
    for row, found in enumerate(answers):
        targets[row, : len(found)] = keys[[*found]]
        grades[row, : len(found)] = torch.tensor([*found.values()])
    return batch_of(features, places, keys, targets, grades, columns)


def batch_of(
    features: Mapping[str, Tensor],
    places: Mapping[str, Tensor],
    keys: Tensor,
    targets: Tensor,
    grades: Tensor,
    columns: dict[str, Tensor],
) -> Batch:
    """Return a batch with each distinct query and product once."""
    inputs, rows = {}, {}
    for side, numbers in places.items():
        distinct, inverse = numbers.unique(return_inverse=True)
        for name in TOWERS:
            if name.startswith(side):
                inputs[name], rows[name] = features[name][distinct], inverse
    num_rows = len(targets)
    none = torch.full((num_rows,), NO_KEY)
    return Batch(
        inputs=inputs,
        rows=rows,
        sample_nums=torch.arange(num_rows),
        query_keys=places["query"],
        product_keys=keys[places["product"]],
        target_keys=targets,
        target_grades=grades,
        reference_keys=targets,
        category_keys=none,
        is_padding=torch.zeros(num_rows, dtype=torch.bool),
        columns=columns,
    )


@torch.no_grad()
def ranks_of(matcher: Matcher, features: Mapping[str, Tensor], keys: Tensor, shop: Manifest) -> np.ndarray:
    """Return the rank of the right product of each validation query among all products."""
    asked = [(number, query) for number, query in enumerate(shop.queries) if query.split == "val"]
    idx = {product_id: number for number, product_id in enumerate(shop.products)}
    right = torch.tensor([idx[query.target_ids[0]] for _, query in asked])

    def embed(name: str, queries: Tensor, products: Tensor) -> Tensor:
        targets = keys[products][:, None]
        batch = batch_of(features, {"query": queries, "product": products}, keys, targets, torch.ones_like(targets), {})
        return matcher(batch).vectors[name]

    numbers = torch.tensor([number for number, _ in asked])
    products = embed("product", numbers[:1].expand(len(keys)), torch.arange(len(keys)))
    scores = embed("query", numbers, torch.zeros_like(numbers)) @ products.T
    own = scores.gather(1, right[:, None])
    return (1 + (scores > own).sum(1)).numpy()


@torch.no_grad()
def compute_features(matcher: Matcher, shop: Manifest) -> dict[str, Tensor]:
    """Return the features of all queries and products by tower."""
    rows = {"query": [*shop.queries], "product": [*shop.products.values()]}
    features = {}
    for name in TOWERS:
        side, kind = name.split("_")
        spec, tower, parts = matcher.input_specs()[name], matcher.tower(name).eval(), []
        for start in range(0, len(rows[side]), AT_ONCE):
            some = rows[side][start : start + AT_ONCE]
            if kind == "image":
                assert isinstance(spec, ImageSpec)
                paths = [row.image if side == "query" else row.images[0] for row in some]
                inputs = torch.stack([eval_image(path.read_bytes(), spec) for path in paths])
            else:
                assert isinstance(spec, TextSpec)
                inputs = spec.tokenize([row.text for row in some])
            parts.append(tower.encode(inputs))
        features[name] = torch.cat(parts)
    return features


def principal(features: Tensor) -> Tensor:
    """Return the first principal components, scaled to a mean length of 1."""
    centered = features - features.mean(0)
    _, _, directions = torch.pca_lowrank(centered, NUM_COMPONENTS, center=False, niter=2)
    reduced = centered @ directions
    return reduced / reduced.norm(dim=1).mean()


def write_ranks(path: Path, shop: Manifest, ranks: Sequence[int]) -> None:
    asked = [query for query in shop.queries if query.split == "val"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query_id", "product_id", "kind", "rank"])
        for query, rank in zip(asked, ranks, strict=True):
            writer.writerow([query.query_id, query.target_ids[0], query.segments["kind"], rank])


if __name__ == "__main__":
    main()
