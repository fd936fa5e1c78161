"""Sweepers where Hydra looks for them: it takes plugins from the namespace `hydra_plugins` alone.

`conf/hydra/sweeper/*.yaml` name them; what they do is in `mim_lightning.sweep`.
"""

from __future__ import annotations

from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mim_lightning.sweep.identity import swept_keys
from mim_lightning.sweep.launching import SturdyLauncher
from mim_lightning.sweep.search import TrialSearch


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, every combination, that goes on when a job dies."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self.launcher is not None
        self.launcher = SturdyLauncher(self.launcher, Path(config.hydra.sweep.dir), swept_keys(config))


class OptunaSweeper(TrialSearch):
    """The search, under the name that `hydra/sweeper=optuna` gives it."""
