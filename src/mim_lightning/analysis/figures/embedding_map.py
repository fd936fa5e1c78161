"""A map of the embedding space: query images and products as points, close together if the model finds them similar.

The color is the category, the marker distinguishes queries from products; t-SNE places the points.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mim_lightning.analysis.embeddings import EvaluationEmbeddings
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.display.style import (
    FAINT,
    INK,
    OTHER,
    PAPER,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    TWELVE,
    colors_of,
    extra_figures,
    new_figure,
    shorten,
)
from mim_lightning.fields import PRODUCT_IMAGE, QUERY_IMAGE
from mim_lightning.metrics import EmbeddingTable
from mim_lightning.model.fusion import Fusions, fuse, weights_of
from mim_lightning.types import Embeddings, hash_id

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

OTHER_LABEL = "other"  # of points whose category no query has
PERPLEXITY = 30.0  # default of scikit-learn; at most a third of the points
MIN_POINTS = 10
MAX_LINES = 300  # between queries and products: more would hide the points
MAX_LABEL = 22  # characters of a category


@dataclass(frozen=True)
class MapPoints:
    """P points: first the selected queries, then the selected products."""

    vectors: np.ndarray  # (P, D) float32, unit length
    is_query: np.ndarray  # (P,) bool
    labels: list[str]  # category of each
    lines: list[tuple[int, int]]  # a query and the product that its image shows
    num_queries: int  # in the evaluation
    num_products: int
    sides: tuple[str, str]  # towers or fusions


def select_points(
    record: EvaluationRecord,
    embeddings: EvaluationEmbeddings,
    query_side: str = QUERY_IMAGE,
    product_side: str = PRODUCT_IMAGE,
    max_points: int = 1500,
    seed: int = 0,
) -> MapPoints:
    """Select queries and products by a hash of seed and id, first the products that selected queries show.

    Args:
        record: of the same evaluation; has the names of the categories.
        embeddings: by tower.
        query_side: tower or fusion.
        product_side: tower or fusion.
        max_points: half of them queries, if there are enough of both.
        seed: another one selects others.

    Raises:
        ValueError: no such tower or fusion, or too few points.
    """
    queries, query_vectors = _side(embeddings.queries, query_side, embeddings.fusions)
    products, product_vectors = _side(embeddings.gallery, product_side, embeddings.fusions)
    num_products = min(len(products), max(max_points // 2, max_points - len(queries)))
    query_rows = _draw(queries.columns["query_keys"], np.array([]), max_points - num_products, seed)
    reference_QR = queries.columns["shown_keys"][query_rows]
    product_rows = _draw(products.columns["product_keys"], reference_QR.numpy(), num_products, seed)
    num_selected_queries, num_points = len(query_rows), len(query_rows) + len(product_rows)
    if num_selected_queries in (0, num_points) or num_points < MIN_POINTS:
        raise ValueError(
            f"{record.folder}: {num_selected_queries} queries with {query_side} and {len(product_rows)} products with "
            f"{product_side} are too few for a map"
        )
    # of a product with several images the first is connected
    row_of: dict[int, int] = {}
    for row, key in enumerate(products.columns["product_keys"][product_rows].tolist(), start=num_selected_queries):
        row_of.setdefault(key, row)
    names = _category_names(record)
    categories = [queries.columns["category_keys"][query_rows], products.columns["category_keys"][product_rows]]
    return MapPoints(
        vectors=np.concatenate([query_vectors[query_rows].numpy(), product_vectors[product_rows].numpy()]),
        is_query=np.arange(num_points) < num_selected_queries,
        labels=[names.get(key, OTHER_LABEL) for keys in categories for key in keys.tolist()],
        lines=[(row, row_of[key]) for row, keys in enumerate(reference_QR.tolist()) for key in keys if key in row_of],
        num_queries=len(queries),
        num_products=len(products),
        sides=(query_side, product_side),
    )


def project_points(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Project (P, D) unit vectors to the plane by t-SNE, (P, 2); equal vectors and seed give equal positions.

    Source: van der Maaten and Hinton 2008, "Visualizing data using t-SNE", by scikit-learn. Between unit vectors the
    Euclidean distance orders pairs as the cosine does.

    Raises:
        ValueError: scikit-learn is not installed, or the vectors are all equal.
    """
    with extra_figures():
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    if not np.ptp(vectors, axis=0).any():
        raise ValueError("all embeddings are equal: nothing to map")
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    # sums differ with the number of threads; on busy cores several are slower than one
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def _side(table: EmbeddingTable, name: str, fusions: Fusions) -> tuple[EmbeddingTable, Tensor]:
    """Return the rows that have a tower or fusion, and its vectors."""
    here = {fusion: given for fusion, given in fusions.items() if weights_of(given).keys() <= table.vectors.keys()}
    known = [*table.vectors, *here]
    if name not in known:
        raise ValueError(f"--sides: no tower or fusion '{name}' on this side; there are {', '.join(known)}")
    embeddings = fuse(Embeddings(table.vectors, table.present), {name: here[name]} if name in here else {})
    present = embeddings.present[name]
    return table.take(present), embeddings.vectors[name][present].float()


def _draw(keys: Tensor, first: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the rows of `count` keys in the order of a hash, those of keys in `first` before the others."""
    is_first = np.isin(keys.numpy(), first)
    order = sorted(range(len(keys)), key=lambda row: (not is_first[row], hash_id(f"{seed}/{int(keys[row])}"), row))
    return np.array(order[:count], dtype=np.int64)


def _category_names(record: EvaluationRecord) -> dict[int, str]:
    """Return the categories of the queries, by key."""
    return {
        hash_id(label): label
        for direction in record.directions.values()
        for label in set(direction.segments.get("category", ()))
    }


def draw_map(points: MapPoints, positions: np.ndarray, title: str) -> Figure:
    """Draw P points at `positions` (P, 2); the most frequent categories have a color, the others are gray.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, axes = new_figure(width=9.0, height=6.4)
    counts = Counter(label for label in points.labels if label != OTHER_LABEL)
    by_size = [label for label, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    # by name, so that a category has the same color in the maps of several models
    colors = colors_of(sorted(by_size[: len(TWELVE)]) + by_size[len(TWELVE) :])
    x, y = positions.T
    if _has_lines(points):
        for line in points.lines:
            axes.plot(x[list(line)], y[list(line)], color=OTHER, linewidth=0.7, alpha=0.7, zorder=1)
    shades = np.array([colors.get(label, OTHER) for label in points.labels])
    queries, products = points.is_query, ~points.is_query
    axes.scatter(x[queries], y[queries], c=shades[queries], marker="o", s=22, alpha=0.65, linewidths=0, zorder=2)
    axes.scatter(
        x[products], y[products], c=shades[products], marker="^", s=62, edgecolors=INK, linewidths=0.7, zorder=3
    )
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.suptitle(title, fontsize=TITLE_SIZE + 2, fontweight="bold", color=INK, x=0.01, ha="left")
    figure.supxlabel(_caption(points), fontsize=SMALL_SIZE, color=FAINT, x=0.01, ha="left")
    _add_legend(axes, colors, points)
    return figure


def _has_lines(points: MapPoints) -> bool:
    return 0 < len(points.lines) <= MAX_LINES


def _caption(points: MapPoints) -> str:
    shown = (int(points.is_query.sum()), int((~points.is_query).sum()))
    totals = ((points.num_queries, "queries"), (points.num_products, "products"))
    sampled = " and ".join(
        f"{count:,} of {total:,} {what}" if count < total else f"{count:,} {what}"
        for count, (total, what) in zip(shown, totals, strict=True)
    )
    lines = "\nA line connects a query with the product that its image shows." if _has_lines(points) else ""
    return f"t-SNE of {sampled}: close points are similar, distances between clusters mean little.{lines}"


def _add_legend(axes: Axes, colors: dict[str, str], points: MapPoints) -> None:
    from matplotlib.lines import Line2D

    def mark(label: str, color: str, marker: str = "s", edge: str = PAPER) -> Line2D:
        return Line2D([], [], label=label, color=color, marker=marker, markersize=8, markeredgecolor=edge, linestyle="")

    query_side, product_side = points.sides
    entries = [mark(f"query: {query_side}", FAINT, "o"), mark(f"product: {product_side}", PAPER, "^", INK)]
    shown = [label for label, color in colors.items() if color != OTHER]
    entries += [mark(shorten(label, MAX_LABEL), colors[label]) for label in shown]
    if len(colors) > len(shown) or OTHER_LABEL in points.labels:
        entries.append(mark("other categories", OTHER))
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=TEXT_SIZE, borderaxespad=0)
