"""Values of training that the config of a single encoder brings."""

import pytest

from mim_lightning.config import compose
from mim_lightning.lit.run_description import describe_encoder_values

DINOV3, TEXT = "encoder/image=dinov3", "encoder/text=embeddinggemma"


@pytest.mark.parametrize(
    ("words", "scales"),
    [
        ([DINOV3], {"query_image": 0.01}),
        ([DINOV3, TEXT], {"query_image": 0.01, "product_text": 0.02}),
        ([DINOV3, "model.tied.product_image=null"], {"query_image": 0.01, "product_image": 0.01}),
        ([TEXT, "model.towers.product_text.train=lora"], {}),
        ([DINOV3, "encoder.image.pretrained=false"], {}),
        ([DINOV3, "optim.lr=5e-4"], {}),
        ([DINOV3, "optim=sgd"], {}),
        (["encoder=siglip2_b16", DINOV3], {}),
        (["encoder=siglip2_b16"], {}),
        ([], {}),
    ],
)
def test_a_rate_is_a_factor_on_that_of_what_is_new(words: list[str], scales: dict[str, float]) -> None:
    config = compose("train", words)
    found = config["optim"]["lr_scales"].get("towers", {})
    assert {tower: factors["encoder"] for tower, factors in found.items()} == scales
    assert not any("training" in tower["encoder"] for tower in config["model"]["towers"].values())
    said = describe_encoder_values(config) or ""
    assert all(f"optim.lr_scales.towers.{tower}.encoder={scale:g}" in said for tower, scale in scales.items())


def test_the_users_own_factors_win() -> None:
    config = compose("train", [DINOV3, "optim.lr_scales.encoder=0.5"])
    assert config["optim"]["lr_scales"] == {"encoder": 0.5}
    assert describe_encoder_values(config) is None


def test_encoders_of_older_runs_keep_their_rate_and_name_one_that_suits() -> None:
    config = compose("train", ["encoder/image=vit_b16"])
    assert config["optim"]["lr_scales"] == {}
    assert describe_encoder_values(config) == (
        "pretrained, but trained at the rate of what is new; "
        "optim.lr_scales.towers.query_image.encoder=0.01 would suit it"
    )


def test_other_entry_points_take_such_an_encoder() -> None:
    assert "training" not in compose("prepare", ["encoder/text@tokenizer=embeddinggemma"])["tokenizer"]
