"""A tower: encoder, projection, normalization to unit length; and which weights of the encoder training changes.

A photo becomes a vector by `data.images.transforms` (uint8 pixels), the encoder (normalized on the device, features),
and `Tower.project` (unit length).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mim_lightning.encoders.interface import Encoder
from mim_lightning.model.adapters import LoraSettings, add_adapters, merge_adapters
from mim_lightning.precision import at_least_float32
from mim_lightning.types import TowerInput, map_tensors

FULL, FROZEN, LAST_N, LORA = "full", "frozen", "last_n", "lora"
TRAIN_MODES = (FULL, FROZEN, LAST_N, LORA)


class Tower(nn.Module):
    """Maps the inputs of `encoder` to (n, D) embeddings of unit length, in float32 or float64.

    The projection to `embed_dim` is linear, without bias, and always trained. Without `embed_dim` the output of the
    encoder is the embedding: for encoders that were trained together, such as CLIP's, and share a space already.

    Args:
        encoder: of its inputs.
        embed_dim: width of the embeddings; None: the encoder's.
        train: what training changes of the encoder: "full", "frozen" (nothing: it runs without autograd), "last_n"
            (its last layers and what comes behind them) or "lora" (adapters beside its linear layers).
        num_trained_layers: with "last_n": blocks of a transformer, stages of a convolutional network.
        lora: the adapters with "lora"; None: the defaults.
        activation_checkpointing: whether training recomputes the encoder's activations, see
            `model.activation_checkpointing`.

    Raises:
        ValueError: another width or mode, or more layers than the encoder has.
    """

    def __init__(
        self,
        encoder: Encoder,
        embed_dim: int | None,
        train: str = FULL,
        num_trained_layers: int | None = None,
        lora: LoraSettings | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim is not None and (type(embed_dim) is not int or embed_dim < 0):
            raise ValueError(f"embed_dim={embed_dim}: give a whole number above 0, or null for the encoder's width")
        if train not in TRAIN_MODES:
            raise ValueError(f"train={train}: give {', '.join(TRAIN_MODES[:-1])} or {TRAIN_MODES[-1]}")
        self.encoder, self.train_mode = encoder, train
        self.activation_checkpointing, self._is_compiled = activation_checkpointing, False
        if train == FROZEN:
            encoder.requires_grad_(False)
        elif train == LAST_N:
            _freeze_first_layers(encoder, num_trained_layers)
        elif train == LORA:
            settings = lora or LoraSettings()
            add_adapters(encoder, settings)
            self._adapter_scale = settings.alpha / settings.rank
        self.width = embed_dim or encoder.width
        self.projection = nn.Linear(encoder.width, embed_dim, bias=False) if embed_dim else None

    @property
    def adapter_scale(self) -> float | None:
        """The factor `alpha / rank` of what adapters add, which no tensor holds; None: no adapters."""
        return self._adapter_scale if self.train_mode == LORA else None

    @property
    def is_frozen(self) -> bool:
        """Whether training leaves the whole encoder as it is."""
        return self.train_mode == FROZEN

    def merge_adapters(self) -> None:
        """Add what the adapters learned to the encoder's weights: an encoder as its vendor has it, the same outputs."""
        if self.train_mode == LORA:
            merge_adapters(self.encoder)
            self.train_mode = FULL

    def train(self, mode: bool = True) -> Tower:
        super().train(mode)
        if self.is_frozen:
            self.encoder.eval()  # no dropout, and batch statistics as they are
        elif mode and self.train_mode != FULL:
            _evaluate_frozen(self.encoder)
        return self

    def compile_encoder(self, **options: Any) -> None:
        """Compile the encoder for training; options are those of `torch.compile`."""
        self.encoder.compile(**options)  # in place: wrapped, its weights would have other names
        self._is_compiled = True

    def forward(self, inputs: TowerInput) -> Tensor:
        return self.project(self.encode(inputs))

    def encode(self, inputs: TowerInput) -> Tensor:
        """Return the encoder's features of inputs, (n, width); floats are features that it made before."""
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            assert self.is_frozen, "features of weights that change"
            return inputs
        is_eager = self._is_compiled and not self.training
        if self._is_compiled and self.training:
            map_tensors(inputs, _mark_sizes)
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen),
            torch.compiler.set_stance("force_eager") if is_eager else nullcontext(),
        ):
            return self.encoder(inputs)

    def project(self, features: Tensor) -> Tensor:
        """Return the embeddings of the encoder's features, (n, width) to (n, D)."""
        # the last step in float32 or better: rounding to bfloat16 would merge neighbors
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_float32(features)
            if self.projection is not None:
                features = F.linear(features, self.projection.weight.to(features.dtype))
            return F.normalize(features, dim=-1)


def _mark_sizes(inputs: Tensor) -> None:
    """Let one compiled encoder take any number of inputs and any length of texts: both differ from batch to batch."""
    for dim in (0, 1) if inputs.ndim == 2 else (0,):
        torch._dynamo.maybe_mark_dynamic(inputs, dim)


def _freeze_first_layers(encoder: Encoder, num_trained: int | None) -> None:
    _, *layers, last = encoder.layers()
    if type(num_trained) is not int or not 1 <= num_trained <= len(layers):
        raise ValueError(
            f"num_trained_layers={'null' if num_trained is None else num_trained}: train=last_n trains 1 to "
            f"{len(layers)} of the layers of {type(encoder).__name__}; give their number"
        )
    trained = {name for layer in (*layers[-num_trained:], last) for name in layer}
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name in trained)


def _evaluate_frozen(module: nn.Module) -> None:
    """Put modules without trained parameters in evaluation mode.

    A module without parameters, such as dropout, is trained as long as the one that it is part of.
    """
    parameters = list(module.parameters())
    if not parameters:
        return
    if not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _evaluate_frozen(child)
