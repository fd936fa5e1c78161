"""The timm adapter: contract, sizes, weights files, errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from safetensors.torch import save_file

from mim_lightning.encoders.timm_image import TimmImage
from tests.contracts.encoder import EncoderContract, random_images

MEAN = STD = [0.5, 0.5, 0.5]


class TestTimmConvolutional(EncoderContract):
    arguments: ClassVar[dict[str, Any]] = {
        "name": "mobilenetv2_050",
        "image_size": 64,
        "model_kwargs": {"pad_type": "same"},
    }

    def build(self) -> TimmImage:
        return TimmImage(**self.arguments, mean=MEAN, std=STD)

    def rebuild(self, assets: dict[str, str]) -> TimmImage:
        return TimmImage(**self.arguments, assets=assets)


class TestTimmTransformer(EncoderContract):
    arguments: ClassVar[dict[str, Any]] = {"name": "test_vit", "image_size": 64, "drop_path_rate": 0.1}

    def build(self) -> TimmImage:
        return TimmImage(**self.arguments)

    def rebuild(self, assets: dict[str, str]) -> TimmImage:
        return TimmImage(**self.arguments, assets=assets)

    def test_image_size_reaches_the_network(self) -> None:
        encoder = self.build()
        assert encoder.spec.size == (64, 64)
        assert encoder.network.patch_embed.img_size == (64, 64)


def test_width_is_that_of_the_head() -> None:
    # Its head widens the features after pooling: `num_features` would be wrong.
    encoder = TimmImage("mobilenetv3_small_050", image_size=64)
    assert encoder.width == encoder.network.head_hidden_size != encoder.network.num_features


def test_spec_is_the_models_own() -> None:
    spec = TimmImage("mobilenetv2_050").spec
    assert (spec.size, spec.interpolation, spec.crop_fraction) == ((224, 224), "bicubic", 0.875)


def test_normalises_as_the_weights_were_trained() -> None:
    encoder = TimmImage("mobilenetv2_050", image_size=32, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    torch.testing.assert_close(encoder.normalise(white), torch.full((1, 3, 32, 32), 2.0))


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "folder"])
def test_loads_a_local_file(tmp_path: Path, suffix: str) -> None:
    original = timm.create_model("test_vit", num_classes=10)
    path = tmp_path / ("model.safetensors" if suffix == "folder" else f"weights.{suffix}")
    if suffix == "pth":
        torch.save(original.state_dict(), path)
    else:
        save_file(original.state_dict(), path)
    encoder = TimmImage("test_vit", pretrained=str(tmp_path if suffix == "folder" else path))
    loaded = encoder.network.state_dict()
    assert all(torch.equal(loaded[name], original.state_dict()[name]) for name in loaded)


def test_description_changes_with_whatever_changes_features() -> None:
    variants = [{}, {"image_size": 64}, {"mean": MEAN}, {"std": MEAN}, {"model_kwargs": {"pad_type": "same"}}]
    texts = {TimmImage("mobilenetv2_050", **variant).describe_preprocessing() for variant in variants}
    assert len(texts) == len(variants)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "mobilnetv2_100"},
            "encoder 'mobilnetv2_100': no such timm model; did you mean .*mobilenetv2_100",
        ),
        ({"name": "mobilenetv2_100.nope"}, "no such weights tag"),
        ({"name": "hf-hub:timm/resnet18"}, "give the hub or the folder with `pretrained`"),
        ({"name": "test_vit", "pretrained": "/x/y.safetensors"}, "weights file /x/y.safetensors does not exist"),
        ({"name": "test_vit", "pretrained": True}, "cannot be downloaded"),
        ({"name": "test_vit", "pretrained": "hf-hub:no/such"}, "cannot be downloaded"),
        ({"name": "test_vit", "model_kwargs": {"pad_typo": 1}}, "pad_typo"),
        ({"name": "test_vit", "image_size": 65}, "cannot take images of 65 x 65"),
    ],
)
def test_errors_are_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TimmImage(**arguments)
    assert "\n" not in str(caught.value)


def test_empty_folder_and_foreign_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds none of model"):
        TimmImage("test_vit", pretrained=str(tmp_path))
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="do not fit this model"):
        TimmImage("test_vit", pretrained=str(tmp_path / "other.safetensors"))


@pytest.fixture()
def mobilenetv2_file() -> Path:
    path = Path(os.environ.get("MIM_DATA_DIR", "/no/data/dir")) / "weights" / "mobilenetv2_100.safetensors"
    if not path.is_file():
        pytest.skip("MIM_DATA_DIR holds no weights/mobilenetv2_100.safetensors")
    return path


@torch.no_grad()
def test_pretrained_features_see_more_than_random_ones(mobilenetv2_file: Path) -> None:
    def similarity(pretrained: str | None) -> torch.Tensor:
        """Cosine of images to themselves shifted by a few pixels, less that to other images."""
        encoder = TimmImage(
            "mobilenetv2_100", pretrained, 96, mean=MEAN, std=STD, model_kwargs={"pad_type": "same"}
        ).eval()
        images = random_images(8, (96, 96))
        features = torch.nn.functional.normalize(encoder(images), dim=-1)
        shifted = torch.nn.functional.normalize(encoder(images.roll((5, 5), dims=(2, 3))), dim=-1)
        cosine = features @ shifted.T
        return cosine.diag().mean() - cosine[~torch.eye(8, dtype=torch.bool)].mean()

    assert similarity(str(mobilenetv2_file)) > 3 * similarity(None)
