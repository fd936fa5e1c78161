"""Overrides of keys that no file in conf/ lists, accepted with and without Hydra's "+".

A section that accepts any option of a library, or names that the user chooses, cannot list all of its keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TRAINER_OPTIONS = frozenset(
    (
        # of `lightning.Trainer`; listed here because importing it takes seconds, and a misspelt key is reported at once
        *("accelerator", "strategy", "devices", "num_nodes", "precision", "fast_dev_run", "max_epochs", "min_epochs"),
        *("max_steps", "min_steps", "max_time", "limit_train_batches", "limit_val_batches", "overfit_batches"),
        *("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps"),
        *("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "accumulate_grad_batches"),
        *("gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark", "inference_mode"),
        *("use_distributed_sampler", "profiler", "detect_anomaly", "barebones", "plugins", "sync_batchnorm"),
        *("reload_dataloaders_every_n_epochs", "default_root_dir", "limit_test_batches", "limit_predict_batches"),
        *("enable_autolog_hparams", "model_registry", "logger", "callbacks"),
    )
)
# whose keys are names that the user chooses (of parameters, towers, data sets, segments), or more than conf/ lists;
# their constructors reject unknown ones
OPEN_SECTIONS = (
    "optim.lr_scales.",
    "model.fusions.",
    "data.mixture.",
    "data.vectors.",
    "data.source.columns.",
    "data.source.fields.",
    "callbacks.retrieval_eval.",
)
# listed in conf/ now, but once not: commands that add it with "+" are accepted
LISTED_SINCE = re.compile(r"\+model\.towers\.\w+\.train=")


def open_up(overrides: Iterable[str]) -> list[str]:
    """Return overrides in which keys of open sections are set whether they exist or not."""
    return [
        f"++{override.lstrip('+')}" if _is_open(override) or LISTED_SINCE.match(override) else override
        for override in overrides
    ]


def _is_open(override: str) -> bool:
    key, is_given, _ = override.lstrip("+").partition("=")
    section, _, option = key.partition(".")
    return bool(is_given) and (
        f"{key}.".startswith(OPEN_SECTIONS) or (section == "trainer" and option in TRAINER_OPTIONS)
    )
