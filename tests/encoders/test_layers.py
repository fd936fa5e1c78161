"""The layers of vendors' networks, from their trees of modules alone."""

import pytest
import timm
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    Qwen3Config,
    SiglipTextConfig,
    SiglipTextModel,
)

from mim_lightning.encoders.layers import group_by_layer

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 500,
}
DISTIL = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 500}


def groups_of(network: nn.Module) -> list[list[str]]:
    groups = group_by_layer(network)
    assert sorted(name for group in groups for name in group) == sorted(dict(network.named_parameters()))
    return groups


@pytest.mark.parametrize(
    ("name", "layers", "before", "behind"),
    [
        ("test_vit", "blocks", "cls_token pos_embed patch_embed.proj.weight", "norm.weight"),
        ("mobilenetv2_050", "blocks", "conv_stem.weight bn1.weight", "conv_head.weight bn2.bias"),
        ("test_convnext", "stages", "stem.0.weight", "head.norm.weight"),
        ("resnet18", "layer", "conv1.weight bn1.bias", ""),
        ("vit_small_patch16_dinov3", "blocks", "cls_token reg_token patch_embed.proj.weight", "norm.weight"),
        ("vit_base_patch16_siglip_224", "blocks", "pos_embed", "norm.weight attn_pool.latent"),
    ],
)
def test_the_layers_of_timm(name: str, layers: str, before: str, behind: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    first, *found, last = groups_of(network)
    assert {*before.split()} <= {*first} and {*behind.split()} <= {*last} and bool(behind) == bool(last)
    start = 1 if layers == "layer" else 0
    prefixes = [f"{layers}{'' if start else '.'}{idx + start}." for idx in range(len(found))]
    assert len(found) > 3
    assert all(all(part.startswith(prefix) for part in group) for prefix, group in zip(prefixes, found, strict=True))


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**SIZES),
        ModernBertConfig(**SIZES, pad_token_id=0),
        DistilBertConfig(**DISTIL),
        Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8),
        SiglipTextConfig(**SIZES),
    ],
    ids=lambda config: config.model_type,
)
def test_the_layers_of_transformers(config) -> None:
    first, *layers, last = groups_of(
        SiglipTextModel(config) if isinstance(config, SiglipTextConfig) else AutoModel.from_config(config)
    )
    assert len(layers) == 3 and all("embed" in name for name in first)
    assert all(f".{idx}." in f".{name}" for idx, layer in enumerate(layers) for name in layer)
    assert not any(".0." in name for name in last)


def test_a_network_without_a_list_of_layers_is_one() -> None:
    assert group_by_layer(nn.Linear(2, 2)) == [[], ["weight", "bias"], []]
