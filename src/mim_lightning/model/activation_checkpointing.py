"""Activation checkpointing of towers: less memory for a second forward pass of their encoders, the same gradients.

Random numbers, as of dropout, are the same in both passes; batch normalization counts a batch once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mim_lightning.model.gradient_cache import updating_norms
from mim_lightning.model.matcher import Matcher


def start_checkpointing(matcher: Matcher) -> None:
    """Have the towers with `activation_checkpointing` recompute activations in the backward pass from now on.

    Raises:
        ValueError: an encoder cannot; names its tower.
    """
    for name in matcher.towers:
        tower = matcher.tower(name)
        if tower.activation_checkpointing and not tower.is_frozen:
            try:
                tower.encoder.checkpoint_activations()
            except ValueError as error:
                raise ValueError(f"model.towers.{name}.activation_checkpointing: {error}") from error


@contextmanager
def restore_statistics(matcher: Matcher) -> Iterator[None]:
    """Give checkpointed towers the running batch statistics back that they had before a backward pass."""
    towers = [matcher.tower(name) for name in matcher.towers]
    norms = [norm for tower in towers if tower.activation_checkpointing for norm in updating_norms(tower)]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    yield
    with torch.no_grad():
        for buffer, before in kept:
            buffer.copy_(before)
