"""python -m mim_lightning.train: compose a config, build what it names, fit, evaluate.

    python -m mim_lightning.train model=4tower trainer.devices=8
    python -m mim_lightning.train -m model=2tower,3tower,4tower seed=1,2,3

Running it again resumes; a finished run returns its recorded result.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.cli import run_door
from mim_lightning.config import (
    build,
    build_each,
    build_matcher,
    build_objective,
    build_partial,
    construct,
    save_config,
)
from mim_lightning.errors import clear_notes
from mim_lightning.expected_types import refuse_mistyped
from mim_lightning.interruption import Interruption
from mim_lightning.io.atomic import remove_abandoned
from mim_lightning.io.damaged_file import DamagedFileError
from mim_lightning.io.locks import lock_and_announce
from mim_lightning.launch import (
    choose_precision,
    is_alone,
    is_first_rank,
    is_joined,
    is_launched,
    launch,
    num_processes_to_launch,
)
from mim_lightning.prepare import prepare_data
from mim_lightning.run import Run, identify, refuse_missed_report, refuse_unwritable, refuse_wrong_kinds

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy


def main() -> None:
    run_door("train", train, resumes=True)


def train(config: dict[str, Any]) -> float:
    """Train one run, or find it trained, and return its monitored metric at the checkpoint that `report` names."""
    refuse_wrong_kinds(config)
    run, config = identify(config)
    config["trainer"]["precision"] = choose_precision(config["trainer"])  # recorded as it was, for evaluation
    is_new = run.read_results() is None
    if is_new:
        refuse_unwritable(run.folder)
    decides_in_fit = is_joined()  # with the others that its launcher started: they look at different times
    if is_new and is_first_rank() and not is_launched():
        with lock_and_announce(run.lock_path, run.run_id):
            is_new = run.read_results() is None  # another process may have finished it meanwhile
            if is_new or decides_in_fit:
                _start(config, run)
    elif is_new or decides_in_fit:
        fit(config, run)  # a process of a run that another one holds
    results = run.read_results() or {}
    if results and is_first_rank() and not is_launched():
        from mim_lightning.lit.report import describe_decline, print_run

        print_run(run.run_id, results)
        print(f"{'results' if is_new else 'finished before, results'}: {run.folder}")
        if decline := describe_decline(results, config["monitor"]):
            print(f"warning: {decline}")
    return results.get(config["monitor"], float("nan"))


def _start(config: dict[str, Any], run: Run) -> None:
    clear_notes(run.folder)
    num_processes = num_processes_to_launch(config["trainer"])
    if num_processes:
        prepare_data(config["data"], needed=(config["data"]["shards"]["train_split"],))
        launch("mim_lightning.train", config, num_processes)
    else:
        fit(config, run)


def fit(config: dict[str, Any], run: Run) -> None:
    """Build, fit and evaluate; leave checkpoints, results and a picture in the run's folder."""
    # imported here, so that a finished run and a misspelt key are told at once
    from lightning import seed_everything
    from lightning.pytorch.utilities import rank_zero_info
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from mim_lightning.lit.checkpoint_files import write_whole_checkpoints
    from mim_lightning.lit.console import describe_encoder_values, describe_towers, quieten
    from mim_lightning.lit.datamodule import MatchDataModule
    from mim_lightning.lit.evaluation import close_loggers, collect_results, evaluate_module, save_evaluation
    from mim_lightning.lit.module import MatchModule, freeze_unused
    from mim_lightning.lit.trainer_options import (
        check_callbacks,
        check_loggers,
        check_trainer,
        keep_batches,
        keep_untested,
    )
    from mim_lightning.model.checkpoint import warm_start

    quieten()
    checkpoint = run.checkpoint(config["report"])
    check_trainer(config["trainer"])
    refuse_mistyped(MatchDataModule, config["data"], "data")
    refuse_missed_report(config)
    callbacks, loggers = build_each(config["callbacks"]), build_each(config["logger"])
    if config["trainer"].get("enable_progress_bar") is False:
        callbacks.pop("progress_bar", None)
    check_callbacks(callbacks, {"retrieval_eval": None, "best": run.best_checkpoint, config["report"]: checkpoint})
    check_loggers(loggers)
    trainer = build(
        {**config["trainer"], "enable_progress_bar": "progress_bar" in callbacks},
        callbacks=list(callbacks.values()),
        logger=list(loggers.values()),
    )
    keep_batches(trainer)
    write_whole_checkpoints(trainer)
    if is_joined() and is_finished(run, trainer.strategy):
        return
    seed_everything(config["seed"], workers=True, verbose=False)
    resume = find_resumable(run)
    matcher = build_matcher(config)
    objective = build_objective(config, matcher.names)
    if config["init_from"] and not resume:
        rank_zero_info(warm_start(matcher, objective, config["init_from"]).describe())
    for name in freeze_unused(matcher, objective):
        rank_zero_info(f"tower '{name}' takes part in no pair: frozen")
    rank_zero_info(describe_towers(matcher))
    if brought := describe_encoder_values(config):
        rank_zero_info(brought)
    optim = {
        **config["optim"],
        "optimizer": build_partial(config["optim"].get("optimizer"), "optim.optimizer"),
        "schedule": build_partial(config["schedule"], "schedule"),
    }
    module = construct("optim", MatchModule, matcher, objective, config=config, **optim)
    datamodule = build(config["data"], specs=matcher.input_specs())
    if is_alone():
        datamodule.prepare_data()  # now, so that a fault of the data leaves nothing behind
    if trainer.fast_dev_run:
        trainer.fit(module, datamodule)
        rank_zero_info("trainer.fast_dev_run: these batches went through; nothing was measured or written")
        return
    if is_first_rank():
        save_config(config, run.config_path)
    started = time.perf_counter()
    try:
        trainer.fit(module, datamodule, ckpt_path=resume, weights_only=True if resume else None)
        seconds = time.perf_counter() - started
        # one answer for all processes: to write it is a matter of all, and the first may have done so already
        if trainer.strategy.broadcast(not checkpoint.is_file()):
            keep_untested(trainer, checkpoint)
        reports = evaluate_module(trainer, module, datamodule, checkpoint)
        if trainer.is_global_zero:
            save_evaluation(trainer, matcher, datamodule, config, run.folder)
            run.write_results({**collect_results(trainer, reports, datamodule, checkpoint), "fit_seconds": seconds})
    except SIGTERMException:  # Lightning's, where the signal is not ours to take
        raise Interruption(signal.SIGTERM, f"at step {trainer.global_step}") from None
    except Interruption as stopped:
        stopped.where = f"at step {trainer.global_step}"
        raise
    finally:
        close_loggers(trainer)
    trainer.strategy.barrier()


def is_finished(run: Run, strategy: Strategy) -> bool:
    """Has a run its result by now? One answer for the processes of another launcher, of which the first has the run.

    It is the one that waited for whoever was at it before.
    """
    strategy.setup_environment()  # their group, which `trainer.fit` finds
    return strategy.broadcast(run.read_results() is not None)


def find_resumable(run: Run) -> Path | None:
    """Return the checkpoint that a run goes on from: the last, or the best where the last is damaged.

    Raises:
        DamagedFileError: the last is damaged, and there is no other.
    """
    from mim_lightning.model.checkpoint import verify_checkpoint

    remove_abandoned(run.last_checkpoint.parent)
    if not run.last_checkpoint.exists():
        return None
    try:
        verify_checkpoint(run.last_checkpoint)
    except DamagedFileError as error:
        with suppress(DamagedFileError, FileNotFoundError):
            verify_checkpoint(run.best_checkpoint)
            if is_first_rank():
                print(f"warning: {error}; resumed from {run.best_checkpoint.name}", file=sys.stderr, flush=True)
            return run.best_checkpoint
        raise DamagedFileError(
            error.path, error.reason, "there is no other to resume from; remove it to train from the start"
        ) from error
    return run.last_checkpoint


if __name__ == "__main__":
    main()
