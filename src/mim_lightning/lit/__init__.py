"""Training and evaluation with Lightning: the module, its data, callbacks and schedules."""

from typing import TYPE_CHECKING

from mim_lightning.exports import export_lazily

if TYPE_CHECKING:
    from mim_lightning.lit.callbacks.corrupt_sample_log import CorruptSamples
    from mim_lightning.lit.callbacks.ema import EMA
    from mim_lightning.lit.callbacks.optuna_pruning import OptunaPruning
    from mim_lightning.lit.callbacks.preemption import Preemption
    from mim_lightning.lit.callbacks.retrieval_eval import RetrievalEval
    from mim_lightning.lit.callbacks.shuffle_monitor import ShuffleMonitor
    from mim_lightning.lit.callbacks.terminate_on_nan import TerminateOnNaN
    from mim_lightning.lit.callbacks.throughput import Throughput
    from mim_lightning.lit.callbacks.tracked_queries import TrackedQueries
    from mim_lightning.lit.callbacks.training_alarms import TrainingAlarms
    from mim_lightning.lit.console import ProgressBar
    from mim_lightning.lit.csv_logger import RunCSVLogger
    from mim_lightning.lit.datamodule import MatchDataModule
    from mim_lightning.lit.fully_sharded import FullySharded
    from mim_lightning.lit.module import MatchModule
    from mim_lightning.lit.optim import warmup_constant, warmup_cosine, warmup_stable_decay
    from mim_lightning.lit.tensorboard_logger import RunTensorBoardLogger
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "EMA": "mim_lightning.lit.callbacks.ema",
            "FullySharded": "mim_lightning.lit.fully_sharded",
            "MatchDataModule": "mim_lightning.lit.datamodule",
            "MatchModule": "mim_lightning.lit.module",
            "ProgressBar": "mim_lightning.lit.console",
            "Preemption": "mim_lightning.lit.callbacks.preemption",
            "TrainingAlarms": "mim_lightning.lit.callbacks.training_alarms",
            "TrackedQueries": "mim_lightning.lit.callbacks.tracked_queries",
            "RetrievalEval": "mim_lightning.lit.callbacks.retrieval_eval",
            "RunCSVLogger": "mim_lightning.lit.csv_logger",
            "RunTensorBoardLogger": "mim_lightning.lit.tensorboard_logger",
            "CorruptSamples": "mim_lightning.lit.callbacks.corrupt_sample_log",
            "TerminateOnNaN": "mim_lightning.lit.callbacks.terminate_on_nan",
            "ShuffleMonitor": "mim_lightning.lit.callbacks.shuffle_monitor",
            "Throughput": "mim_lightning.lit.callbacks.throughput",
            "OptunaPruning": "mim_lightning.lit.callbacks.optuna_pruning",
            "warmup_constant": "mim_lightning.lit.optim",
            "warmup_cosine": "mim_lightning.lit.optim",
            "warmup_stable_decay": "mim_lightning.lit.optim",
        },
    )
