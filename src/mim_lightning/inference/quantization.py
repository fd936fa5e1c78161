"""Precision: in which type weight matrices are kept, in which a model computes, and what that does to its name.

A state dict comes in and goes out rounded (`store`, `restore`); `loaded` and `export` call it. Biases, norms, tables of
positions and filters of few inputs stay float32: they are small, and depthwise filters in int8 cost MobileNetV2
ten times the loss of all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PRECISIONS = ("float32", "bfloat16", "float16", "int8")
MIN_INPUTS = 64  # of an output channel, for a weight to be rounded
SCALE = ".scale"  # ending of the name under which an int8 weight's scales stand
INT8_MAX = 127
_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def check_precision(precision: str) -> None:
    """Raise a ValueError for a precision that there is not."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision}: there are {', '.join(PRECISIONS)}")


def name_of(fingerprint: str, precision: str) -> str:
    """Return the fingerprint of a float32 model rounded to a precision: its own, a plus sign, the precision.

    Rounded weights are other weights, so the fingerprint is another one; that it begins with the original's tells
    whose vectors these nearly are.
    """
    return fingerprint if precision == "float32" else f"{fingerprint}+{precision}"


def base_of(fingerprint: str) -> str:
    """Return the fingerprint of the float32 model that a rounded one was made from; its own if it is not rounded."""
    return fingerprint.split("+")[0]


def store(state: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Return a state dict as it is kept in a file; int8 weights are symmetric, with a scale an output channel.

    Source: round to nearest by output channel, as in Nagel et al. 2021, "A White Paper on Neural Network Quantization".
    """
    check_precision(precision)
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if precision == "float32" or not _is_matrix(name, tensor):
            stored[name] = tensor
        elif precision == "int8":
            channels = tensor.flatten(1).float()
            scale = channels.abs().amax(1).clamp(min=1e-12) / INT8_MAX  # a channel of zeros stays zero
            stored[name] = (channels / scale[:, None]).round().to(torch.int8).view_as(tensor)
            stored[name + SCALE] = scale
        else:
            stored[name] = tensor.to(_HALF[precision])
    return stored


def restore(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the float32 state dict of a stored one, with weights as they were rounded."""
    state = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8 and name + SCALE in stored:
            scale = stored[name + SCALE].view(-1, *(1,) * (tensor.dim() - 1))
            state[name] = tensor.float() * scale
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) in stored):
            state[name] = tensor.float() if tensor.dtype in _HALF.values() else tensor
    return state


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """Return the type that matrix products are computed in: float16 on a CPU would be ten times slower than float32."""
    if precision == "float16" and device.type == "cpu":
        return torch.float32
    return _HALF.get(precision, torch.float32)


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return (
        name.endswith("weight")
        and tensor.dtype == torch.float32
        and tensor.dim() >= 2
        and tensor[0].numel() >= MIN_INPUTS
    )
