"""The section `trainer`, callbacks and loggers of a config before and after they become Lightning's objects.

What Lightning would tell with a call stack, after an epoch, or not at all is refused here in one line: values of the
wrong kind, and options that would leave a run without a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info

from mim_lightning.expected_types import refuse_mistyped

COMPLETE = "the result comes from whole passes over queries and catalogue"
ELSEWHERE: dict[str, tuple[tuple[Any, ...], str]] = {  # option -> values that say nothing, what to give instead
    "callbacks": ((None, []), "callbacks have a section of their own, such as callbacks.progress_bar=null"),
    "logger": ((None, []), "loggers have a group of their own, such as logger=none"),
    "barebones": ((None, False), "give logger=none callbacks.progress_bar=null"),
    "enable_checkpointing": ((None, True), "the result comes from a checkpoint; callbacks.last=null spares the other"),
    "overfit_batches": ((None, 0), f"{COMPLETE}; give debug=overfit, which has to learn its training rows by heart"),
}

OWN_PROCESSES = tuple(
    f"ddp_{start}{rest}" for start in ("spawn", "fork", "notebook") for rest in ("", "_find_unused_parameters_true")
)


def check_trainer(options: Mapping[str, Any], is_training: bool = True) -> None:
    """Refuse options of `lightning.Trainer` that are of the wrong kind, or that leave no result.

    Args:
        is_training: False where the trainer is to evaluate alone.

    Raises:
        ValueError: naming the key, and what would do.
    """
    # "auto" is ours, and chosen by whoever calls
    refuse_mistyped(Trainer, {k: v for k, v in options.items() if (k, v) != ("precision", "auto")}, "trainer")
    for key, (without, remedy) in ELSEWHERE.items():
        if options.get(key) not in without:
            raise ValueError(f"trainer.{key}={_written(options[key])}: {remedy}")
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if options.get(key) is not None and options[key] < 1:
            raise ValueError(f"trainer.{key}={options[key]}: give a whole number, 1 or more")
    if options.get("strategy") in OWN_PROCESSES:
        raise ValueError(
            f"trainer.strategy={options['strategy']}: starts processes of its own, as trainer.devices does here "
            "already; give ddp"
        )
    clip = options.get("gradient_clip_val")
    if clip is not None and not clip >= 0:
        raise ValueError(f"trainer.gradient_clip_val={clip}: give a number, 0 or more; 0 or null clips nothing")
    if is_training and not options.get("fast_dev_run"):
        _check_passes(options)


def _check_passes(options: Mapping[str, Any]) -> None:
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
            f"trainer.num_sanity_val_steps={_written(sanity)}: give -1, a whole pass that measures the untouched "
            "model, or 0 for none"
        )
    if options.get("max_epochs") == -1 and options.get("max_steps", -1) == -1:
        raise ValueError("trainer.max_epochs=-1: the schedule needs an end; give trainer.max_steps=<number> with it")
    interval = options.get("val_check_interval")
    if isinstance(interval, int | float) and (interval <= 0 or not math.isfinite(interval)):
        raise ValueError(f"trainer.val_check_interval={interval}: give steps, or a share of an epoch above 0")


def check_callbacks(callbacks: Mapping[str, Any], needed: Mapping[str, Path | None]) -> None:
    """Refuse callbacks that are none, and a best or last checkpoint that the result could not be read from.

    Args:
        callbacks: built, by name.
        needed: names that cannot be left out; of a checkpoint, the file it has to write.

    Raises:
        ValueError: naming the callback.
    """
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            kind = type(callback)
            raise ValueError(
                f"callbacks.{name}: is no callback of Lightning but {kind.__module__}.{kind.__qualname__}; "
                "give {_target_: <its class>, ...}"
            )
    for name, path in needed.items():
        if name not in callbacks:
            raise ValueError(f"callbacks.{name}: cannot be left out, the result comes from it")
        callback = callbacks[name]
        if path is None or not isinstance(callback, ModelCheckpoint):
            continue
        if Path(callback.dirpath or "") / f"{callback.filename}.ckpt" != path.resolve():
            raise ValueError(f"callbacks.{name}: must write {path}, the result is read from it; leave its file name")
        if callback.save_top_k != 1:
            raise ValueError(
                f"callbacks.{name}.save_top_k={callback.save_top_k}: {path.name} is one file, so 1 is what it can "
                "keep; add a ModelCheckpoint under another name"
            )


def check_loggers(loggers: Mapping[str, Any]) -> None:
    """Refuse loggers that are none.

    Raises:
        ValueError: naming the logger.
    """
    for name, logger in loggers.items():
        if not isinstance(logger, Logger):
            raise ValueError(f"logger.{name}: is no logger of Lightning; give {{_target_: <its class>, ...}}")


def ask_first_rank(strategy: Strategy, ask: Callable[[], Any]) -> Any:
    """Call a function on rank zero alone, and return its answer on every rank.

    Raises:
        ValueError: the function raised it, on every rank.
    """
    strategy.setup_environment()  # the process group, which `trainer.fit` finds
    answer, error = None, None
    if strategy.is_global_zero:
        try:
            answer = ask()
        except ValueError as raised:
            error = raised
    answer, error = strategy.broadcast((answer, error))
    if error is not None:
        raise error
    return answer


def keep_batches(trainer: Trainer) -> None:
    """Have the trainer's precision leave batches as they are: they hold whole numbers alone.

    Plugins of "bf16-true" and the like look for floats in a batch by rewriting it, which a frozen one refuses.
    """
    trainer.precision_plugin.convert_input = _unchanged  # type: ignore[method-assign, assignment]


def keep_untested(trainer: Trainer, path: Path) -> None:
    """Write the checkpoint of a run that ended without a validation pass of its own: there is no other to report."""
    if trainer.global_step:
        text = f"no validation ran while training, so {path.name} is the model after step {trainer.global_step}"
    else:
        text = "no step was trained: the results are the untouched model's"
    rank_zero_info(text)
    trainer.save_checkpoint(path, weights_only=False)


def _unchanged(batch: Any) -> Any:
    return batch


def _written(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
