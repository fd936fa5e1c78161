"""Which queries and products a map of the embedding space shows, and where t-SNE puts them.

Embeddings and record of one evaluation come in, `MapPoints` and their places in the plane go out; `embedding_map`
draws them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mim_lightning.analysis.embeddings import EvaluationEmbeddings
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.display.style import extra_figures
from mim_lightning.fields import PRODUCT_IMAGE, QUERY_IMAGE
from mim_lightning.metrics import EmbeddingTable
from mim_lightning.model.fusion import Fusions, fuse
from mim_lightning.types import Embeddings, id_key

OTHER_LABEL = "other"  # of points whose category no query has
PERPLEXITY = 30.0  # scikit-learn's own default; bounded by a third of the points
MIN_POINTS = 10


@dataclass(frozen=True)
class MapPoints:
    """P points: the chosen queries first, then the chosen products."""

    vectors: np.ndarray  # (P, D) float32, unit length
    is_street: np.ndarray  # (P,) bool
    labels: list[str]  # category of each
    lines: list[tuple[int, int]]  # a query and a product that its photo shows
    num_queries: int  # that there are
    num_products: int
    sides: tuple[str, str]  # towers or fusions


def choose_points(
    record: EvaluationRecord,
    embeddings: EvaluationEmbeddings,
    query_side: str = QUERY_IMAGE,
    product_side: str = PRODUCT_IMAGE,
    max_points: int = 1500,
    seed: int = 0,
) -> MapPoints:
    """Choose queries and products by a digest of seed and id, of the products those that chosen queries show first.

    Args:
        record: of the same evaluation; names the categories.
        embeddings: by tower.
        query_side, product_side: towers or fusions.
        max_points: half of them queries, as far as there are enough of both.
        seed: another one chooses others.

    Raises:
        ValueError: no such tower or fusion, or too few points.
    """
    queries, query_vectors = _side(embeddings.queries, query_side, embeddings.fusions)
    products, product_vectors = _side(embeddings.gallery, product_side, embeddings.fusions)
    num_products = min(len(products), max(max_points // 2, max_points - len(queries)))
    query_rows = _draw(queries.columns["query_keys"], np.array([]), max_points - num_products, seed)
    shown_QR = queries.columns["shown_keys"][query_rows]
    product_rows = _draw(products.columns["product_keys"], shown_QR.numpy(), num_products, seed)
    num_street, num_points = len(query_rows), len(query_rows) + len(product_rows)
    if num_street in (0, num_points) or num_points < MIN_POINTS:
        raise ValueError(
            f"{record.folder}: {num_street} queries with {query_side} and {len(product_rows)} products with "
            f"{product_side} are too few for a map"
        )
    # a product with several pictures is joined with the first
    place: dict[int, int] = {}
    for row, key in enumerate(products.columns["product_keys"][product_rows].tolist(), start=num_street):
        place.setdefault(key, row)
    names = _category_names(record)
    categories = [queries.columns["category_keys"][query_rows], products.columns["category_keys"][product_rows]]
    return MapPoints(
        vectors=np.concatenate([query_vectors[query_rows].numpy(), product_vectors[product_rows].numpy()]),
        is_street=np.arange(num_points) < num_street,
        labels=[names.get(key, OTHER_LABEL) for keys in categories for key in keys.tolist()],
        lines=[(row, place[key]) for row, keys in enumerate(shown_QR.tolist()) for key in keys if key in place],
        num_queries=len(queries),
        num_products=len(products),
        sides=(query_side, product_side),
    )


def place_points(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Place (P, D) unit vectors in the plane by t-SNE, (P, 2); equal vectors and seed give equal places.

    Source: van der Maaten and Hinton 2008, "Visualizing data using t-SNE", as scikit-learn does it. Between unit
    vectors the Euclidean distance orders pairs as the cosine does.

    Raises:
        ValueError: scikit-learn is not installed, or the vectors are all equal.
    """
    with extra_figures():
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    if not np.ptp(vectors, axis=0).any():
        raise ValueError("all embeddings are equal: nothing to map")
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    # sums differ with the number of threads; and threads that wait for each other on busy cores are slower than one
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def _side(table: EmbeddingTable, name: str, fusions: Fusions) -> tuple[EmbeddingTable, Tensor]:
    """Return the rows that have a tower or fusion, and its vectors."""
    here = {fusion: parts for fusion, parts in fusions.items() if set(parts) <= set(table.vectors)}
    known = [*table.vectors, *here]
    if name not in known:
        raise ValueError(f"--sides: no tower or fusion '{name}' on this side; there are {', '.join(known)}")
    embeddings = fuse(Embeddings(table.vectors, table.present), {name: here[name]} if name in here else {})
    present = embeddings.present[name]
    return table.take(present), embeddings.vectors[name][present].float()


def _draw(keys: Tensor, first: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the rows of `count` keys in the order of a digest, those of keys in `first` before the others."""
    is_first = np.isin(keys.numpy(), first)
    order = sorted(range(len(keys)), key=lambda row: (not is_first[row], id_key(f"{seed}/{int(keys[row])}"), row))
    return np.array(order[:count], dtype=np.int64)


def _category_names(record: EvaluationRecord) -> dict[int, str]:
    """Return the categories that queries have, by key."""
    return {
        id_key(label): label
        for direction in record.directions.values()
        for label in set(direction.segments.get("category", ()))
    }
