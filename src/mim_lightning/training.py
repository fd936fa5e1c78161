"""One run, from its config to its results: build what the config names, fit, evaluate, write.

Use it in a process that may write into the run's folder; `python -m mim_lightning.train` sees to that.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_lightning.config import (
    build,
    build_each,
    build_matcher,
    build_objective,
    build_partial,
    construct,
    save_config,
)
from mim_lightning.data_config import build_preparation
from mim_lightning.errors import clear_notes
from mim_lightning.expected_types import validate_arguments
from mim_lightning.interruption import STOPPED_AFTER, Interruption
from mim_lightning.io.atomic import atomic_write, atomic_write_folder
from mim_lightning.launch import (
    is_alone,
    is_first_rank,
    is_joined,
    is_launched,
    launch,
    num_processes_to_launch,
    set_up_process,
)
from mim_lightning.prepared_versions import choose_versions
from mim_lightning.run import Run, find_resumable
from mim_lightning.stored_config import with_data_versions
from mim_lightning.train_validation import parse_max_time, validate_results_from


def start(config: dict[str, Any], run: Run, description: Mapping[str, Any] | None) -> None:
    """Fit in this process, or in those of `trainer.devices`: then the data are prepared before them.

    Args:
        config, description: as of `fit`.
    """
    from mim_lightning.analysis.html.validation_page import write_validation_report
    from mim_lightning.data.preparation.preparation import prepare_data

    clear_notes(run.folder)
    num_processes = num_processes_to_launch(config["trainer"])
    if num_processes:
        needed = (config["data"]["shards"]["train_split"],)
        prepare_data(build_preparation(config["data"]), write_validation_report, description=description, needed=needed)
        launch("mim_lightning.train", config, num_processes)
    else:
        fit(config, run, description)


def fit(config: dict[str, Any], run: Run, description: Mapping[str, Any] | None = None) -> None:
    """Build, fit and evaluate; write the files of the run's folder that `run` lists.

    Args:
        config: with the run's id, see `identify`; `run.command` is kept in the folder, and in no checkpoint.
        description: of the data's source, if it was made before.
    """
    config = {**config, "run": {**config["run"]}}
    command = config["run"].pop("command", None)
    # imported here: finished runs and misspelt keys are reported without waiting for Lightning
    import torch
    from lightning import seed_everything
    from lightning.pytorch.utilities import rank_zero_info
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from mim_lightning.data.loading.worker_processes import killed_workers_named
    from mim_lightning.data.sampling.hard_negatives import HardNegativeSettings
    from mim_lightning.lit.callbacks.ema import free_averages, validate_averaging
    from mim_lightning.lit.callbacks.hard_negatives import HardNegativeMining
    from mim_lightning.lit.callbacks.time_limit import TimeLimit, seconds_trained
    from mim_lightning.lit.console import silence_lightning
    from mim_lightning.lit.datamodule import MatchDataModule
    from mim_lightning.lit.evaluation import close_loggers, collect_results, evaluate_module, save_evaluation
    from mim_lightning.lit.frozen_features import FrozenFeatures, cacheable_towers
    from mim_lightning.lit.module import MatchModule, StepSettings, freeze_unused
    from mim_lightning.lit.run_description import describe_encoder_values, describe_towers
    from mim_lightning.lit.trainer import (
        ask_first_rank,
        keep_batches,
        save_unvalidated,
        validate_callbacks,
        validate_loggers,
        validate_trainer,
        write_checkpoints_atomically,
    )
    from mim_lightning.model.activation_checkpointing import start_checkpointing
    from mim_lightning.model.checkpoint import stored_fingerprint, warm_start
    from mim_lightning.model.compilation import compile_encoders
    from mim_lightning.model.fingerprint import fingerprint
    from mim_lightning.model.sharding import is_sharded

    silence_lightning()
    set_up_process(config, config["trainer"]["accelerator"])
    torch.set_float32_matmul_precision(config["float32_matmul_precision"])
    checkpoint = run.checkpoint(config["results_from"])
    validate_trainer(config["trainer"])
    validate_arguments(MatchDataModule, config["data"], "data")
    validate_results_from(config)
    callbacks, loggers = build_each(config["callbacks"]), build_each(config["logger"])
    if config["trainer"].get("enable_progress_bar") is False:
        callbacks.pop("progress_bar", None)
    validate_callbacks(
        callbacks, {"retrieval_eval": None, "best": run.best_checkpoint, config["results_from"]: checkpoint}
    )
    validate_averaging(callbacks)
    validate_loggers(loggers)
    limit = parse_max_time(config["trainer"].get("max_time"))
    trainer = build(
        {**config["trainer"], "max_time": None, "enable_progress_bar": "progress_bar" in callbacks},
        callbacks=[*callbacks.values(), *([TimeLimit(limit)] if limit is not None else [])],
        logger=list(loggers.values()),
    )
    keep_batches(trainer)
    write_checkpoints_atomically(trainer)
    # one answer for all processes of another launcher: rank zero may have waited for a process that had the lock
    if is_joined() and ask_first_rank(trainer.strategy, lambda: run.is_finished(config["trainer"].get("max_time"))):
        return
    seed_everything(config["seed"], workers=True, verbose=False)
    resume = ask_first_rank(trainer.strategy, lambda: find_resumable(run))
    versions = ask_first_rank(trainer.strategy, lambda: choose_versions(run, config["data"], resume is not None))
    config = with_data_versions(config, versions)
    matcher = build_matcher(config)
    objective = build_objective(config, matcher.names, matcher.dimension)
    if config["init_from"] and not resume:
        rank_zero_info(warm_start(matcher, objective, config["init_from"]).describe())
    for name in freeze_unused(matcher, objective):
        rank_zero_info(f"tower '{name}' is in no pair: frozen")
    start_checkpointing(matcher)
    compile_encoders(matcher, config["model"]["compile"])
    rank_zero_info(describe_towers(matcher))
    if values := describe_encoder_values(config):
        rank_zero_info(values)
    optim = {
        **config["optim"],
        "optimizer": build_partial(config["optim"].get("optimizer"), "optim.optimizer"),
        "schedule": build_partial(config["schedule"], "schedule"),
    }
    step = construct("step", StepSettings, **config["step"])
    module = construct("optim", MatchModule, matcher, objective, config=config, step=step, **optim)
    # the process that launched this one has prepared the data
    data = {**config["data"], "source": None} if is_launched() else config["data"]
    datamodule = build(data, specs=matcher.input_specs(), description=description, versions=versions)
    if datamodule.augment is not None and datamodule.augment.image_size is not None:
        matcher.validate_image_size(datamodule.augment.image_size, "data.augment.image_size")
    datamodule.use_columns(objective.columns)
    objective.validate_dimensions(matcher.dimension, datamodule.vectors.use(objective.vectors))
    if datamodule.feature_cache is not None and datamodule.feature_cache.enabled and not trainer.fast_dev_run:
        trainer.callbacks.append(FrozenFeatures())
    elif frozen := cacheable_towers(matcher, datamodule):
        rank_zero_info(
            f"frozen: {', '.join(frozen)}; data.feature_cache.enabled=true encodes their inputs once, not every epoch"
        )
    if isinstance(datamodule.sampling, HardNegativeSettings) and datamodule.sampling.table is None:
        # after the evaluation whose products it ranks, and before what gives the module its live weights back
        mining = HardNegativeMining(datamodule.sampling)
        trainer.callbacks.insert(trainer.callbacks.index(callbacks["retrieval_eval"]) + 1, mining)
        mining.validate(trainer, datamodule)
    if is_alone():
        datamodule.prepare_data()  # before anything is written, so that invalid data leave no run folder
    if trainer.fast_dev_run:
        trainer.fit(module, datamodule)
        rank_zero_info("trainer.fast_dev_run: these batches passed; nothing was evaluated or written")
        return
    if is_first_rank():
        save_config(config, run.config_path)
        if command is not None:
            with atomic_write(run.command_path) as partial:
                partial.write_text(f"{command}\n", "utf-8", "replace")
        run.results_path.unlink(missing_ok=True)  # of a run that goes on with more time
    started, last_written = time.perf_counter(), _written_at(run.last_checkpoint)
    try:
        with killed_workers_named():
            trainer.fit(module, datamodule, ckpt_path=resume, weights_only=True if resume else None)
        seconds, stopped_after = time.perf_counter() - started, seconds_trained(trainer)

        # what resumed from the best, for the last is missing or damaged, may have had no step left to do: it is copied,
        # for the module has the averaged weights now, and the trainer another position
        def complete() -> None:
            if (
                resume == run.best_checkpoint
                and "last" in callbacks
                and _written_at(run.last_checkpoint) == last_written
            ):
                _copy_checkpoint(run.best_checkpoint, run.last_checkpoint)

        ask_first_rank(trainer.strategy, complete)
        free_averages(trainer)
        # one answer for all ranks: all take part in writing it, and rank zero may have written it already
        if trainer.strategy.broadcast(not checkpoint.exists()):
            save_unvalidated(trainer, checkpoint)
        reports = evaluate_module(trainer, module, datamodule, checkpoint)
        stored = stored_fingerprint(checkpoint)
        # every process brings its part of sharded weights
        found = fingerprint(matcher, like=stored) if is_sharded(matcher) else None
        if trainer.is_global_zero:
            save_evaluation(trainer, matcher, datamodule, config, run.folder, stored, found)
            results = {**collect_results(trainer, reports, datamodule, checkpoint), "fit_seconds": seconds}
            run.write_results(results | ({} if stopped_after is None else {STOPPED_AFTER: stopped_after}))
    except SIGTERMException:  # raised by Lightning where it handles the signal
        raise Interruption(signal.SIGTERM, f"at step {trainer.global_step}") from None
    except Interruption as stopped:
        stopped.where = stopped.where or f"at step {trainer.global_step}"
        raise
    finally:
        close_loggers(trainer)
    trainer.strategy.barrier()


def _written_at(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint, a file or a folder, to a place where nothing or a damaged one is."""
    if source.is_dir():
        with atomic_write_folder(target) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)
    else:
        with atomic_write(target, replaces_folder=True) as partial:
            shutil.copyfile(source, partial)
