"""From embeddings and ids to retrieval quality; functions of tensors that know no config and no trainer."""

from mim_lightning.metrics.catalogue import Gallery, Queries
from mim_lightning.metrics.collect import EmbeddingCollector
from mim_lightning.metrics.intervals import PairedDifference, bootstrap_intervals, paired_difference
from mim_lightning.metrics.measures import Ranking, score_rankings
from mim_lightning.metrics.ranking import rank_gallery
from mim_lightning.metrics.retrieval import NothingToRankError, evaluate_direction, rank_direction
from mim_lightning.metrics.table import EmbeddingTable, check_complete

__all__ = [
    "EmbeddingCollector",
    "EmbeddingTable",
    "Gallery",
    "NothingToRankError",
    "PairedDifference",
    "Queries",
    "Ranking",
    "bootstrap_intervals",
    "check_complete",
    "evaluate_direction",
    "paired_difference",
    "rank_direction",
    "rank_gallery",
    "score_rankings",
]
