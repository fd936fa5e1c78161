"""From embeddings and ids to retrieval quality; functions of tensors that know no config and no trainer."""

from mim_lightning.metrics.collect import EmbeddingCollector, EmbeddingTable, check_complete
from mim_lightning.metrics.ranking import rank_gallery
from mim_lightning.metrics.retrieval import (
    Ranking,
    evaluate_direction,
    rank_direction,
    score_rankings,
)

__all__ = [
    "EmbeddingCollector",
    "EmbeddingTable",
    "Ranking",
    "check_complete",
    "evaluate_direction",
    "rank_direction",
    "rank_gallery",
    "score_rankings",
]
