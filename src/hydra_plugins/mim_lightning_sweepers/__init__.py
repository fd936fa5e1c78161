"""Sweepers in the namespace `hydra_plugins`, the only one that Hydra searches; the code is in `mim_lightning.sweep`.

`conf/hydra/sweeper/*.yaml` name these classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mim_lightning.io.atomic import atomic_write
from mim_lightning.sweep import optuna_sweeper
from mim_lightning.sweep.launcher import FaultTolerantLauncher
from mim_lightning.sweep.sweep_id import swept_keys


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, every combination, that continues when the process of a job dies."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self.launcher is not None
        self.launcher = FaultTolerantLauncher(self.launcher, Path(config.hydra.sweep.dir), swept_keys(config))

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        path = Path(self.config.hydra.sweep.dir) / "multirun.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:  # Hydra writes it again in place: its error would name no file
            OmegaConf.save(self.config, partial)
        return super().sweep(arguments)


class OptunaSweeper(optuna_sweeper.OptunaSweeper):
    """The sweeper of `hydra/sweeper=optuna`."""
