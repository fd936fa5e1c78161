"""Overrides as people write them: keys that no file under conf/ lists are taken with and without Hydra's "+".

The words of a command line come in and go out; whatever composes a config calls it. A section that takes any of a
vendor's options, or names that the user invents, cannot list them all; a message that advises such a key would
otherwise be refused.
"""

from __future__ import annotations

from collections.abc import Iterable

TRAINER_OPTIONS = frozenset(
    (
        # of `lightning.Trainer`; written down, for importing it takes seconds and a misspelt key is told at once
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
# whose keys are names that the user gives (of parameters, data sets, segments), or more than conf/ lists: what takes
# them refuses one that it does not know
OPEN_SECTIONS = (
    "optim.lr_scales.",
    "data.mixture.",
    "data.source.columns.",
    "data.source.fields.",
    "callbacks.retrieval_eval.",
)


def open_up(overrides: Iterable[str]) -> list[str]:
    """Return overrides in which keys of open sections are set whether they are there or not."""
    return [f"++{override.lstrip('+')}" if _is_open(override) else override for override in overrides]


def _is_open(override: str) -> bool:
    key, is_given, _ = override.lstrip("+").partition("=")
    section, _, option = key.partition(".")
    return bool(is_given) and (
        f"{key}.".startswith(OPEN_SECTIONS) or (section == "trainer" and option in TRAINER_OPTIONS)
    )
