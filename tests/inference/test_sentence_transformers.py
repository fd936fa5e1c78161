"""Towers exported for sentence-transformers: what it embeds, and what it cannot express."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mim_lightning.encoders import HfText, TimmImage
from mim_lightning.inference import load
from mim_lightning.inference.model import LoadedModel
from mim_lightning.inference.sentence_transformers import _images
from mim_lightning.types import ImageSpec
from tests.encoders.test_hf_text import SIZES, WORDS, save_tokenizer
from tests.inference.models import export_to, write_checkpoint

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="needs the extra: pip install 'mim-lightning[sentence-transformers]'"
)
HF_TEXTS = ["red apple", "green shoes many many words " * 9, "Blue", "?"]
TIMM = {"_target_": "mim_lightning.encoders.TimmImage", "name": "test_vit", "pretrained": None}


def write_text_model(folder: Path, kind: str = "Bert") -> dict:
    """Write a tiny text model of transformers, and return the config of its encoder."""
    import transformers

    torch.manual_seed(1)
    more = {"CLIPText": {"eos_token_id": 3}, "Qwen3": {"num_key_value_heads": 2, "head_dim": 8}}.get(kind, {})
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(WORDS), max_position_embeddings=24, **more, **SIZES)
    head = "WithProjection" if kind == "CLIPText" else ""
    getattr(transformers, f"{kind}Model{head}")(config).save_pretrained(folder)
    save_tokenizer(folder)
    return {"_target_": "mim_lightning.encoders.HfText", "name": str(folder), "pretrained": True, "max_length": 12}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    """A model of two timm and a Hugging Face text encoder, tied, with a projection; and its folder."""
    folder = tmp_path_factory.mktemp("towers")
    text = write_text_model(folder / "bert") | {"prompts": {"query": "many ", "product": "a "}}
    image = TIMM | {"image_size": 64}
    encoders = {"query_image": image, "product_text": text, "query_text": text}
    checkpoint, _ = write_checkpoint(folder, "model=4tower", encoders=encoders)
    return load(checkpoint, device="cpu"), export_to(folder / "st", checkpoint, "format=sentence_transformers")


def test_vectors_are_those_of_load(models: tuple[LoadedModel, Path], pictures: list[Path]) -> None:
    model, folder = models
    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(loaded.encode_query(HF_TEXTS), model.embed_texts(HF_TEXTS, "query_text"), **close)
    np.testing.assert_allclose(loaded.encode_document(HF_TEXTS), model.embed_texts(HF_TEXTS, "product_text"), **close)
    found = loaded.encode(HF_TEXTS, task="product_text", prompt_name="product_text")
    np.testing.assert_allclose(found, model.embed_texts(HF_TEXTS, "product_text"), **close)
    crop = model.encoders["query_image"].spec
    assert crop.resize_mode == "shortest" and crop.crop_fraction < 1  # type: ignore[union-attr]
    upright = [ImageOps.exif_transpose(Image.open(path)) for path in pictures]  # which the library leaves to its user
    images = [image.convert("RGB").resize((80, 120)) for image in upright]
    vectors = model.embed_images(images)
    np.testing.assert_allclose(loaded.encode_query(images), vectors, **close)
    np.testing.assert_allclose(loaded.encode_document(images), model.embed_images(images, "product_image"), **close)
    odd = [image.resize((83, 101)) for image in images]  # the crop may lie a pixel aside
    assert (loaded.encode(odd) * model.embed_images(odd)).sum(1).min() > 0.99  # both sides have one tower: no task
    # the card's line for a query of both
    weights = model.fusions["query"].weights
    parts = {"query_image": vectors, "query_text": loaded.encode_query(HF_TEXTS)}
    total = sum(weights[name] * part for name, part in parts.items())
    fused = total / np.linalg.norm(total, axis=1, keepdims=True)
    np.testing.assert_allclose(fused, model.embed_query(images, HF_TEXTS), **close)
    card = (folder / "README.md").read_text()
    assert "library_name: sentence-transformers" in card and "query_text_vectors = model.encode_query(" in card
    assert f"v = {weights['query_image']:.9g} * query_image_vectors + " in card
    assert (folder / "fingerprint").read_text().strip() == model.fingerprint
    types = [part["type"] for part in json.loads((folder / "modules.json").read_text())]
    assert types == ["sentence_transformers.base.modules.router.Router"]
    with pytest.raises(ValueError, match=r"Could not determine route|task"):
        loaded.encode(HF_TEXTS)  # prompts differ by side
    with pytest.raises(ValueError, match=r"is for SentenceTransformer\(folder\); give the checkpoint"):
        load(folder)


@pytest.mark.parametrize("max_side", [512, None])
@pytest.mark.parametrize("fraction", [0.95, 0.888, 1])
def test_pictures_of_every_shape_are_compared(fraction: float, max_side: int | None) -> None:
    spec = ImageSpec((160, 160), crop_fraction=fraction)
    sizes = [image.size[::-1] for image in _images(spec, max_side)]
    assert any(max(size) < 160 for size in sizes) and any(min(size) > 2 * 160 for size in sizes)
    assert {round(height / width, 1) for height, width in sizes} >= {1, 0.5, 3}
    assert max(max(size) for size in sizes) <= (max_side or 640)
    for size in sizes:
        crop = int(fraction * (1 + 1e-9) * min(size))  # of the image processor, which rounds its margin down
        assert crop == round(fraction * min(size)) and not any((side - crop) % 2 for side in size)


@pytest.mark.parametrize(("kind", "pooling"), [("CLIPText", "projection"), ("Bert", "pooler"), ("Qwen3", "last")])
def test_every_pooling(tmp_path: Path, kind: str, pooling: str) -> None:
    encoder = write_text_model(tmp_path / "text", kind) | {"pooling": pooling}
    encoders = {"product_text": encoder, "query_text": encoder}
    checkpoint, _ = write_checkpoint(tmp_path, "model=4tower", encoders=encoders)
    folder = export_to(tmp_path / "st", checkpoint, "format=sentence_transformers", "towers=[query_text]")
    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    wanted = load(checkpoint, device="cpu").embed_texts(HF_TEXTS, "query_text")
    np.testing.assert_allclose(loaded.encode(HF_TEXTS), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(loaded.encode_query(HF_TEXTS), wanted, rtol=0, atol=1e-6)
    export_to(folder, checkpoint, "format=sentence_transformers", "towers=[product_text]")  # in the place of itself


def test_what_cannot_be_said_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    def message(*overrides: str, path: Path = checkpoint) -> str:
        with pytest.raises(ValueError) as caught:
            export_to(tmp_path / "st", path, *overrides)
        assert not (tmp_path / "st").exists()
        return str(caught.value)

    form = "format=sentence_transformers"
    assert message(form).startswith("tower 'product_text': TinyText is no network of transformers; HfText and TimmIm")
    assert message(form, "towers=[image]").startswith("towers=image: this model has no such tower; there are query_i")
    assert message(form, "towers=[]").startswith("towers=[]: give some of query_image")
    assert message("format=onnx") == "format=onnx: there are mim_lightning and sentence_transformers"
    assert message(form, "precision=int8").startswith("precision=int8: goes with format=mim_lightning")
    assert message(form, "device=cuda").startswith("device=cuda: goes with format=mim_lightning; towers for sentence_t")
    assert message(form, "data=grocery").startswith("data=grocery: goes with format=mim_lightning")
    assert message("towers=[query_image]").startswith("towers=['query_image']: goes with format=sentence_transformers")
    gated, _ = write_checkpoint(tmp_path / "gate", "model=4tower", "+model.fusions.query.kind=gate")
    assert "fusion 'query': kind=gate is no weighted sum, and no module of" in message(form, path=gated)
    assert "tower 'query_image': TinyImage is no" in message(form, "towers=[query_image]", path=gated)


def test_pictures_and_texts_that_transformers_prepares_otherwise(tmp_path: Path) -> None:
    import transformers

    encoder = TimmImage("test_vit")
    object.__setattr__(encoder.preprocessing.spec, "resize_mode", "border")
    with pytest.raises(ValueError, match=r"prepares images of 160 x 160 by resize_mode=border; there are squash"):
        encoder.write_hf(tmp_path)
    object.__setattr__(encoder.preprocessing.spec, "resize_mode", "squash_crop")
    object.__setattr__(encoder.preprocessing.spec, "crop_fraction", 0.98)
    with pytest.raises(ValueError, match=r"crops 163 to 160 pixels of height one pixel aside"):
        encoder.write_hf(tmp_path)
    config = transformers.SiglipTextConfig(vocab_size=len(WORDS), max_position_embeddings=24, **SIZES)
    transformers.SiglipTextModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="siglip_text_model is no model of transformers' AutoModel"):
        HfText(str(tmp_path), pooling="pooler").write_hf(tmp_path)
