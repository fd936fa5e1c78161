"""Weights rounded by hand, what stays as it is, and the name that a rounded model goes by."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mim_lightning.inference.loading import load
from mim_lightning.inference.quantization import (
    MIN_INPUTS,
    base_fingerprint,
    compute_dtype,
    dequantize_state,
    quantize_state,
    quantized_fingerprint,
)
from tests.inference.models import TEXTS


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    random = {
        "linear.weight": torch.randn(5, MIN_INPUTS, generator=generator),
        "conv.weight": torch.randn(3, 16, 2, 2, generator=generator),
        "depthwise.weight": torch.randn(32, 1, 3, 3, generator=generator),  # few inputs
        "linear.bias": torch.randn(MIN_INPUTS, generator=generator),
        "positions": torch.randn(7, MIN_INPUTS, generator=generator),  # no weight of products
    }
    random["linear.weight"][2] = 0
    random["linear.weight"][3] *= 1000  # an outlier must not cost the other channels
    return {**random, "counter": torch.tensor(3)}


def test_float32_is_kept_as_it_is() -> None:
    stored = quantize_state(state(), "float32")
    for name, tensor in dequantize_state(stored).items():
        assert torch.equal(tensor, state()[name]) and tensor.dtype == state()[name].dtype


def test_int8_rounds_each_channel_to_its_own_255_steps() -> None:
    stored = quantize_state(state(), "int8")
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.int8} == {"linear.weight", "conv.weight"}
    restored = dequantize_state(stored)
    assert set(restored) == set(state())
    for name, tensor in state().items():
        if name not in ("linear.weight", "conv.weight"):
            assert torch.equal(restored[name], tensor)
            continue
        for row, original in zip(restored[name].flatten(1).numpy(), tensor.flatten(1).numpy(), strict=True):
            step = np.abs(original).max() / 127
            expected = [round(float(value) / step) * step if step else 0.0 for value in original]
            np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-12)
            assert np.abs(row - original).max() <= step * 0.5001


@pytest.mark.parametrize(("precision", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_halves_keep_matrices_in_half_the_bytes(precision: str, dtype: torch.dtype) -> None:
    stored = quantize_state(state(), precision)
    assert {name for name, tensor in stored.items() if tensor.dtype == dtype} == {"linear.weight", "conv.weight"}
    restored = dequantize_state(stored)
    assert all(tensor.dtype == state()[name].dtype for name, tensor in restored.items())
    assert torch.equal(restored["conv.weight"], state()["conv.weight"].to(dtype).float())


def test_a_quantized_model_has_a_fingerprint_that_contains_the_first() -> None:
    assert quantized_fingerprint("abc", "float32") == "abc" and quantized_fingerprint("abc", "int8") == "abc+int8"
    assert base_fingerprint("abc+int8") == base_fingerprint("abc") == "abc"


def test_float16_is_not_computed_on_a_cpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compute_dtype("float16", cpu) == compute_dtype("int8", gpu) == torch.float32
    assert compute_dtype("float16", gpu) == torch.float16 and compute_dtype("bfloat16", cpu) == torch.bfloat16


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.999), ("float16", 0.99999), ("int8", 0.999)])
def test_a_quantized_model_embeds_nearly_alike(
    checkpoint: Path, pictures: list[Path], precision: str, least: float
) -> None:
    original, rounded = load(checkpoint), load(checkpoint, precision=precision)
    assert rounded.fingerprint == f"{original.fingerprint}+{precision}"
    assert rounded.base_fingerprint == original.fingerprint == original.base_fingerprint
    assert rounded.precision == precision
    found, expected = rounded.embed_query(pictures, TEXTS), original.embed_query(pictures, TEXTS)
    assert not np.array_equal(found, expected)
    assert (found * expected).sum(1).min() > least
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
