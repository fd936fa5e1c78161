"""Lightning's trainer: validation of its options, callbacks and loggers, and the adjustments that a run needs.

Values of the wrong kind, and options that would leave a run without a result, raise an error of one line before
training; Lightning itself would print a call stack, fail after an epoch, or say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info

from mim_lightning.artifact_paths import is_sharded_checkpoint
from mim_lightning.expected_types import validate_arguments
from mim_lightning.io.atomic import atomic_write
from mim_lightning.model.sharded_checkpoint import read_sharded

COMPLETE = "results come from whole passes over queries and catalog"
PATIENCE = timedelta(days=30)  # of processes that wait for the first one: it may prepare data for hours
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {  # option -> values that are allowed, what to give instead
    "callbacks": ((None, []), "callbacks have a section of their own, such as callbacks.progress_bar=null"),
    "logger": ((None, []), "loggers have a group of their own, such as logger=none"),
    "barebones": ((None, False), "give logger=none callbacks.progress_bar=null"),
    "enable_checkpointing": (
        (None, True),
        "results come from a checkpoint; callbacks.last=null omits the other one",
    ),
    "overfit_batches": ((None, 0), f"{COMPLETE}; give debug=overfit, which memorizes its training rows"),
}

OWN_PROCESSES = tuple(
    f"ddp_{start}{rest}" for start in ("spawn", "fork", "notebook") for rest in ("", "_find_unused_parameters_true")
)


def validate_trainer(options: Mapping[str, Any], is_training: bool = True) -> None:
    """Check that options of `lightning.Trainer` are of the right kind, and leave a result.

    Args:
        is_training: False for a trainer that only evaluates.

    Raises:
        ValueError: naming the key and a value that works.
    """
    # "auto" is ours; the entry point resolves it
    validate_arguments(Trainer, {k: v for k, v in options.items() if (k, v) != ("precision", "auto")}, "trainer")
    for key, (allowed, remedy) in FIXED.items():
        if options.get(key) not in allowed:
            raise ValueError(f"trainer.{key}={_written(options[key])}: {remedy}")
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if options.get(key) is not None and options[key] < 1:
            raise ValueError(f"trainer.{key}={options[key]}: give a whole number, 1 or more")
    if options.get("strategy") in OWN_PROCESSES:
        raise ValueError(
            f"trainer.strategy={options['strategy']}: starts processes itself, which trainer.devices does here; "
            "give ddp"
        )
    _validate_sharding(options.get("strategy"), options.get("precision"))
    clip = options.get("gradient_clip_val")
    if clip is not None and not clip >= 0:
        raise ValueError(f"trainer.gradient_clip_val={clip}: give a number, 0 or more; 0 or null clips nothing")
    if is_training and not options.get("fast_dev_run"):
        _validate_passes(options)


def _validate_passes(options: Mapping[str, Any]) -> None:
    if options["precision"] == "16-true":
        raise ValueError(
            "trainer.precision=16-true: the small numbers of a training step are 0 in float16; give 16-mixed, "
            "bf16-mixed or bf16-true"
        )
    limit = options.get("limit_val_batches")
    if limit is not None and not (isinstance(limit, float) and limit == 1.0):
        raise ValueError(
            f"trainer.limit_val_batches={limit}: {COMPLETE}; trainer.check_val_every_n_epoch=5 makes them rarer, "
            "trainer.fast_dev_run=3 tries a few batches"
        )
    sanity = options.get("num_sanity_val_steps")
    if sanity not in (-1, 0):
        raise ValueError(
            f"trainer.num_sanity_val_steps={_written(sanity)}: give -1, a whole pass that measures the model "
            "before training, or 0 for none"
        )
    if options.get("max_epochs") == -1 and options.get("max_steps", -1) == -1:
        raise ValueError("trainer.max_epochs=-1: the schedule needs an end; give trainer.max_steps=<number> with it")
    interval = options.get("val_check_interval")
    if isinstance(interval, int | float) and (interval <= 0 or not math.isfinite(interval)):
        raise ValueError(f"trainer.val_check_interval={interval}: give steps, or a fraction of an epoch above 0")
    every = options.get("accumulate_grad_batches") or 1
    if isinstance(interval, int) and interval % every:
        raise ValueError(
            f"trainer.val_check_interval={interval}: counts batches, {every} of which are a step; give a multiple of "
            f"trainer.accumulate_grad_batches={every}, or a run that resumes after a validation loses a part of a step"
        )


def validate_unsharded(options: Mapping[str, Any]) -> None:
    """Check that the strategy leaves each process a whole model, where processes have different numbers of batches.

    Raises:
        ValueError: it divides the weights: a process with fewer batches would let the others wait for its part.
    """
    strategy = options.get("strategy")
    name = str(strategy.get("_target_") if isinstance(strategy, Mapping) else strategy)
    if any(kind in name.lower() for kind in ("fsdp", "sharded", "deepspeed", "modelparallel")):
        raise ValueError(
            f"trainer.strategy={name}: divides the weights, and here each process embeds its own shards with "
            "all of them; leave trainer=auto"
        )


def _validate_sharding(strategy: Any, precision: Any) -> None:
    if isinstance(strategy, str) and strategy.startswith("fsdp") and strategy != "fsdp2":
        raise ValueError(f"trainer.strategy={strategy}: is the former FSDP; give trainer=fsdp, which is FSDP2")
    is_object = isinstance(strategy, Mapping) and str(strategy.get("_target_")).endswith(".FullySharded")
    if precision == "16-mixed" and (is_object or strategy == "fsdp2"):
        raise ValueError("trainer.precision=16-mixed: trainer=fsdp scales no gradients; give bf16-mixed or 32-true")
    if is_object and strategy.get("gather_dtype") == "bfloat16" and precision != "bf16-mixed":
        raise ValueError(
            f"trainer.strategy.gather_dtype=bfloat16: passes compute in it, inputs with trainer.precision={precision} "
            "do not; give trainer.precision=bf16-mixed"
        )
    if precision == "64-true" and is_object:
        raise ValueError("trainer.precision=64-true: not with an object as strategy; give trainer.strategy=fsdp2")


def validate_callbacks(callbacks: Mapping[str, Any], needed: Mapping[str, Path | None]) -> None:
    """Check that callbacks are Lightning's, and that the best or last checkpoint can give the result.

    Args:
        callbacks: built, by name.
        needed: names that cannot be left out; for a checkpoint, the file that it has to write.

    Raises:
        ValueError: naming the callback.
    """
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            kind = type(callback)
            raise ValueError(
                f"callbacks.{name}: is no Lightning callback but {kind.__module__}.{kind.__qualname__}; "
                "give {_target_: <its class>, ...}"
            )
    for name, path in needed.items():
        if name not in callbacks:
            raise ValueError(f"callbacks.{name}: cannot be left out: the result comes from it")
        callback = callbacks[name]
        if path is None or not isinstance(callback, ModelCheckpoint):
            continue
        if Path(callback.dirpath or "") / f"{callback.filename}.ckpt" != path.resolve():
            raise ValueError(f"callbacks.{name}: must write {path}, which the result is read from; leave its file name")
        if callback.save_top_k != 1:
            raise ValueError(
                f"callbacks.{name}.save_top_k={callback.save_top_k}: {path.name} is one file, so it keeps 1; "
                "add a ModelCheckpoint under another name"
            )


def validate_loggers(loggers: Mapping[str, Any]) -> None:
    """Check that loggers are Lightning's.

    Raises:
        ValueError: naming the logger.
    """
    for name, logger in loggers.items():
        if not isinstance(logger, Logger):
            raise ValueError(f"logger.{name}: is no Lightning logger; give {{_target_: <its class>, ...}}")


def ask_first_rank(strategy: Strategy, ask: Callable[[], Any]) -> Any:
    """Call a function on rank zero only, and return its answer on every rank; it may take hours.

    Raises:
        ValueError, OSError: the function raised it; raised on every rank, or the others would wait for an answer.
    """
    strategy.setup_environment()  # the process group, which `trainer.fit` uses
    return ask_first(strategy, ask, may_take_hours=True)


def ask_first(strategy: Strategy, ask: Callable[[], Any], may_take_hours: bool = False) -> Any:
    """Do what `ask_first_rank` does, where the process group is there."""
    answer, error = None, None
    if strategy.is_global_zero:
        try:
            answer = ask()
        except (ValueError, OSError) as raised:
            error = raised
    if may_take_hours:
        _wait_for_first_rank(strategy.is_global_zero)
    answer, error = strategy.broadcast((answer, error))
    if error is not None:
        raise error
    return answer


_asked = count()  # questions so far: the same on every rank


def _wait_for_first_rank(is_first: bool) -> None:
    """Wait without a collective, which would time out after ten or thirty minutes."""
    key = f"mim_lightning/answer/{next(_asked)}"
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    if is_first:
        store.set(key, "")
    else:
        store.wait([key], PATIENCE)


def keep_batches(trainer: Trainer) -> None:
    """Keep the trainer's precision plugin from converting batches, which contain integers only.

    Plugins such as that of "bf16-true" convert floats by rewriting the batch, which fails for a frozen dataclass.
    """
    trainer.precision_plugin.convert_input = _unchanged  # type: ignore[method-assign, assignment]


def save_unvalidated(trainer: Trainer, path: Path) -> None:
    """Write the checkpoint of a run that ended without a validation pass: results need one."""
    if trainer.global_step:
        text = f"no validation ran during training: {path.name} is the model after step {trainer.global_step}"
    else:
        text = "no step was trained: results are those of the model before training"
    rank_zero_info(text)
    trainer.save_checkpoint(path, weights_only=False)


def _unchanged(batch: Any) -> Any:
    return batch


def _written(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a file beside its place, syncs it to the disk, and renames it over the former one.

    Lightning goes through the system's temporary folder, which may be another file system: a run that is killed
    meanwhile leaves half a file in place of a good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # object stores write atomically
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # a folder is the former checkpoint of a run that was sharded
        with atomic_write(target, replaces_folder=True) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        return read_sharded(path) if is_sharded_checkpoint(path) else super().load_checkpoint(path, *args, **options)


def write_checkpoints_atomically(trainer: Trainer) -> None:
    """Use `AtomicCheckpointIO`, unless the trainer's config brings another checkpoint plugin."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
