"""Low-rank adapters (LoRA) beside the linear layers of an encoder, through peft: any encoder's, whatever its vendor.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. The weights of the encoder stay as they are; each adapted layer adds
`alpha / rank * B A x`, where B is 0 at first. Merged, the encoder is one of its vendor again, with the same output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mim_lightning.encoders.interface import Encoder

NAME = "default"  # of the adapter, in names of tensors
BASE, ADAPTERS = ".base_layer", (".lora_A.", ".lora_B.")
FUSED_BIAS = "qkv_bias_separate"  # of timm's attention with a bias of its own: False calls no linear layer


@dataclass(frozen=True)
class LoraSettings:
    """Which adapters a tower trains.

    Args:
        rank: of the matrices B (out, rank) and A (rank, in).
        alpha: their product is scaled by `alpha / rank`.
        dropout: of the input of A.
        target_modules: names of the layers that get adapters, or ends of names such as "qkv"; None: every linear layer
            of the encoder's layers (of a transformer those of attention and MLP), not of what comes before or behind.

    Raises:
        ValueError: a number out of its range.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"lora.rank={self.rank}: give a whole number above 0")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha={self.alpha}: give a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout={self.dropout}: give a number from 0 to below 1")
        if isinstance(self.target_modules, str) or (self.target_modules is not None and not len(self.target_modules)):
            raise ValueError(f"lora.target_modules={self.target_modules}: give a list of names, or null")


def add_adapters(encoder: Encoder, settings: LoraSettings) -> None:
    """Freeze an encoder and add trainable adapters to it, in place.

    Raises:
        ValueError: peft is not installed, or no layer has one of the names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("train=lora: install the extra: pip install 'mim-lightning[lora]'") from error

    names = _find_targets(encoder, settings.target_modules)
    encoder.requires_grad_(False)
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names, bias="none"
    )
    was_training = [(module, module.training) for module in encoder.modules()]
    inject_adapter_in_model(config, encoder, NAME)
    for module, mode in was_training:
        module.training = mode


def merge_adapters(encoder: Encoder) -> None:
    """Add what the adapters learned to the weights, and remove the adapters, in place; the output stays the same."""
    from peft.tuners.lora import LoraLayer

    layers: list[tuple[str, Any]] = [
        (name, part) for name, part in encoder.named_modules() if isinstance(part, LoraLayer)
    ]
    for name, module in layers:
        module.merge()
        _replace(encoder, name, module.get_base_layer())
    for name, module in list(encoder.named_modules()):
        if isinstance(module, LinearAttention):
            _replace(encoder, name, module.to_multihead())


def plain_names(name: str) -> tuple[str, ...]:
    """Return the names that a tensor of an encoder with adapters may have without them; none of an adapter itself."""
    if any(part in name for part in ADAPTERS):
        return ()
    plain = name.replace(BASE, "")
    return plain, plain.replace(".in_proj.", ".in_proj_")


class LinearAttention(nn.Module):
    """`nn.MultiheadAttention` by two linear layers, which can have adapters: that of torch reads their weights alone.

    peft 0.21 adds the adapters to its weights and subtracts them again at every call: frozen weights drift by rounding,
    the adapter of its last layer counts twice, and dropout is left out.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.width, self.num_heads, self.batch_first = attention.embed_dim, attention.num_heads, attention.batch_first
        self.dropout = attention.dropout
        self.in_proj = nn.Linear(self.width, 3 * self.width, bias=attention.in_proj_bias is not None, device="meta")
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = nn.Linear(self.width, self.width, bias=attention.out_proj.bias is not None, device="meta")
        self.out_proj.weight, self.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        assert key is value and key_padding_mask is None and not options.get("is_causal"), "as OpenCLIP calls it"
        projected = self.in_proj(query)
        others = projected if key is query else self.in_proj(key)
        parts = projected[..., : self.width], *others[..., self.width :].chunk(2, dim=-1)
        if not self.batch_first:
            parts = tuple(part.transpose(0, 1) for part in parts)
        queries, keys, values = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if attn_mask is not None:
            if attn_mask.ndim == 3:  # (n * heads, L, S)
                attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
            # True means the opposite there
            attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(queries.dtype)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask, dropout).transpose(1, 2).flatten(2)
        return self.out_proj(mixed if self.batch_first else mixed.transpose(0, 1)), None

    def to_multihead(self) -> nn.MultiheadAttention:
        """Return torch's module with the same weights."""
        made: Any = nn.MultiheadAttention(
            *(self.width, self.num_heads, self.dropout),
            bias=self.in_proj.bias is not None,
            batch_first=self.batch_first,
            device="meta",
        )
        made.in_proj_weight, made.in_proj_bias = self.in_proj.weight, self.in_proj.bias
        made.out_proj.weight, made.out_proj.bias = self.out_proj.weight, self.out_proj.bias
        return made.train(self.training)


def _find_targets(encoder: Encoder, wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the layers that get adapters, all of which the encoder calls.

    torch's attention is replaced, in place, where it is to have adapters.
    """
    _, *layers, _ = encoder.layers()
    in_layers = tuple(name for layer in layers for name in layer)

    def is_wanted(name: str) -> bool:
        if wanted is not None:
            return any(_ends_with(name, target) for target in wanted)
        start = name.removesuffix(".in_proj").removesuffix(".out_proj")
        return any(parameter.startswith(f"{start}.") for parameter in in_layers)

    for name, module in list(encoder.named_modules()):
        is_usual = isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim and module.bias_k is None
        if is_usual and any(is_wanted(f"{name}.{part}") for part in ("in_proj", "out_proj")):
            _replace(encoder, name, LinearAttention(module).train(module.training))
    kinds = (nn.Linear,) if wanted is None else (nn.Linear, nn.Conv2d)
    names = [name for name, module in encoder.named_modules() if isinstance(module, kinds) and is_wanted(name)]
    for name in names:
        owner = encoder.get_submodule(name.rpartition(".")[0])
        if hasattr(owner, FUSED_BIAS):
            setattr(owner, FUSED_BIAS, True)
    called = called_modules(encoder)
    names = [name for name in names if name in called]
    if wanted is None and not names:
        raise ValueError(
            f"train=lora: no linear layers in the layers of {type(encoder).__name__}; give train=last_n, or names of "
            "its convolutions with lora.target_modules"
        )
    for target in wanted or ():
        if not any(_ends_with(name, target) for name in names):
            known = sorted({name.rpartition(".")[2] for name in called})
            raise ValueError(f"lora.target_modules: no layer that is called ends with '{target}'; there are {known}")
    return names


def _ends_with(name: str, target: str) -> bool:
    """Return whether a layer, or the module that it is part of, has this name or end of a name."""
    return any(f".{found}".endswith(f".{target}") for found in (name, name.rpartition(".")[0]))


def called_modules(encoder: Encoder) -> set[str]:
    """Return the names of the modules that embedding an input calls: some only lend their weights to others."""
    called: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name)) for name, module in encoder.named_modules()
    ]
    encoder.embed_sample()
    for hook in hooks:
        hook.remove()
    return called


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, child = name.rpartition(".")
    setattr(root.get_submodule(owner), child, module)
