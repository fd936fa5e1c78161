"""Weights in fewer bits: which weights are rounded, how, and what that does to a model's fingerprint.

Biases, norms, position tables and filters with few inputs stay float32: they are small, and depthwise filters in int8
cost MobileNetV2 ten times the loss of all other weights together.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PRECISIONS = ("float32", "bfloat16", "float16", "int8")
MIN_INPUTS = 64  # of an output channel, for a weight to be rounded
SCALE = ".scale"  # suffix of the name under which the scales of an int8 weight are stored
INT8_MAX = 127
_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def validate_precision(precision: str) -> None:
    """Raise a ValueError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision}: there are {', '.join(PRECISIONS)}")


def quantized_fingerprint(fingerprint: str, precision: str) -> str:
    """Return the fingerprint of a float32 model rounded to a precision: its own, a plus sign, the precision.

    Rounded weights are other weights and need another fingerprint; its first part says whose vectors they approximate.
    """
    return fingerprint if precision == "float32" else f"{fingerprint}+{precision}"


def base_fingerprint(fingerprint: str) -> str:
    """Return the fingerprint of the float32 model that a rounded one was made from; its own if it is not rounded."""
    return fingerprint.split("+")[0]


def quantize_state(state: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Return a state dict as it is stored in a file; int8 weights are symmetric, with one scale per output channel.

    Source: round to nearest by output channel, as in Nagel et al. 2021, "A White Paper on Neural Network Quantization".
    """
    validate_precision(precision)
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if precision == "float32" or not _is_rounded(name, tensor):
            stored[name] = tensor
        elif precision == "int8":
            channels = tensor.flatten(1).float()
            scale = channels.abs().amax(1).clamp(min=1e-12) / INT8_MAX  # a channel of zeros stays zero
            stored[name] = (channels / scale[:, None]).round().to(torch.int8).view_as(tensor)
            stored[name + SCALE] = scale
        else:
            stored[name] = tensor.to(_HALF[precision])
    return stored


def dequantize_state(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the float32 state dict of a stored one, its weights as they were rounded."""
    state = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8 and name + SCALE in stored:
            scale = stored[name + SCALE].view(-1, *(1,) * (tensor.dim() - 1))
            state[name] = tensor.float() * scale
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) in stored):
            state[name] = tensor.float() if tensor.dtype in _HALF.values() else tensor
    return state


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products: float16 on a CPU would be ten times slower than float32."""
    if precision == "float16" and device.type == "cpu":
        return torch.float32
    return _HALF.get(precision, torch.float32)


def _is_rounded(name: str, tensor: Tensor) -> bool:
    is_matrix = name.endswith("weight") and tensor.dtype == torch.float32 and tensor.dim() >= 2
    return is_matrix and tensor[0].numel() >= MIN_INPUTS
