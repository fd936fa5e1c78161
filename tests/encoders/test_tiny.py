"""Our own small encoders."""

from __future__ import annotations

import pytest
import torch

from mim_lightning.encoders.tiny import EMPTY_ID, HashTokenize, TinyImage, TinyText
from tests.contracts.encoder import EncoderContract


class TestTinyImage(EncoderContract):
    def build(self) -> TinyImage:
        return TinyImage(image_size=64, width=64)

    def rebuild(self, assets: dict[str, str]) -> TinyImage:
        return self.build()

    def test_is_small(self) -> None:
        assert 300_000 < sum(parameter.numel() for parameter in TinyImage().parameters()) < 1_000_000

    @pytest.mark.parametrize(("image_size", "width"), [(50, 64), (64, 100)])
    def test_refuses_sizes_it_cannot_halve(self, image_size: int, width: int) -> None:
        with pytest.raises(ValueError, match="'tiny_image'"):
            TinyImage(image_size, width)


class TestTinyText(EncoderContract):
    def build(self) -> TinyText:
        return TinyText(max_length=8, vocabulary=512, width=64)

    def rebuild(self, assets: dict[str, str]) -> TinyText:
        return self.build()

    def test_padding_changes_nothing(self) -> None:
        encoder = self.build().eval()
        ids = encoder.spec.tokenize(["red shoes"])["input_ids"]
        padded = torch.nn.functional.pad(ids, (0, 3))
        torch.testing.assert_close(encoder({"input_ids": ids}), encoder({"input_ids": padded}))

    def test_order_of_words_counts(self) -> None:
        encoder = self.build().eval()
        features = encoder(encoder.spec.tokenize(["red shoes", "shoes red"]))
        assert not torch.allclose(features[0], features[1], atol=1e-4)

    @pytest.mark.parametrize(("vocabulary", "width"), [(2, 64), (64, 50)])
    def test_refuses_sizes_it_cannot_have(self, vocabulary: int, width: int) -> None:
        with pytest.raises(ValueError, match="'tiny_text'"):
            TinyText(vocabulary=vocabulary, width=width)


def test_words_ignore_case_and_punctuation() -> None:
    tokenize = HashTokenize(max_length=8, num_buckets=1000)
    ids = tokenize(["Red shoes!", "red_shoes", "Crème brûlée", ""])["input_ids"]
    assert ids.shape == (4, 2)
    assert torch.equal(ids[0], ids[1])
    assert ids[3].tolist() == [EMPTY_ID, 0]
    assert (ids[:3] > EMPTY_ID).all()


def test_hash_is_the_same_in_every_process_and_release() -> None:
    assert HashTokenize(8, 999)(["red"])["input_ids"].item() == 347


def test_no_texts_give_no_rows() -> None:
    assert HashTokenize(8, 100)([])["input_ids"].shape == (0, 1)
