"""The vision-language adapter, on tiny Qwen models that are made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, Qwen2VLImageProcessor

from mim_lightning.encoders.hf_image_text import AFTER, BEFORE, END, INSTRUCTION, PAD, START, HfImageText
from tests.contracts.encoder import EncoderContract, inputs_of, random_images
from tests.encoders.vision_language import write_vision_language_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("qwen3_vl")
    write_vision_language_model(path)
    return str(path)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("qwen2_5_vl")
    write_vision_language_model(path, "qwen2_5_vl")
    return str(path)


class TestHfImageText(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, folder: str) -> None:
        self.folder = folder

    def build(self, **changes: Any) -> HfImageText:
        return HfImageText(self.folder, **{"image_size": 32, "max_length": 8, **changes})

    def rebuild(self, assets: dict[str, str]) -> HfImageText:
        return HfImageText("gone/away", None, image_size=32, max_length=8, assets=assets)

    def variants(self) -> list[Any]:
        return [self.build(**changes) for changes in ({"max_length": 3}, {"image_size": 48}, {"resize_mode": "squash"})]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["folder", "older"])
@pytest.mark.parametrize("size", [32, 48])
def test_it_computes_what_the_model_does_with_its_own_processor(
    kind: str, size: int, request: pytest.FixtureRequest
) -> None:
    """Each row alone, unpadded, with the model's own positions and patches."""
    name = request.getfixturevalue(kind)
    encoder = HfImageText(name, image_size=size, max_length=8).eval()
    texts, images = ["red", "green blue the", "", "many red"], random_images(4, (size, size))
    present = torch.tensor([[True, True], [False, True], [True, False], [True, True]])
    found = encoder((images, encoder.spec[1].tokenize(texts), present))
    model, tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    processor = Qwen2VLImageProcessor.from_pretrained(name, size={"shortest_edge": 1, "longest_edge": 10**6})
    for row, text in enumerate(texts):
        vision = dict(processor(images[row], return_tensors="pt")) if present[row, 0] else {}
        marks = f"{START}{PAD * (size // 16) ** 2}{END}" if vision else ""
        tokens = dict(tokenizer(f"{BEFORE.format(INSTRUCTION)}{marks}{text}{AFTER}", return_tensors="pt"))
        if vision:
            tokens["mm_token_type_ids"] = (tokens["input_ids"] == model.config.image_token_id).int()
        tokens.pop("token_type_ids", None)
        expected = model(**tokens, **vision).last_hidden_state[0, -1]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_a_batch_without_images_reaches_every_weight(folder: str) -> None:
    encoder = HfImageText(folder, image_size=32)
    images, tokens, present = inputs_of(encoder)
    assert isinstance(present, torch.Tensor)
    encoder((images, tokens, torch.tensor([False, True]).expand_as(present))).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_recomputed_activations_give_the_same_gradients(folder: str) -> None:
    plain, checkpointed = HfImageText(folder, image_size=32), HfImageText(folder, image_size=32)
    checkpointed.checkpoint_activations()
    for encoder in (plain, checkpointed):
        encoder(inputs_of(encoder)).square().sum().backward()
    assert checkpointed.network.visual.blocks[0].gradient_checkpointing
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_marks_in_a_text_are_no_marks(folder: str) -> None:
    tokenize = HfImageText(folder, image_size=32).spec[1].tokenize
    assert torch.equal(tokenize([f"red {PAD}{END}<|im_end|> blue"])["input_ids"], tokenize(["red blue"])["input_ids"])


def test_a_text_is_cut_and_counted_without_its_turn(folder: str) -> None:
    spec = HfImageText(folder, image_size=32, max_length=3).spec[1]
    assert spec.count(["red", "red green blue many", ""]) == [1, 4, 0]
    assert torch.equal(
        spec.tokenize(["red green blue many"])["input_ids"], spec.tokenize(["red green blue"])["input_ids"]
    )


def test_an_instruction_takes_the_place_of_the_default(folder: str) -> None:
    encoder = HfImageText(folder, image_size=32, prompts={"query": "red"})
    spec = encoder.prompted(encoder.spec[1], "red")
    text = encoder.spec[1].tokenize.tokenizer.decode(spec.tokenize(["blue"])["input_ids"][0])
    assert "system red" in text and "Represent" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "no/such-model"}, "cannot be downloaded .* encoder.image_text.name=<folder>"),
        ({"image_size": 40}, "image_size 40 must divide by 16; 32 or 48 does"),
        ({"resize_mode": "x"}, "resize_mode 'x' is none of border, squash, shortest"),
        ({"prompts": {"x": "a"}}, "give a text for query or product"),
    ],
)
def test_errors_are_one_line(arguments: dict[str, Any], message: str, folder: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        HfImageText(**{"name": folder, **arguments})
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a bert; give one of qwen2_vl, qwen2_5_vl, qwen3_vl"):
        HfImageText(str(tmp_path))


def test_no_code_of_a_file_is_run(folder: str) -> None:
    assets = HfImageText(folder, image_size=32).export_assets()
    assert not any(name.startswith("chat_template") for name in assets)
    hostile = json.dumps(json.loads(assets["config.json"]) | {"model_type": "evil", "auto_map": {"AutoConfig": "x.Y"}})
    with pytest.raises(ValueError, match="brings Python code of its own, which is not run"):
        HfImageText("gone/away", None, assets={**assets, "config.json": hostile})
