"""Which weights of a tower training changes, by its mode; what is frozen stays as it is, batch statistics too."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mim_lightning.config import build_matcher, compose
from mim_lightning.encoders.interface import Encoder
from mim_lightning.encoders.timm_image import TimmImage
from mim_lightning.encoders.tiny import TinyImage, TinyText
from mim_lightning.model.tower import Tower
from tests.contracts.encoder import inputs_of
from tests.shop import small


def changed_by_a_step(tower: Tower) -> set[str]:
    """Return the names of the tensors of the state that a step in training mode changes."""
    torch.manual_seed(0)  # of dropped paths: with others a whole block is left out
    tower.train()
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    tower(inputs_of(tower.encoder))[:, 0].sum().backward()
    torch.optim.SGD([p for p in tower.parameters() if p.requires_grad], lr=10.0).step()
    return {name for name, tensor in tower.state_dict().items() if not torch.equal(tensor, before[name])}


def batch_normalized() -> TimmImage:
    return TimmImage("mobilenetv2_035", image_size=32, drop_rate=0.5, drop_path_rate=0.5)


@pytest.mark.parametrize("build", [batch_normalized, lambda: TinyText(8, 50, 32, 1)])
def test_a_frozen_encoder_does_not_change_and_its_projection_learns(build) -> None:
    tower = Tower(build(), 8, train="frozen")
    assert changed_by_a_step(tower) == {"projection.weight"}
    assert not any(part.training for part in tower.encoder.modules()) and tower.training and tower.is_frozen


def test_of_the_last_layers_weights_and_statistics_change_and_nothing_before() -> None:
    encoder = batch_normalized()
    tower = Tower(encoder, 8, train="last_n", num_trained_layers=2)
    trained = ("blocks.5.", "blocks.6.", "conv_head.", "bn2.")
    changed = {name.removeprefix("encoder.network.") for name in changed_by_a_step(tower)} - {"projection.weight"}
    assert changed == {name for name in encoder.network.state_dict() if name.startswith(trained)}
    modes = {name: part.training for name, part in encoder.network.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert all(mode == name.startswith(("blocks.5", "blocks.6", "bn2")) for name, mode in modes.items())
    assert encoder.network.blocks[5][0].drop_path.training  # random where it trains
    assert not any(part.training for part in tower.eval().modules())


def test_all_layers_but_the_embeddings_are_the_last_n() -> None:
    tower = Tower(TinyText(8, 50, 32, 3), 8, train="last_n", num_trained_layers=3)
    frozen = {name for name, parameter in tower.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.words.weight", "encoder.positions"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train=half", r"model\.towers\.query_image: train=half: give full, frozen"),
        (
            "train=last_n num_trained_layers=5",
            r"query_image: num_trained_layers=5: .* 1 to 4 of the layers of Tiny",
        ),
        ("train=last_n num_trained_layers=0", "num_trained_layers=0: "),
        ("train=last_n num_trained_layers=null", "num_trained_layers=null: "),
        ("train=3", r"model\.towers\.query_image\.train=3: give a text"),
    ],
)
def test_what_a_tower_cannot_train_is_named(overrides: str, message: str) -> None:
    words = [f"model.towers.query_image.{override}" for override in overrides.split()]
    with pytest.raises(ValueError, match=message if "=3" not in overrides else r"train=3: give full"):
        build_matcher(compose("train", small(Path("unused"), *words)))


def test_a_tied_tower_is_not_trained_otherwise_than_its_owner() -> None:
    words = ["model.towers.query_text.train=frozen"]
    with pytest.raises(ValueError, match=r"query_text\.train=frozen: its .* model\.towers\.product_text\.train="):
        build_matcher(compose("train", small(Path("unused"), *words)))
    both = build_matcher(compose("train", small(Path("unused"), *words, "model.towers.product_text.train=frozen")))
    assert both.tower("query_text").is_frozen


def test_an_unknown_key_of_a_tower_is_named() -> None:
    with pytest.raises(ValueError, match=r"no config key 'model.towers.query_image.trian'; did you mean 'train'\?"):
        build_matcher(compose("train", small(Path("unused"), "+model.towers.query_image.trian=full")))


@pytest.mark.parametrize("encoder", [TinyImage(), TinyText(8, 50, 32, 2)], ids=["image", "text"])
def test_layers_of_our_own_encoders(encoder: Encoder) -> None:
    first, *layers, last = encoder.layers()
    assert sorted(name for layer in (first, *layers, last) for name in layer) == sorted(
        dict(encoder.named_parameters())
    )
    # the further from the output, the earlier a gradient reaches a layer
    reached: list[str] = []
    for name, parameter in encoder.named_parameters():
        parameter.register_hook(lambda _, name=name: reached.append(name))
    encoder(inputs_of(encoder)).sum().backward()
    groups = (first, *layers, last)
    of = {name: idx for idx, layer in enumerate(groups) for name in layer}
    order = [of[name] for name in reached]
    assert order == sorted(order, reverse=True) and len(layers) == (4 if isinstance(encoder, TinyImage) else 2)
