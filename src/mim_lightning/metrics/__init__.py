"""Retrieval metrics: functions of embeddings and ids, without config or trainer."""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.metrics.collector import EmbeddingCollector
    from mim_lightning.metrics.embedding_table import EmbeddingTable, check_complete
    from mim_lightning.metrics.intervals import PairedDifference, bootstrap_intervals, paired_difference
    from mim_lightning.metrics.measures import Ranking, score_rankings
    from mim_lightning.metrics.ranking import rank_gallery
    from mim_lightning.metrics.retrieval import NothingToRankError, evaluate_direction, rank_direction
    from mim_lightning.metrics.task import Gallery, Queries
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "EmbeddingCollector": "mim_lightning.metrics.collector",
            "EmbeddingTable": "mim_lightning.metrics.embedding_table",
            "Gallery": "mim_lightning.metrics.task",
            "NothingToRankError": "mim_lightning.metrics.retrieval",
            "PairedDifference": "mim_lightning.metrics.intervals",
            "Queries": "mim_lightning.metrics.task",
            "Ranking": "mim_lightning.metrics.measures",
            "bootstrap_intervals": "mim_lightning.metrics.intervals",
            "check_complete": "mim_lightning.metrics.embedding_table",
            "evaluate_direction": "mim_lightning.metrics.retrieval",
            "paired_difference": "mim_lightning.metrics.intervals",
            "rank_direction": "mim_lightning.metrics.retrieval",
            "rank_gallery": "mim_lightning.metrics.ranking",
            "score_rankings": "mim_lightning.metrics.measures",
        },
    )
