"""Adapters beside the layers of every vendor's encoders: they alone are trained, and merged they change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mim_lightning import load
from mim_lightning.config import build_matcher, build_objective
from mim_lightning.encoders.hf_image_text import HfImageText
from mim_lightning.encoders.hf_text import HfText
from mim_lightning.encoders.interface import Encoder
from mim_lightning.encoders.timm_image import TimmImage
from mim_lightning.encoders.tiny import TinyImage, TinyText
from mim_lightning.model.adapters import LinearAttention, LoraSettings
from mim_lightning.model.checkpoint import load_matcher, warm_start
from mim_lightning.model.fingerprint import fingerprint
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from mim_lightning.types import ImageSpec, TextSpec, TowerInput
from tests.contracts.encoder import TEXTS, inputs_of, random_images
from tests.encoders.vision_language import write_vision_language_model
from tests.inference.models import config_of, export_to, write_bert, write_checkpoint

pytest.importorskip("peft", reason="needs the extra: pip install 'mim-lightning[lora]'")

SETTINGS = LoraSettings(rank=3, alpha=6.0, dropout=0.2)


def tiny_text(folder: Path) -> Encoder:
    return TinyText(8, 50, 32, 2)


def timm_vit(folder: Path) -> Encoder:
    return TimmImage("test_vit", image_size=32, model_kwargs={"depth": 2})


def timm_beit(folder: Path) -> Encoder:
    """Attention whose bias is not that of its linear layer, which is therefore not called."""
    return TimmImage("beit_base_patch16_224", image_size=32, model_kwargs={"depth": 2, "embed_dim": 32, "num_heads": 2})


def bert(folder: Path) -> Encoder:
    return HfText(write_bert(folder)["name"])


def clip(half: str, folder: Path) -> Encoder:
    encoders = pytest.importorskip("mim_lightning.encoders.open_clip", exc_type=ValueError)
    text = {"context_length": 16, "width": 32, "heads": 2, "layers": 2, "vocab_size": 49408}
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    model = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    return getattr(encoders, half)(f"local-dir:{folder}")


def clip_image(folder: Path) -> Encoder:
    return clip("OpenClipImage", folder)


def clip_text(folder: Path) -> Encoder:
    return clip("OpenClipText", folder)


def vision_language(folder: Path) -> Encoder:
    config = write_vision_language_model(folder)
    return HfImageText(**{key: value for key, value in config.items() if key != "_target_"})


def sample_of(encoder: Encoder) -> TowerInput:
    """Return four inputs, of an encoder of image and text together: rows that have both, or one."""
    if not isinstance(encoder.spec, tuple):
        return inputs_of(encoder)
    images, texts = encoder.spec
    assert isinstance(images, ImageSpec) and isinstance(texts, TextSpec)
    present = torch.tensor([[True, True], [True, True], [True, False], [False, True]])
    return random_images(4, images.size), texts.tokenize(TEXTS), present


# layers of attention and MLP: of each of a vision transformer's blocks four, of BERT's six, of Qwen's seven
BUILDERS = [(tiny_text, 8), (timm_vit, 8), (timm_beit, 8), (bert, 6), (clip_image, 8), (clip_text, 8)]
BUILDERS += [(vision_language, 14)]


@pytest.mark.parametrize(("build", "num_layers"), BUILDERS)
def test_only_adapters_learn_and_merged_they_change_nothing(build, num_layers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build(tmp_path).double()
    inputs = sample_of(encoder)
    with torch.no_grad():
        before, names = encoder.eval()(inputs), {*encoder.state_dict()}
    tower = Tower(encoder, 8, train="lora", lora=SETTINGS).double()
    torch.testing.assert_close(tower.encoder.eval()(inputs), before, rtol=1e-9, atol=1e-9)  # B is zero
    first = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in tower.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # at the first step A has no gradient
        optimizer.zero_grad()
        tower.train()(inputs)[:, 0].sum().backward()
        assert all(p.grad is not None for p in tower.parameters() if p.requires_grad)  # else DDP would wait
        optimizer.step()
    changed = {name for name, tensor in tower.state_dict().items() if not torch.equal(tensor, first[name])}
    assert changed == {"projection.weight", *(name for name in first if ".lora_" in name)}
    assert len(changed) == 1 + 2 * num_layers
    with torch.no_grad():
        learned = tower.eval()(inputs)
        tower.merge_adapters()
        merged = tower(inputs)
        bare = nn.functional.normalize(before @ tower.projection.weight.T)
    assert not torch.allclose(learned, bare, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(merged, learned, rtol=1e-9, atol=1e-9)
    assert {*tower.encoder.state_dict()} == names


def test_the_tuned_layers_can_be_named() -> None:
    def adapted(*targets: str) -> set[str]:
        encoder = TimmImage("test_vit", image_size=32, model_kwargs={"depth": 1})
        tower = Tower(encoder, 8, train="lora", lora=LoraSettings(target_modules=targets))
        return {name.split(".lora_A.")[0] for name, _ in tower.encoder.named_parameters() if ".lora_A." in name}

    assert adapted("qkv", "attn.proj") == {"network.blocks.0.attn.qkv", "network.blocks.0.attn.proj"}
    assert adapted("patch_embed.proj") == {"network.patch_embed.proj"}  # a convolution, before the layers
    with pytest.raises(ValueError, match=r"lora\.target_modules: no layer .* ends with 'query'; there are .*'fc1'"):
        adapted("query")


def test_attention_by_linear_layers_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    for batch_first in (True, False):
        attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, dtype=torch.float64).eval()
        split = LinearAttention(attention).eval()
        words, others = (torch.randn(3, length, 16, dtype=torch.float64, generator=generator) for length in (5, 7))
        if not batch_first:
            words, others = words.transpose(0, 1), others.transpose(0, 1)
        causal = torch.full((5, 5), float("-inf"), dtype=torch.float64).triu(1)
        hidden = torch.rand(12, 5, 7, generator=generator) > 0.7
        hidden[..., 0] = False
        for key, mask in ((words, None), (words, causal), (words, causal < 0), (others, None), (others, hidden)):
            arguments = {"need_weights": False, "attn_mask": mask}
            expected, _ = attention(words, key, key, **arguments)
            torch.testing.assert_close(split(words, key, key, **arguments)[0], expected, rtol=1e-9, atol=1e-9)
        again = split.to_multihead()
        assert again.in_proj_weight is attention.in_proj_weight and not again.training
        torch.testing.assert_close(again(words, words, words)[0], attention(words, words, words)[0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lora.rank=0", r"lora\.rank=0: give a whole number"),
        ("model.lora.alpha=-1", r"lora\.alpha=-1: give"),
        ("model.lora.dropout=1", r"lora\.dropout=1: give"),
        ("model.lora.target_modules=[]", r"lora\.target_modules=\[\]: give"),
        ("+model.lora.ranks=8", r"no config key 'model.towers.query_image.lora.ranks'; did you mean 'rank'"),
        ("model.lora.rank=all", r"model\.towers\.query_image\.lora\.rank=all: give a whole number"),
    ],
)
def test_what_adapters_cannot_be_is_named(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_matcher(config_of(tmp_path, "model=2tower", override))


def test_a_network_without_linear_layers_says_what_else_there_is() -> None:
    with pytest.raises(ValueError, match="no linear layers in the layers of TinyImage; give train=last_n"):
        Tower(TinyImage(32, 64), 8, train="lora")


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ValueError, match=r"train=lora: install the extra: pip install 'mim-lightning\[lora\]'"):
        Tower(TinyText(8, 50, 32, 1), 8, train="lora")


LORA = ("model=4tower", "model.towers.product_text.train=lora", "model.lora.rank=2")


def learn(matcher: Matcher) -> None:
    """Give adapters weights as if they had learned."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in matcher.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)


@pytest.fixture()
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import tests.inference.models as models

    build = models.build_matcher
    monkeypatch.setattr(models, "build_matcher", lambda config: learned(build(config)))
    return write_checkpoint(tmp_path, *LORA)[0]


def learned(matcher: Matcher) -> Matcher:
    learn(matcher)
    return matcher


@torch.no_grad()
def embed(matcher: Matcher) -> np.ndarray:
    tower = matcher.tower("product_text").eval()
    return tower(tower.encoder.spec.tokenize(["red box", "blue"])).numpy()  # type: ignore[union-attr]


def test_a_checkpoint_is_loaded_and_exported_with_merged_adapters(checkpoint: Path, tmp_path: Path) -> None:
    trained = load_matcher(checkpoint)
    expected, name = embed(trained.matcher), trained.fingerprint
    assert trained.matcher.tower("product_text").train_mode == "lora"
    assert not np.allclose(expected, embed(build_matcher(config_of(tmp_path, *LORA))), atol=1e-3)
    exported = load(export_to(tmp_path / "a", checkpoint), device="cpu")
    for model in (load(checkpoint, device="cpu"), exported):
        assert model.fingerprint == name and model.config["model"]["towers"]["product_text"]["train"] == "full"
        np.testing.assert_allclose(model.embed_texts(["red box", "blue"]), expected, atol=1e-6)
    assert load(checkpoint, "cpu", precision="int8").fingerprint == f"{name}+int8"
    content = torch.load(checkpoint, weights_only=True)
    adapter = next(key for key in content["state_dict"] if ".lora_B." in key)
    content["state_dict"][adapter] += 1e-3
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match="it was changed"):
        load_matcher(checkpoint)


def test_towers_with_adapters_start_from_whole_ones_and_the_other_way(checkpoint: Path, tmp_path: Path) -> None:
    def build(*overrides: str) -> tuple[Matcher, object]:
        torch.manual_seed(9)
        config = config_of(tmp_path, *overrides)
        matcher = build_matcher(config)
        return matcher, build_objective(config, matcher.names)

    trained = load_matcher(checkpoint)
    expected = embed(trained.matcher)
    same, objective = build(*LORA)
    report = warm_start(same, objective, checkpoint)
    assert not report.fresh and not report.unused and fingerprint(same) == trained.fingerprint
    whole, objective = build("model=3tower")
    report = warm_start(whole, objective, checkpoint)
    assert not report.fresh and not report.unused
    np.testing.assert_allclose(embed(whole), expected, atol=1e-6)
    for settings in (["model.lora.rank=4"], ["model.lora.rank=2", "model.lora.alpha=64"]):
        other, objective = build("model=4tower", "model.tied.query_text=null", *LORA[1:2], *settings)
        report = warm_start(other, objective, checkpoint)
        assert all(".lora_" in name for name in report.fresh) and report.fresh and not report.unused
        np.testing.assert_allclose(embed(other), expected, atol=1e-6)
    stronger, _ = build(*LORA, "model.lora.alpha=64")
    stronger.load_state_dict(same.state_dict())
    assert fingerprint(stronger) != trained.fingerprint  # equal tensors, other embeddings
    plain, _ = write_checkpoint(tmp_path / "plain", "model=3tower", seed=3)
    adapted, objective = build(*LORA)
    report = warm_start(adapted, objective, plain)
    assert all(".lora_" in name for name in report.fresh) and not report.unused
    np.testing.assert_allclose(embed(adapted), embed(load_matcher(plain).matcher), atol=1e-6)
