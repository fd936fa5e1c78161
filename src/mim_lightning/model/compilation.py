"""Compiled encoders: `torch.compile` of each encoder alone, in training steps.

Names of weights stay as they are, so checkpoints, resuming and averaged weights know nothing of it. Validation runs
uncompiled: its numbers are those that `evaluate` finds.
"""

from __future__ import annotations

from typing import Any

import torch

from mim_lightning.model.matcher import Matcher

MAX_VARIANTS = 64  # of one encoder: a shape apart for one input, and one for each tower of its class


def compile_encoders(matcher: Matcher, backend: bool | str) -> None:
    """Compile the encoders of all towers at their next training step.

    Args:
        backend: True for torch's default, or the name of another.

    Raises:
        ValueError: no such backend, or one that computes as ever for a tower with activation checkpointing.
    """
    if not backend:
        return
    options: dict[str, Any] = {} if backend is True else {"backend": backend}
    known = torch.compiler.list_backends(exclude_tags=())
    if backend is not True and backend not in known:
        raise ValueError(f"model.compile={backend}: give true, false or one of {', '.join(known)}")
    if backend is not True and backend.startswith("eager"):
        for name in matcher.towers:
            if matcher.tower(name).activation_checkpointing and not matcher.tower(name).is_frozen:
                raise ValueError(
                    f"model.compile={backend}: with model.towers.{name}.activation_checkpointing dropout differs in "
                    "the second pass, and gradients are wrong; give model.compile=true"
                )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    for name in matcher.towers:
        matcher.tower(name).compile_encoder(**options)
