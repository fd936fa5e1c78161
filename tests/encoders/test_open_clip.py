"""The OpenCLIP adapter, on a tiny CLIP and a tiny SigLIP-like pair saved in a folder."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.contracts.encoder import TEXTS, EncoderContract, random_images
from tests.encoders.test_hf_text import WORDS, save_tokenizer, with_settings

open_clip = pytest.importorskip("open_clip", reason="needs the extra: pip install 'mim-lightning[clip]'")
towers = importlib.import_module("mim_lightning.encoders.open_clip")

TEXT = {"context_length": 16, "width": 32, "heads": 2, "layers": 2}
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {**TEXT, "vocab_size": 49408},
}
SIGLIP = {
    "embed_dim": 64,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none"},
    "text_cfg": {
        **TEXT,
        "vocab_size": len(WORDS),
        "hf_tokenizer_name": "gone/away",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True,
        "pool_type": "last",
    },
}
SQUASH = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture(scope="session")
def clip_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pair(tmp_path_factory.mktemp("clip"), CLIP, {})


@pytest.fixture(scope="session")
def siglip_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("siglip")
    save_tokenizer(folder)
    return save_pair(folder, SIGLIP, SQUASH)


def save_pair(folder: Path, model: dict[str, Any], preprocess: dict[str, Any]) -> str:
    torch.manual_seed(0)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    name = f"local-dir:{folder}"
    torch.save(open_clip.create_model(name).state_dict(), folder / "open_clip_pytorch_model.bin")
    return name


class TestOpenClipImage(EncoderContract):
    image_size: int | None = None

    @pytest.fixture(autouse=True)
    def _name(self, clip_name: str) -> None:
        self.name = clip_name

    def build(self) -> Any:
        return towers.OpenClipImage(self.name, pretrained=True, image_size=self.image_size)

    def rebuild(self, assets: dict[str, str]) -> Any:
        return towers.OpenClipImage("local-dir:/gone", image_size=self.image_size, assets=assets)


class TestOpenClipImageLarger(TestOpenClipImage):
    image_size = 48


class TestOpenClipImageOfTimm(TestOpenClipImage):
    without_gradient = ()

    @pytest.fixture(autouse=True)
    def _name(self, siglip_name: str) -> None:
        self.name = siglip_name

    def test_preprocessing_is_that_of_the_weights(self) -> None:
        encoder = self.build()
        assert (encoder.spec.size, encoder.spec.resize_mode) == ((160, 160), "squash")
        assert encoder.spec.interpolation == "bilinear"
        assert encoder.preprocessing.mean == (0.5, 0.5, 0.5)


class TestOpenClipText(EncoderContract):
    @pytest.fixture(autouse=True)
    def _name(self, clip_name: str) -> None:
        self.name = clip_name

    def build(self) -> Any:
        return towers.OpenClipText(self.name, pretrained=True)

    def rebuild(self, assets: dict[str, str]) -> Any:
        return towers.OpenClipText("local-dir:/gone", assets=assets)

    def test_tokens_fill_the_context(self) -> None:
        assert self.build().spec.tokenize(TEXTS)["input_ids"].shape == (len(TEXTS), 16)


class TestOpenClipTextWithOwnTokenizer(TestOpenClipText):
    @pytest.fixture(autouse=True)
    def _name(self, siglip_name: str, tmp_path: Path) -> None:
        self.name, self.scratch = siglip_name, tmp_path

    def variants(self) -> list[Any]:
        folder, settings = self.name.removeprefix("local-dir:"), ("padding_side", "truncation_side")
        names = [with_settings(folder, self.scratch / key, **{key: "left"}) for key in settings]
        return [towers.OpenClipText(f"local-dir:{name}", pretrained=True) for name in names]

    def test_a_file_written_before_settings_were_stored(self) -> None:
        new = self.variants()[0]
        assets = {file: text for file, text in new.export_assets().items() if file != "encoder.json"}
        old = towers.OpenClipText("local-dir:/gone", assets=assets)
        assert old.describe_preprocessing() == self.build().describe_preprocessing() != new.describe_preprocessing()
        assert old.export_assets() == assets


@torch.no_grad()
def test_halves_give_what_the_whole_pair_gives(clip_name: str) -> None:
    whole, _, prepare = open_clip.create_model_and_transforms(clip_name)
    whole.eval()
    image, text = towers.OpenClipImage(clip_name, True).eval(), towers.OpenClipText(clip_name, True).eval()
    images = random_images(2, image.spec.size)
    mean, std = (torch.tensor(prepare.transforms[-1].__dict__[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected_image: Tensor = whole.encode_image((images / 255 - mean) / std, normalize=True)
    torch.testing.assert_close(normalize(image(images), dim=-1), expected_image)
    expected_text = whole.encode_text(open_clip.get_tokenizer(clip_name)(TEXTS), normalize=True)
    torch.testing.assert_close(normalize(text(text.spec.tokenize(TEXTS)), dim=-1), expected_text)


def test_builtin_name_needs_no_network_for_random_weights() -> None:
    encoder = towers.OpenClipText("ViT-S-32-alt", pretrained=None)
    assert encoder.width == 256


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-23", None, "no such OpenCLIP model; did you mean .*ViT-B-32"),
        ("ViT-B-32", True, "pretrained=True names no weights; give a file or one of openai"),
        ("ViT-B-32", "nope", "pretrained=nope names no weights"),
        ("ViT-B-32", "openai", "trained with quick_gelu activations; give name=ViT-B-32-quickgelu"),
        ("ViT-S-32-alt", "/x/y.pt", "weights file /x/y.pt does not exist"),
        ("coca_ViT-B-32", None, "captioning model"),
        ("local-dir:/no/folder", True, "/no/folder/open_clip_config.json does not exist"),
        ("hf-hub:no/such", True, "cannot be downloaded"),
    ],
)
def test_errors_are_one_line(name: str, pretrained: bool | str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        towers.OpenClipImage(name, pretrained)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to download weights\nfor many reasons")

    monkeypatch.setattr(open_clip, "create_model", refuse)
    with pytest.raises(ValueError, match="datacomp_xl_s13b_b90k' cannot be downloaded"):
        towers.OpenClipImage("ViT-B-32", "datacomp_xl_s13b_b90k")
    hub = r"laion2b_e16' cannot be downloaded .timm/vit_base_patch32_clip_224.laion2b_e16: .*; copy HF_HOME from"
    with pytest.raises(ValueError, match=hub):
        towers.OpenClipImage("ViT-B-32", "laion2b_e16")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"url": "https://x.org/a.pt", "hf_hub": ""})
    with pytest.raises(ValueError, match=r"from https://x.org/a.pt, which is not the hub\); copy ~/.cache/clip from"):
        towers.OpenClipImage("ViT-B-32", "laion2b_e16")


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="do not fit"):
        towers.OpenClipText("ViT-S-32-alt", str(tmp_path / "weights.pt"))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.delitem(sys.modules, "mim_lightning.encoders.open_clip")
    monkeypatch.delitem(sys.modules, "mim_lightning.encoders.open_clip_weights")
    with pytest.raises(ValueError, match=r"install the extra: pip install 'mim-lightning\[clip\]'"):
        importlib.import_module("mim_lightning.encoders.open_clip")
