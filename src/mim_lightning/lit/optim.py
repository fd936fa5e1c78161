"""Parameter groups of the optimizer, and learning-rate schedules.

Vectors (norms, scales), biases and what an encoder's vendor lists (class tokens, positions ...) have no weight decay.
Encoders, which may be pretrained, can have a smaller learning rate than the new layers on top of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mim_lightning.model.matcher import Matcher


def parameter_groups(
    matcher: Matcher,
    objective: nn.Module,
    lr: float,
    weight_decay: float,
    lr_scales: Mapping[str, float],
    layer_decay: float | None = None,
    spares_listed: bool = True,
) -> list[dict[str, Any]]:
    """Return parameter groups by learning rate and weight decay; parameters without gradient are left out.

    Args:
        lr_scales: factors on `lr`, by prefix of a parameter's name ("towers.query_image.encoder"); the key
            "encoder" means every tower's encoder. The longest prefix wins. A prefix may be nested, as the command
            line gives it: {towers: {query_image: {encoder: 0.1}}}.
        layer_decay: factor on the rate from each layer of an encoder to the one before it, on top of `lr_scales`: the
            last of L layers has `layer_decay`, the embeddings before the first `layer_decay ** (L + 1)`, what comes
            behind the last 1, as in BEiT (https://arxiv.org/abs/2106.08254). None: 1.
        spares_listed: no weight decay for what `Encoder.names_without_decay` lists.

    Raises:
        ValueError: a rate, decay or factor is negative or no number, or matches no parameter.
    """
    lr_scales = dict(_by_prefix(lr_scales))
    for key, value in {
        "lr": lr,
        "weight_decay": weight_decay,
        **{f"lr_scales.{p}": s for p, s in lr_scales.items()},
    }.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"optim.{key}={value}: give a number, 0 or more")
    is_factor = isinstance(layer_decay, int | float) and not isinstance(layer_decay, bool) and 0 < layer_decay <= 1
    if layer_decay is not None and not is_factor:
        raise ValueError(f"optim.layer_decay={layer_decay}: give a number above 0, up to 1; or null for none")
    prefixes = {f"towers.{name}.encoder": lr_scales["encoder"] for name in matcher.towers if "encoder" in lr_scales}
    prefixes |= {prefix: scale for prefix, scale in lr_scales.items() if prefix != "encoder"}
    names = [name for part in (matcher, objective) for name, _ in part.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"optim.lr_scales: no parameter starts with '{prefix}'; try one like '{names[0]}'")
    listed = _listed_names(matcher) if spares_listed else set()
    of_layer = {} if layer_decay is None else _layer_scales(matcher, layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in (*matcher.named_parameters(), *objective.named_parameters()):
        if not parameter.requires_grad:
            continue
        scale = max((len(p), s) for p, s in [("", 1.0), *prefixes.items()] if name.startswith(p))[1]
        scale *= of_layer.get(name, 1)
        is_spared = parameter.ndim <= 1 or name.endswith(".bias") or name in listed
        decay = 0.0 if is_spared else weight_decay
        group = groups.setdefault((scale, decay), {"params": [], "lr": lr * scale, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def began_with_listed_decayed(matcher: Matcher, objective: nn.Module, state: Mapping[str, Any], **options: Any) -> bool:
    """Return whether an optimizer's state is of a version that decayed what encoders list: its groups differ."""
    sizes = [len(group["params"]) for group in state["param_groups"]]
    now, before = (
        [len(group["params"]) for group in parameter_groups(matcher, objective, **options, spares_listed=spares)]
        for spares in (True, False)
    )
    return sizes == before != now


def _listed_names(matcher: Matcher) -> set[str]:
    return {
        f"towers.{owner}.encoder.{name}"
        for owner in matcher.towers
        for name in matcher.tower(owner).encoder.names_without_decay()
    }


def _layer_scales(matcher: Matcher, layer_decay: float) -> dict[str, float]:
    """Return the factor on the rate of each encoder's parameters by their depth."""
    scales: dict[str, float] = {}
    for owner in matcher.towers:
        layers = matcher.tower(owner).encoder.layers()
        for idx, layer in enumerate(layers):
            scales |= {f"towers.{owner}.encoder.{name}": layer_decay ** (len(layers) - 1 - idx) for name in layer}
    return scales


def _by_prefix(scales: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, scale in scales.items():
        if isinstance(scale, Mapping):
            yield from _by_prefix(scale, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", scale


def warmup_cosine(
    optimizer: Optimizer, num_steps: int, warmup_fraction: float = 0.05, final_lr_fraction: float = 0.0
) -> LambdaLR:
    """Rise linearly in the first fraction of steps, then follow a half cosine to `final_lr_fraction` of the rate."""
    _validate_fractions(warmup_fraction=warmup_fraction, final_lr_fraction=final_lr_fraction)
    num_warmup = max(1, round(num_steps * warmup_fraction))

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
        return final_lr_fraction + (1 - final_lr_fraction) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def warmup_constant(optimizer: Optimizer, num_steps: int, warmup_fraction: float = 0.05) -> LambdaLR:
    """Rise linearly over the first fraction of steps, then stay constant."""
    _validate_fractions(warmup_fraction=warmup_fraction)
    num_warmup = max(1, round(num_steps * warmup_fraction))
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / num_warmup))


def warmup_stable_decay(
    optimizer: Optimizer,
    num_steps: int,
    warmup_fraction: float = 0.05,
    decay_fraction: float = 0.2,
    decay: str = "1-sqrt",
    final_lr_fraction: float = 0.0,
) -> LambdaLR:
    """Rise linearly over the first fraction of steps, stay constant, and fall over the last fraction (WSD).

    Until it falls, the rate does not depend on the number of steps. Hu et al. 2024, https://arxiv.org/abs/2404.06395;
    the fall as 1 - sqrt, which the paper compares with a linear one: Hägele et al. 2024,
    https://arxiv.org/abs/2405.18392.

    Args:
        decay: "linear" or "1-sqrt", of the progress through the last fraction.
        final_lr_fraction: of the rate, behind the last step.
    """
    _validate_fractions(
        warmup_fraction=warmup_fraction, decay_fraction=decay_fraction, final_lr_fraction=final_lr_fraction
    )
    if warmup_fraction + decay_fraction > 1:
        raise ValueError(
            f"schedule.decay_fraction={decay_fraction}: with warmup_fraction={warmup_fraction} more than all steps"
        )
    if decay not in ("linear", "1-sqrt"):
        raise ValueError(f"schedule.decay={decay}: give linear or 1-sqrt")
    num_warmup, num_decay = max(1, round(num_steps * warmup_fraction)), round(num_steps * decay_fraction)

    def factor(step: int) -> float:
        progress = min(1.0, max(0, step - (num_steps - num_decay)) / max(1, num_decay))
        falling = 1 - (progress if decay == "linear" else math.sqrt(progress))
        return min(1.0, (step + 1) / num_warmup) * (final_lr_fraction + (1 - final_lr_fraction) * falling)

    return LambdaLR(optimizer, factor)


def _validate_fractions(**fractions: float) -> None:
    for key, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f"schedule.{key}={value}: give a number from 0 to 1")
