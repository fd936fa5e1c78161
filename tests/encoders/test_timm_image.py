"""The timm adapter: contract, sizes, weights files, errors."""

from __future__ import annotations

import faulthandler
import os
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from safetensors.torch import save_file

from mim_lightning.encoders import Encoder, timm_image
from mim_lightning.encoders.timm_image import TimmImage
from tests.contracts.encoder import EncoderContract, random_images
from tests.preloaded import PYTHON

SMALL_NFNET = {"depths": (1, 1, 1, 1)}
MEAN = STD = [0.5, 0.5, 0.5]


class TestTimmConvolutional(EncoderContract):
    arguments: ClassVar[dict[str, Any]] = {
        "name": "mobilenetv2_050",
        "image_size": 64,
        "model_kwargs": {"pad_type": "same"},
    }

    def build(self) -> TimmImage:
        return TimmImage(**self.arguments, mean=MEAN, std=STD)

    def variants(self) -> list[Encoder]:
        others = [{"model_kwargs": {}}, {"image_size": 96}, {"mean": [0.4] * 3}, {"std": [0.4] * 3}, {"drop_rate": 0.5}]
        return [TimmImage(**{**self.arguments, "mean": MEAN, "std": STD} | other) for other in others]

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


def test_normalizes_as_the_weights_were_trained() -> None:
    encoder = TimmImage("mobilenetv2_050", image_size=32, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    torch.testing.assert_close(encoder.normalize(white), torch.full((1, 3, 32, 32), 2.0))


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
        ({"name": "test_vit", "image_size": 65}, "cannot take images of 65 x 65; it takes 64 x 64 and 80 x 80$"),
        ({"name": "twins_pcpvt_small", "image_size": 112}, "cannot take images of 112 x 112; it takes .* and "),
        (
            {"name": "mvitv2_tiny", "image_size": 112},
            "cannot take images of 112 x 112; it takes 96 x 96 and 128 x 128$",
        ),
        ({"name": "test_vit", "model_kwargs": {"embed_dim": 9}}, "cannot be built with .*'embed_dim': 9"),
    ],
)
def test_errors_are_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TimmImage(**arguments)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_pool_is_refused() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"makes \d+ x \d+ features of an image, not one vector"):
        TimmImage("deepseek_vit_412m_enc")


def test_weights_of_five_dimensions() -> None:
    """channels_last is for four; torch refuses it for a whole network that has one of five."""
    assert TimmImage("lambda_resnet26t", image_size=128).width == 2048


def train_fragile_networks() -> None:
    faulthandler.enable()
    fastvit = {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 16, 16)}
    for name, arguments in (("repvgg_a0", {}), ("fastvit_t8", fastvit)):
        encoder = TimmImage(name, image_size=112, model_kwargs=arguments)
        assert encoder.is_contiguous_on_cpu
        for _ in range(3):
            encoder(torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)).sum().backward()


def test_networks_with_a_fragile_first_layer_train() -> None:
    """In a process of its own: a layer that writes past its memory ends the one it is in.

    Not in a fork of this one: that would inherit what other tests have left, without the threads that belong to it.
    """
    code = f"from {__name__} import train_fragile_networks; train_fragile_networks()"
    done = subprocess.run([os.environ[PYTHON], "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_other_networks_stay_in_channels_last() -> None:
    encoder = TimmImage("resnet10t", image_size=64)
    assert not encoder.is_contiguous_on_cpu
    assert encoder.network.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_file_of_a_model_that_is_cropped_keeps_its_geometry() -> None:
    """Before `squash_crop` there was `squash` alone: such files make the features that they always made."""
    encoder = TimmImage("dm_nfnet_f0", image_size=64, model_kwargs=SMALL_NFNET)
    assert (encoder.spec.resize_mode, encoder.spec.crop_fraction) == ("squash_crop", 0.9)
    text = encoder.export_assets()["preprocessing.json"].replace("squash_crop", "squash")
    old = TimmImage("dm_nfnet_f0", image_size=64, model_kwargs=SMALL_NFNET, assets={"preprocessing.json": text})
    assert old.spec.resize_mode == "squash" and "fill" not in text
    assert old.export_assets()["preprocessing.json"] == text


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


def test_sides_are_looked_for_without_building_a_giant(monkeypatch: pytest.MonkeyPatch) -> None:
    made, create = [], timm.create_model

    def create_model(*args: Any, **options: Any) -> Any:
        made.append(create(*args, **options))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", create_model)
    for limit, devices in ((100_000_000, {"meta", "cpu"}), (0, {"meta"})):
        monkeypatch.setattr(timm_image, "MAX_PARAMETERS_TRIED", limit)
        made.clear()
        assert timm_image._sides_near("test_vit", 65, {"img_size": 65}) == [64, 80]
        assert {next(network.parameters()).device.type for network in made} == devices
