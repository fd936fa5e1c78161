"""Parameter groups and schedules, on numbers that can be written down."""

from pathlib import Path

import pytest
import torch
from timm.optim import param_groups_weight_decay
from transformers import AutoModel, MPNetConfig, Trainer

from mim_lightning.encoders.hf_text import HfText
from mim_lightning.encoders.timm_image import TimmImage
from mim_lightning.lit.module import MatchModule
from mim_lightning.lit.optim import (
    began_with_listed_decayed,
    parameter_groups,
    warmup_constant,
    warmup_cosine,
    warmup_stable_decay,
)
from mim_lightning.losses.contrastive import info_nce
from mim_lightning.losses.objective import Objective, Pair
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from tests.encoders.test_hf_text import save_tokenizer
from tests.model.test_matcher import image_tower, text_tower


def parts() -> tuple[Matcher, Objective]:
    matcher = Matcher(
        {"query_image": image_tower(), "product_text": text_tower()}, {"product_image": "query_image"}, {}
    )
    return matcher, Objective({"a": Pair("query_image", "product_text")}, info_nce, matcher.names)


def rates(lr_scales: dict[str, float]) -> dict[str, tuple[float, float]]:
    matcher, objective = parts()
    groups = parameter_groups(matcher, objective, lr=1.0, weight_decay=0.1, lr_scales=lr_scales)
    of = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    named = [*matcher.named_parameters(), *objective.named_parameters()]
    assert len(of) == len(named)
    return {name: of[id(p)] for name, p in named}


def test_biases_norms_and_scale_are_not_decayed() -> None:
    for name, (_, decay) in rates({}).items():
        flat = name.endswith(("bias", "norm.weight")) or "log_scales" in name or "norm" in name
        assert decay == 0.0 if flat else True
    assert rates({})["towers.query_image.projection.weight"] == (1.0, 0.1)


def test_the_longest_prefix_decides_the_rate() -> None:
    found = rates({"encoder": 0.1, "towers.product_text": 0.5, "towers.product_text.encoder.words": 0.0})
    assert found["towers.query_image.projection.weight"][0] == 1.0
    assert found["towers.product_text.projection.weight"][0] == 0.5
    assert found["towers.product_text.encoder.words.weight"][0] == 0.0
    assert found["towers.product_text.encoder.norm.weight"][0] == 0.1
    assert found["towers.query_image.encoder.network.0.0.weight"][0] == 0.1


def test_a_prefix_may_come_in_parts() -> None:
    assert rates({"towers": {"product_text": {"encoder": 0.5}}}) == rates({"towers.product_text.encoder": 0.5})


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), "abc", None, True])
def test_an_invalid_rate_is_refused(wrong) -> None:
    matcher, objective = parts()
    with pytest.raises(ValueError, match=rf"optim\.lr={wrong}: give a number"):
        parameter_groups(matcher, objective, wrong, 0.0, {})
    with pytest.raises(ValueError, match=rf"optim\.weight_decay={wrong}: give a number"):
        parameter_groups(matcher, objective, 1.0, wrong, {})
    with pytest.raises(ValueError, match=rf"optim\.lr_scales\.encoder={wrong}: give a number"):
        parameter_groups(matcher, objective, 1.0, 0.0, {"encoder": wrong})


def test_a_prefix_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim\.lr_scales: no parameter starts with 'towers.query_imgae'"):
        rates({"towers.query_imgae": 0.1})


def test_frozen_parameters_are_left_to_themselves() -> None:
    matcher, objective = parts()
    matcher.tower("query_image").requires_grad_(False)
    groups = parameter_groups(matcher, objective, 1.0, 0.0, {})
    assert all(p.requires_grad for group in groups for p in group["params"])


def run(schedule, steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, steps, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_rises_and_falls() -> None:
    found = run(warmup_cosine, 12, warmup_fraction=1 / 6)
    assert found[:3] == [0.5, 1.0, 1.0]
    assert found[7] == pytest.approx(0.5)
    assert found[2:] == sorted(found[2:], reverse=True) and found[-1] > 0


def test_constant_rises_and_stays() -> None:
    assert run(warmup_constant, 6, warmup_fraction=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def matcher_of(encoder) -> tuple[Matcher, Objective]:
    matcher = Matcher({"query_image": Tower(encoder, 8)}, {"product_image": "query_image"}, {})
    return matcher, Objective({"a": Pair("query_image", "product_image")}, info_nce, matcher.names)


def decayed(encoder) -> set[str]:
    """Return the encoder's parameters that are decayed, by the name that its network gives them."""
    groups = parameter_groups(*matcher_of(encoder), lr=1.0, weight_decay=0.1, lr_scales={})
    found = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    return {name for name, p in encoder.network.named_parameters() if id(p) in found}


@pytest.mark.parametrize(
    ("name", "arguments", "spared"),
    [
        ("test_vit", {}, "pos_embed"),
        ("beit_base_patch16_224", {"depth": 1}, "blocks.0.attn.relative_position_bias_table"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "embed_dim": 12, "num_heads": (1, 2)}, "bias_table"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "cls_token"),
        ("hiera_tiny_224", {"stages": (1, 1, 1, 1)}, "pos_embed"),
        ("mobilenetv2_050", {}, ""),
    ],
)
def test_weight_decay_groups_agree_with_timm(name: str, arguments: dict, spared: str) -> None:
    encoder = TimmImage(name, model_kwargs=arguments)
    network = encoder.network
    listed = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    groups = param_groups_weight_decay(network, 0.1, no_weight_decay_list=listed)
    expected = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed(encoder) == {name for name, p in network.named_parameters() if id(p) in expected}
    if spared:
        matrices = [name for name, p in network.named_parameters() if p.ndim > 1 and spared in name]
        assert matrices and not decayed(encoder) & set(matrices)


def test_weight_decay_groups_agree_with_transformers(tmp_path: Path) -> None:
    config = MPNetConfig(vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    encoder = HfText(str(tmp_path))
    names = Trainer.get_decay_parameter_names(None, encoder.network)  # type: ignore[arg-type]
    matrices = {name for name, p in encoder.network.named_parameters() if p.ndim > 1}
    assert decayed(encoder) == set(names) & matrices
    assert "encoder.relative_attention_bias.weight" in matrices - decayed(encoder)


def test_an_older_run_resumes_with_its_parameter_groups() -> None:
    matcher, objective = matcher_of(TimmImage("test_vit"))
    options = {"lr": 1.0, "weight_decay": 0.1, "lr_scales": {}}
    before = torch.optim.AdamW(parameter_groups(matcher, objective, **options, spares_listed=False)).state_dict()
    now = torch.optim.AdamW(parameter_groups(matcher, objective, **options)).state_dict()
    assert began_with_listed_decayed(matcher, objective, before, **options)
    assert not began_with_listed_decayed(matcher, objective, now, **options)
    module = MatchModule(matcher, objective, torch.optim.AdamW, **options)
    module.on_load_checkpoint({"optimizer_states": [before]})
    assert not module._spares_listed
    assert not began_with_listed_decayed(
        *parts(), torch.optim.AdamW(parameter_groups(*parts(), **options)).state_dict(), **options
    )


def test_the_rate_falls_with_each_layer_from_the_output() -> None:
    encoder = TimmImage("test_vit", model_kwargs={"depth": 3})
    matcher, objective = matcher_of(encoder)
    options = {"lr": 2.0, "weight_decay": 0.1, "lr_scales": {"encoder": 0.5}}
    groups = parameter_groups(matcher, objective, **options, layer_decay=0.5)
    of = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = {name: of[id(p)] for name, p in (*matcher.named_parameters(), *objective.named_parameters())}
    network = "towers.query_image.encoder.network"
    assert found["towers.query_image.projection.weight"] == 2.0 and found[f"{network}.norm.weight"] == 1.0
    blocks = [{rate for name, rate in found.items() if name.startswith(f"{network}.blocks.{idx}.")} for idx in range(3)]
    assert blocks == [{0.125}, {0.25}, {0.5}]
    assert found[f"{network}.pos_embed"] == found[f"{network}.patch_embed.proj.weight"] == 0.0625
    assert len(of) == len(found)  # every parameter is in one group
    for wrong in (0, -1.0, 1.5, "abc", True):
        with pytest.raises(ValueError, match=rf"optim\.layer_decay={wrong}: give a number above 0"):
            parameter_groups(matcher, objective, **options, layer_decay=wrong)  # type: ignore[arg-type]


def test_positions_of_openclip_are_not_decayed_and_adapters_are(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra: pip install 'mim-lightning[lora]'")
    from tests.model.test_adapters import clip_text

    encoder = clip_text(tmp_path)
    names = {name for name, p in encoder.network.named_parameters() if p.ndim > 1}
    assert names - decayed(encoder) == {"positional_embedding"}
    adapted = clip_text(tmp_path)
    Tower(adapted, 8, train="lora")
    matrices = {name for name, p in adapted.network.named_parameters() if ".lora_" in name}
    assert matrices and decayed(adapted) == matrices


def test_wsd_rises_stays_and_falls() -> None:
    linear = run(warmup_stable_decay, 20, warmup_fraction=0.1, decay_fraction=0.25, decay="linear")
    assert linear == pytest.approx([0.5, *[1.0] * 14, 1.0, 0.8, 0.6, 0.4, 0.2])
    root = run(warmup_stable_decay, 20, warmup_fraction=0.1, decay_fraction=0.25, final_lr_fraction=0.5)
    assert root[:16] == linear[:16]
    assert root[16:] == pytest.approx([0.5 + 0.5 * (1 - (step / 5) ** 0.5) for step in range(1, 5)])
    assert run(warmup_stable_decay, 40, warmup_fraction=0.05, decay_fraction=0.0)[2:] == [1.0] * 38


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (warmup_cosine, {"warmup_fraction": 2}, r"schedule\.warmup_fraction=2: give a number from 0 to 1"),
        (warmup_constant, {"warmup_fraction": -0.1}, r"schedule\.warmup_fraction=-0\.1"),
        (warmup_stable_decay, {"decay": "cosine"}, r"schedule\.decay=cosine: give linear or 1-sqrt"),
        (warmup_stable_decay, {"decay_fraction": 0.98}, r"schedule\.decay_fraction=0\.98: with warmup_fraction=0\.05"),
    ],
)
def test_a_schedule_that_cannot_be_is_named(schedule, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(schedule, 4, **options)
