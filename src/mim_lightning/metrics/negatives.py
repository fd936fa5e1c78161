"""Hard negatives: products that rank high for a query and are no answer to it, behind guards against unnamed answers.

Q queries, K ranked products, R relevant products, C negatives that are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from mim_lightning.display.numbers import format_count
from mim_lightning.metrics.collectives import gather_shares
from mim_lightning.metrics.directions import (
    SharedQueries,
    presence_of,
    read_vectors,
    reference_vectors,
    truth_of_queries,
)
from mim_lightning.metrics.embedding_table import EmbeddingTable
from mim_lightning.metrics.ranking import BlockScoreFunction
from mim_lightning.metrics.retrieval import rank_blocks
from mim_lightning.metrics.task import Gallery, Queries
from mim_lightning.model.fusion import Fusions, as_fusion
from mim_lightning.model.score_combination import combination_of
from mim_lightning.types import NO_KEY, Direction


@dataclass(frozen=True)
class Guard:
    """What keeps products that may be answers out of the negatives; see `data.sampling.MiningSettings`.

    Attributes:
        max_relative_score, margin: a negative scores at most the best relevant product's score s, less
            (1 - max_relative_score) * |s|, less margin; None: no limit by score.
        member_keys: (P,) ascending, the products of groups whose members are never negatives of each other.
        group_keys: (P,) the group of each.
    """

    max_relative_score: float | None
    margin: float
    member_keys: Tensor
    group_keys: Tensor

    def groups_of(self, product_keys: Tensor) -> Tensor:
        """Return the group of each product, its own key if it has none, in the shape of the keys."""
        if not len(self.member_keys):
            return product_keys
        places = torch.searchsorted(self.member_keys, product_keys.contiguous()).clamp_(max=len(self.member_keys) - 1)
        return torch.where(self.member_keys[places] == product_keys, self.group_keys[places], product_keys)

    def limit(self, positive_Q: Tensor) -> Tensor:
        """Return the highest score of a negative of each query."""
        if self.max_relative_score is None and not self.margin:
            return torch.full_like(positive_Q, torch.inf)
        kept = 1.0 if self.max_relative_score is None else self.max_relative_score
        limit_Q = positive_Q - (1 - kept) * positive_Q.abs() - self.margin
        # a relevant product that was not ranked scores less than all that were
        return limit_Q.where(positive_Q.isfinite(), -torch.inf)


@dataclass(frozen=True)
class MinedNegatives:
    """The negatives of queries, best first, and what the guard dropped of the C highest that are not relevant."""

    query_keys: Tensor  # (Q,)
    product_keys: Tensor  # (Q, C), NO_KEY where a query has fewer
    scores: Tensor  # (Q, C), -inf there
    positive_scores: Tensor  # (Q,) of the best relevant product; -inf: not among the ranked
    num_grouped: Tensor  # (Q,) dropped, for they are in the group of a relevant product
    num_close: Tensor  # (Q,) dropped, for they score too high

    def __len__(self) -> int:
        return len(self.query_keys)

    def statistics(self) -> dict[str, float]:
        """Return negatives a query, their mean score relative to the relevant product's, and the dropped fractions."""
        is_kept_QC = self.product_keys != NO_KEY
        is_known_QC = is_kept_QC & (self.positive_scores > 0)[:, None]
        relative = (self.scores / self.positive_scores[:, None])[is_known_QC]
        num_highest = max(1, int((self.num_grouped + self.num_close).sum() + is_kept_QC.sum()))
        return {
            "per_query": float(is_kept_QC.sum()) / max(1, len(self)),
            "relative_score": float(relative.mean()) if len(relative) else float("nan"),
            "dropped_by_group": float(self.num_grouped.sum()) / num_highest,
            "dropped_by_score": float(self.num_close.sum()) / num_highest,
        }

    def describe(self) -> str:
        """Return the statistics in words."""
        found = self.statistics()
        return (
            f"{found['per_query']:.1f} of each of {format_count(len(self), 'query')}, at {found['relative_score']:.0%} "
            f"of the relevant product's score; of the highest, {found['dropped_by_score']:.1%} dropped by score and "
            f"{found['dropped_by_group']:.1%} as the same product"
        )


def choose_negatives(
    query_keys_Q: Tensor,
    product_keys_QK: Tensor,
    scores_QK: Tensor,
    relevant_keys_QR: Tensor,
    num_negatives: int,
    guard: Guard,
) -> MinedNegatives:
    """Choose the negatives of queries among their ranked products.

    Args:
        product_keys_QK, scores_QK: best first; NO_KEY where there are fewer.
        relevant_keys_QR: all answers of each query; NO_KEY where it has fewer.
        num_negatives: C.
    """
    known_QK = product_keys_QK != NO_KEY
    is_relevant_QK = _is_in(product_keys_QK, relevant_keys_QR) & known_QK
    is_grouped_QK = _is_in(guard.groups_of(product_keys_QK), guard.groups_of(relevant_keys_QR)) & known_QK
    positive_Q = scores_QK.masked_fill(~is_relevant_QK, -torch.inf).amax(1)
    is_close_QK = scores_QK > guard.limit(positive_Q)[:, None]
    is_other_QK = known_QK & ~is_relevant_QK
    is_kept_QK = is_other_QK & ~is_grouped_QK & ~is_close_QK
    is_kept_QK &= is_kept_QK.cumsum(1) <= num_negatives
    first_QC = is_kept_QK.byte().argsort(dim=1, descending=True, stable=True)[:, :num_negatives]
    is_kept_QC = is_kept_QK.gather(1, first_QC)
    is_highest_QK = is_other_QK & (is_other_QK.cumsum(1) <= num_negatives)
    return MinedNegatives(
        query_keys_Q,
        product_keys_QK.gather(1, first_QC).masked_fill(~is_kept_QC, NO_KEY),
        scores_QK.gather(1, first_QC).masked_fill(~is_kept_QC, -torch.inf),
        positive_Q,
        (is_highest_QK & is_grouped_QK).sum(1),
        (is_highest_QK & is_close_QK & ~is_grouped_QK).sum(1),
    )


def _is_in(keys_QK: Tensor, sought_QR: Tensor) -> Tensor:
    sought_QR = sought_QR.sort(dim=1).values
    places = torch.searchsorted(sought_QR, keys_QK.contiguous()).clamp_(max=sought_QR.shape[1] - 1)
    return sought_QR.gather(1, places) == keys_QK


def mine_negatives(
    name: str,
    direction: Direction,
    queries: EmbeddingTable,
    gallery: EmbeddingTable,
    fusions: Fusions,
    choose: Callable[[Tensor, Tensor, Tensor, Tensor], MinedNegatives],
    depth: int,
    memory_bytes: int = 2**29,
    device: torch.device | None = None,
    on_progress: Callable[[int], None] = lambda num_queries: None,
) -> MinedNegatives:
    """Rank the gallery for every query, and choose its negatives.

    Several processes all call it, each with its own rows of both tables, as `evaluate_directions`; all get the same.

    Args:
        name: of the direction, for errors.
        queries, gallery: with the columns of `directions.IDS`.
        choose: `choose_negatives` with its last arguments.
        depth: products that are ranked for a query.
        on_progress: called with the queries done.

    Raises:
        NothingToRankError: no query has a relevant product in the gallery.
    """
    device = device or queries.row_keys.device
    shared = SharedQueries.of(queries)
    width = next(iter(queries.vectors.values())).shape[1]
    built = {fused: as_fusion(fused, given, width) for fused, given in fusions.items()}
    query_fusion, gallery_fusion = built.get(direction.query), built.get(direction.gallery)
    present = presence_of(direction.query, shared.ids, query_fusion)
    offered = presence_of(direction.gallery, gallery, gallery_fusion)
    asked = shared.ids.take(present)
    relevant_keys, grades = truth_of_queries(direction, asked)
    candidates = Queries(
        shared.vectors(read_vectors(direction.query, shared.own, query_fusion, device))[present],
        asked.row_keys,
        relevant_keys,
        asked.columns["category_keys"],
        grades,
    )
    products = Gallery(
        read_vectors(direction.gallery, gallery, gallery_fusion, device)[offered],
        gallery.columns["product_keys"][offered],
        gallery.columns["category_keys"][offered],
    )
    combination = combination_of(query_fusion, gallery_fusion)
    score: BlockScoreFunction | None = None
    if combination is not None:
        reference = reference_vectors(products, gallery.row_keys[offered])
        score = partial(combination, reference=combination.reference_parts(reference))
    blocks, sizes = [], []
    for size, ranking in rank_blocks(name, candidates, products, depth, memory_bytes, score):
        places = torch.searchsorted(asked.row_keys, ranking.query_keys)
        chosen = choose(ranking.query_keys, ranking.product_keys, ranking.scores, relevant_keys[places])
        blocks.append({f.name: getattr(chosen, f.name).cpu() for f in fields(chosen)})
        sizes.append(size)
        on_progress(sum(sizes))
    return MinedNegatives(
        **gather_shares({part: torch.cat([block[part] for block in blocks]) for part in blocks[0]}, sizes)
    )
