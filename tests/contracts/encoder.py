"""What every encoder must keep: a test class inherits this and says how to build one.

Written for anyone who adds an adapter: inherit, fill `build` and `rebuild`, and every law below is tested.
"""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from mim_lightning.encoders import Encoder, ImageEncoder
from mim_lightning.types import ImageSpec, TextSpec, TowerInput

TEXTS = ["red shoes", "a green apple, fresh from the tree", "", "blue striped shirt with long sleeves"]


class EncoderContract:
    """Inherit as `class TestMine(EncoderContract)` and fill `build`."""

    tolerance = 1e-5
    without_gradient: tuple[str, ...] = ()  # parameters that the vendor keeps but never uses

    def build(self) -> Encoder:
        """Return a fresh encoder with weights of its own."""
        raise NotImplementedError

    def rebuild(self, assets: dict[str, str]) -> Encoder:
        """Return the same encoder as a checkpoint does: from config and assets alone, no network."""
        raise NotImplementedError

    def variants(self) -> list[Encoder]:
        """Return encoders that differ from `build`'s in one setting each that may change features."""
        return []

    @pytest.fixture()
    def encoder(self) -> Encoder:
        torch.manual_seed(0)
        return self.build()

    def test_the_spec_has_size_and_mean_of_the_weights(self, encoder: Encoder) -> None:
        for spec in encoder.spec if isinstance(encoder.spec, tuple) else (encoder.spec,):
            if isinstance(spec, ImageSpec):
                assert spec.interpolation in ("bilinear", "bicubic")
                assert spec.resize_mode in ("shortest", "squash", "squash_crop", "border", "shortest_pad")
                assert spec.crop_fraction > 0
            else:
                assert isinstance(spec, TextSpec)
                assert spec.max_length > 0

    def test_features_have_its_width(self, encoder: Encoder) -> None:
        features = encoder(inputs_of(encoder))
        assert features.shape == (len(TEXTS), encoder.width)
        assert features.isfinite().all()

    def test_different_inputs_have_different_features(self, encoder: Encoder) -> None:
        features = encoder.eval()(inputs_of(encoder))
        assert not torch.allclose(features[0], features[1], atol=1e-6)

    def test_gradient_reaches_every_parameter(self, encoder: Encoder) -> None:
        encoder.train()(inputs_of(encoder)).square().sum().backward()
        without = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
        assert without == set(self.without_gradient)

    def test_recomputed_activations_give_equal_gradients(self, encoder: Encoder) -> None:
        inputs = inputs_of(encoder)

        def train() -> tuple[dict[str, Tensor], int]:
            kept: list[int] = []
            encoder.zero_grad()
            torch.manual_seed(2)  # of dropout
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, same):
                features = encoder.train()(inputs)
            features.square().sum().backward()
            return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}, sum(kept)

        gradients, num_bytes = train()
        gradients = {name: gradient.clone() for name, gradient in gradients.items()}
        encoder.checkpoint_activations()
        recomputed, fewer_bytes = train()
        assert fewer_bytes < num_bytes and gradients.keys() == recomputed.keys()
        assert all(torch.equal(gradient, recomputed[name]) for name, gradient in gradients.items())

    def test_eval_is_deterministic(self, encoder: Encoder) -> None:
        inputs = inputs_of(encoder)
        assert torch.equal(encoder.eval()(inputs), encoder(inputs))

    @torch.no_grad()
    def test_rows_do_not_touch_each_other(self, encoder: Encoder) -> None:
        together = encoder.eval()(inputs_of(encoder))
        alone = torch.cat([encoder(inputs_of(encoder, only=row)) for row in range(len(TEXTS))])
        torch.testing.assert_close(together, alone, atol=self.tolerance, rtol=self.tolerance)

    @torch.no_grad()
    def test_whatever_changes_features_changes_the_description(self, encoder: Encoder) -> None:
        features, description = encoder.eval()(revealing_inputs_of(encoder)), encoder.describe_preprocessing()
        for number, variant in enumerate(self.variants()):
            variant.load_state_dict(encoder.state_dict(), strict=True)
            changed = variant.eval()(revealing_inputs_of(variant))
            is_same = changed.shape == features.shape and torch.equal(changed, features)
            assert is_same or variant.describe_preprocessing() != description, f"variant {number}"

    def test_tokenizer_pickles(self, encoder: Encoder) -> None:
        if isinstance(encoder.spec, TextSpec):
            copy = pickle.loads(pickle.dumps(encoder.spec.tokenize))
            for name, tokens in encoder.spec.tokenize(TEXTS).items():
                assert torch.equal(tokens, copy(TEXTS)[name])

    def test_long_texts_are_cut(self, encoder: Encoder) -> None:
        if isinstance(encoder.spec, TextSpec):
            tokens = encoder.spec.tokenize(["many words " * 600])
            assert all(part.shape[1] <= encoder.spec.max_length for part in tokens.values())

    def test_tokens_are_counted_before_any_is_cut(self, encoder: Encoder) -> None:
        if isinstance(encoder.spec, TextSpec):
            spec = encoder.spec
            assert spec.count is not None
            for num_words in range(1, spec.max_length + 2):
                text = "red " * num_words
                now, with_another = spec.tokenize([text]), spec.tokenize([text + "red"])
                is_full = all(torch.equal(now[name], with_another[name]) for name in now)
                assert is_full == (spec.count(["", text])[1] >= spec.max_length)

    @torch.no_grad()
    def test_rebuilt_encoder_gives_equal_features(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("socket.socket.connect", refuse_network)
        copy = self.rebuild(encoder.export_assets())
        copy.load_state_dict(encoder.state_dict(), strict=True)
        assert copy.spec.__class__ is encoder.spec.__class__
        assert copy.describe_preprocessing() == encoder.describe_preprocessing()
        assert copy.export_assets() == encoder.export_assets()
        inputs = inputs_of(encoder)
        assert torch.equal(encoder.eval()(inputs), copy.eval()(inputs_of(copy)))

    def test_the_encoder_lists_parameters_without_decay(self, encoder: Encoder) -> None:
        assert encoder.names_without_decay() <= {name for name, _ in encoder.named_parameters()}

    def test_building_leaves_training_mode(self, encoder: Encoder) -> None:
        assert all(module.training for module in encoder.modules())


def inputs_of(encoder: Encoder, only: int | None = None) -> TowerInput:
    """Return four inputs of the kind that an encoder takes, or one of them; of an image and a text, two lack one."""
    if isinstance(encoder.spec, tuple):
        image, text = encoder.spec
        assert encoder.reads_any and isinstance(image, ImageSpec) and isinstance(text, TextSpec)
        present = torch.tensor([[True, True], [False, True], [True, False], [True, True]])
        rows = slice(None) if only is None else slice(only, only + 1)
        return random_images(len(TEXTS), image.size)[rows], text.tokenize(TEXTS[rows]), present[rows]
    if isinstance(encoder.spec, TextSpec):
        return encoder.spec.tokenize(TEXTS if only is None else [TEXTS[only]])
    assert isinstance(encoder, ImageEncoder)
    images = random_images(len(TEXTS), encoder.spec.size)
    return images if only is None else images[only : only + 1]


def revealing_inputs_of(encoder: Encoder) -> TowerInput:
    """Return the four inputs, and of texts one that is cut, has capitals and names a special token."""
    if isinstance(encoder.spec, tuple):
        return inputs_of(encoder)
    if isinstance(encoder.spec, TextSpec):
        return encoder.spec.tokenize([*TEXTS, "red [SEP] shoes", "Red Apple", "red " * 40 + "apple"])
    return inputs_of(encoder)


def random_images(num_images: int, size: tuple[int, int]) -> Tensor:
    """Return coarse colored noise, uint8 (n, 3, H, W), the same at every call."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand((num_images, 3, 8, 8), generator=generator)
    return (torch.nn.functional.interpolate(coarse, size) * 255).to(torch.uint8)


def same(tensor: Tensor) -> Tensor:
    return tensor


def refuse_network(*_: object) -> None:
    raise AssertionError("a rebuild asked the network")
