"""Encoders of the ready configs, at tiny sizes: trained, evaluated, exported, indexed and searched, offline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from torch import nn
from transformers import AutoModel, Gemma3TextConfig, Qwen3Config, SiglipConfig, SiglipModel

from mim_lightning import load
from mim_lightning.build_index import build_index
from mim_lightning.config import compose
from mim_lightning.evaluate import evaluate
from mim_lightning.export import export
from mim_lightning.run import identify
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import open_searcher
from mim_lightning.train import train
from tests.encoders.test_hf_text import SIZES, WORDS, save_dense, save_tokenizer
from tests.shop import small

TINY_TEXT = {"width": 32, "heads": 2, "layers": 1}
DECODER = {"vocab_size": len(WORDS), "head_dim": 8, "num_key_value_heads": 1, "max_position_embeddings": 128, **SIZES}


SHAPE = {"depth": 1, "embed_dim": 64, "num_heads": 2}


@register_model
def siglip_for_tests(**options: Any) -> nn.Module:
    return timm.create_model("vit_base_patch16_siglip_224", img_size=64, **SHAPE, **options)


@register_model
def pe_core_for_tests(**options: Any) -> nn.Module:
    return timm.create_model("vit_pe_core_tiny_patch16_384", img_size=64, **SHAPE, **options)


@register_model
def fastvit_for_tests(**options: Any) -> nn.Module:
    return timm.create_model("fastvit_mci0", layers=(1, 1, 1, 1), embed_dims=(16, 32, 64, 128), **options)


# the image network of the ready config -> a small one of its architecture
SMALLER = {
    "vit_base_patch16_siglip_224": "siglip_for_tests",
    "vit_pe_core_base_patch16_224": "pe_core_for_tests",
    "fastvit_mci2": "fastvit_for_tests",
}


def write_pair(name: str, folder: Path) -> str:
    """Write a tiny random model of an OpenCLIP architecture, and return its name."""
    open_clip = pytest.importorskip("open_clip", reason="needs the extra: pip install 'mim-lightning[clip]'")
    model = open_clip.get_model_config(name)
    smaller = SMALLER[model["vision_cfg"]["timm_model_name"]]
    model["vision_cfg"] |= {"timm_model_name": smaller, "image_size": 64}
    model["text_cfg"] |= TINY_TEXT
    model["embed_dim"] = 64 if model["vision_cfg"]["timm_proj"] == "none" else 32
    folder.mkdir()
    if "hf_tokenizer_name" in model["text_cfg"]:
        model["text_cfg"]["vocab_size"] = len(WORDS)
        save_tokenizer(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.save(open_clip.create_model(f"local-dir:{folder}").state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


def pair(config: str, name: str) -> Callable[[Path], list[str]]:
    def options(folder: Path) -> list[str]:
        given = write_pair(name, folder / "model")
        return [f"encoder={config}", f"encoder.image.name={given}", f"encoder.text.name={given}"]

    return options


def write_text(config: Any, folder: Path) -> str:
    model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    save_tokenizer(folder, model_max_length=None)
    return str(folder)


def dinov3(folder: Path) -> list[str]:
    shape = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    network = timm.create_model("vit_small_patch16_dinov3", num_classes=0, **shape)
    save_file(network.state_dict(), folder / "dinov3.safetensors")
    image = ["encoder/image=dinov3", f"encoder.image.pretrained={folder}/dinov3.safetensors"]
    return [*image, "encoder.image.image_size=32", f"+encoder.image.model_kwargs={shape}".replace("'", "")]


def dinov3_and_qwen3_embedding(folder: Path) -> list[str]:
    name = write_text(Qwen3Config(**DECODER), folder / "text")
    return [*dinov3(folder), "encoder/text=qwen3_embedding", f"encoder.text.name={name}", "embed_dim=16"]


def dinov3_and_embeddinggemma(folder: Path) -> list[str]:
    name = write_text(Gemma3TextConfig(**DECODER, sliding_window=16), folder / "text")
    save_dense(folder / "text", SIZES["hidden_size"])
    return [*dinov3(folder), "encoder/text=embeddinggemma", f"encoder.text.name={name}", "embed_dim=16"]


def text_half_of_a_hugging_face_pair(folder: Path) -> list[str]:
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 24, "projection_size": 16, **SIZES}
    config = SiglipConfig(text_config=text, vision_config={**SIZES, "image_size": 8, "patch_size": 4})
    SiglipModel(config).save_pretrained(folder / "text")
    save_tokenizer(folder / "text", model_max_length=None)
    text_options = ["encoder/text=bert_base", f"encoder.text.name={folder}/text", "encoder.text.pooling=pooler"]
    text_options += ["encoder.text.max_length=24"]
    return [*text_options, "encoder.image.image_size=32", "encoder.image.width=64", "embed_dim=16"]


ENCODERS = {
    "dinov3, qwen3_embedding": dinov3_and_qwen3_embedding,
    "dinov3, embeddinggemma": dinov3_and_embeddinggemma,
    "siglip2_b16": pair("siglip2_b16", "ViT-B-16-SigLIP2"),
    "pe_core_b16": pair("pe_core_b16", "PE-Core-B-16"),
    "mobileclip2_s2": pair("mobileclip2_s2", "MobileCLIP2-S2"),
    "text half of a Hugging Face pair": text_half_of_a_hugging_face_pair,
}
QUICK = "dinov3, qwen3_embedding"


@pytest.mark.parametrize(
    "name", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS]
)
def test_an_encoder_goes_through_every_entry_point(name: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.manual_seed(0)
    encoder = ENCODERS[name](shop)
    plain = [word for word in small(shop) if not word.startswith(("encoder.", "embed_dim"))]
    config = compose("train", [*plain, *encoder, "model=4tower", "trainer.max_epochs=1", "optim.lr=1e-3"])
    train(config)
    run = identify(config)[0]
    results = run.read_results()
    assert results is not None
    again = evaluate(compose("evaluate", [f"checkpoint={run.best_checkpoint}", "trainer=cpu"]))
    assert again == {key: results[key] for key in again} and "val/composed_to_product/hit@1" in again
    folder = export(compose("export", [f"checkpoint={run.best_checkpoint}", f"output={shop}/export", "device=cpu"]))
    build_index(compose("build_index", [f"checkpoint={run.best_checkpoint}", f"output={shop}/index", "trainer=cpu"]))
    photo = str(shop / "shop" / "street3-0.jpg")
    vector = load(run.best_checkpoint).embed_query([photo], ["yellow"])[0]
    np.testing.assert_allclose(load(folder).embed_query([photo], ["yellow"])[0], vector, atol=1e-6)
    searcher = open_searcher(f"{shop}/index")
    hits = searcher.search(SearchQuery(images=(photo,), text="yellow", num_hits=3)).hits
    products = np.concatenate([searcher.index.vectors_of(f"{number:03d}") for number in range(7)])
    assert [hit.product_id for hit in hits] == [f"{row:03d}" for row in np.argsort(-(products @ vector))[:3]]
