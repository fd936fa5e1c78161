"""Untrusted assets, configs and weights: no code in them runs, and no path in them is followed."""

from __future__ import annotations

import json
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mim_lightning.encoders.hf_files import CodeInModelError, _validate_attention_of_config, load_hf_config
from mim_lightning.encoders.hf_text import HfText
from mim_lightning.encoders.interface import Preprocessing
from mim_lightning.encoders.timm_image import TimmImage
from mim_lightning.types import ImageSpec
from tests.inference.models import write_bert

MODULE = "from pathlib import Path\nPath({path!r}).touch()\nfrom transformers import BertConfig as {name}\n"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder)
    return str(folder)


@pytest.fixture
def changed_bert(bert: str, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Return the assets of a text encoder with other values in its config and tokenizer's config."""

    def change(config: dict[str, Any], tokenizer: dict[str, Any] | None = None) -> dict[str, str]:
        assets = HfText(bert, pretrained=True).export_assets()
        for file, changes in (("config.json", config), ("tokenizer_config.json", tokenizer or {})):
            assets[file] = json.dumps(json.loads(assets[file]) | changes)
        return assets

    return change


def test_code_that_comes_with_a_model_is_not_run(
    changed_bert: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask on a terminal
    where = str(tmp_path / "ran")
    auto_map = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    with pytest.raises(ValueError, match="brings Python code of its own"):
        HfText("gone/away", None, assets=changed_bert({"auto_map": auto_map, "model_type": "evil"}))
    # one that transformers knows is its own, whatever else it names
    HfText("gone/away", None, assets=changed_bert({"auto_map": auto_map}, {"auto_map": auto_map}))
    with pytest.raises(ValueError, match=r"'evil\.py' is the name of code"):
        HfText("gone/away", None, assets=changed_bert({}) | {"evil.py": MODULE.format(path=where, name="Evil")})
    with pytest.raises(ValueError, match=r"cannot be the name of a file"):
        HfText("gone/away", None, assets=changed_bert({}) | {f"{tmp_path}/ran": "x"})
    assert not Path(where).exists()


def test_a_folder_with_code_is_refused_by_its_content(bert: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "evil", "vocab_size": 6})
    )
    (tmp_path / "evil.py").write_text(MODULE.format(path=str(tmp_path / "ran"), name="Evil"))
    for pretrained in (True, None):
        with pytest.raises(ValueError, match="brings Python code of its own, which is not run"):
            HfText(str(tmp_path), pretrained)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_names_no_file_that_is_not_its_own(changed_bert: Callable, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nsecret\n")
    for keys in (["vocab"], ["vocab_file"], ["tokenizer_file"], ["merges", "vocab"]):
        assets = changed_bert(
            {}, dict.fromkeys(keys, str(tmp_path / "words.txt")) | {"tokenizer_class": "BertTokenizer"}
        )
        del assets["tokenizer.json"]
        tokenize = HfText("gone/away", None, assets=assets).spec.tokenize
        assert "secret" not in tokenize.tokenizer.get_vocab()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["evil/kernel", {"": "evil/kernel"}, {"vision_config": "evil/kernel"}])
def test_attention_code_is_not_fetched(changed_bert: Callable, tmp_path: Path, key: str, value: Any) -> None:
    refused = r"asks for attention code from the hub, .*evil/kernel.*; not downloaded"
    with pytest.raises(ValueError, match=refused):
        HfText("gone/away", None, assets=changed_bert({key: value}))
    for part in ({key: value}, {"vision_config": {key: value}}, {"parts": [{"inner": {key: value}}]}):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"} | part))
        for offline in (True, False):
            with pytest.raises(CodeInModelError, match=refused):
                load_hf_config(tmp_path, offline)


def test_attention_code_of_a_part_is_found_however_its_config_names_it(tmp_path: Path) -> None:
    config = CLIPConfig()
    _validate_attention_of_config(config, tmp_path)
    config.vision_config._attn_implementation = "evil/kernel"
    with pytest.raises(CodeInModelError, match="evil/kernel"):
        _validate_attention_of_config(config, tmp_path)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"use_pretrained_backbone": True}, "use_pretrained_backbone"),
        ({"backbone": "evil/model"}, "backbone"),
        ({"model_type": "detr", "use_timm_backbone": 1}, "use_timm_backbone"),
        ({"model_type": "detr"}, "backbone_config.*"),  # by default
        ({"model_type": "dpt", "backbone": "evil/model", "use_pretrained_backbone": True}, "backbone"),
        ({"model_type": "dpt", "backbone_config": {"model_type": "timm_backbone"}}, "backbone_config.model_type"),
        ({"model_type": "timm_wrapper", "architecture": "resnet18"}, "model_type"),
        ({"architecture": "hf-hub:evil/model"}, "architecture"),
        ({"parts": [{"architecture": "evil/model"}]}, "parts.0.architecture"),
    ],
)
def test_no_part_of_a_model_is_fetched(
    changed_bert: Callable, config: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = changed_bert(config)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    with pytest.raises(ValueError, match=rf"^encoder 'gone/away': .*\(config\.json: {key}: .* not downloaded\)$"):
        HfText("gone/away", None, assets=assets)


def test_keys_without_effect_are_accepted(changed_bert: Callable) -> None:
    idle = {"backbone": None, "use_timm_backbone": False, "architecture": "bert", "label2id": {"backbone": 1}}
    HfText("gone/away", None, assets=changed_bert(idle))


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "mpnet", "clip", "clip_text_model", "siglip", "siglip_text_model", "xlm-roberta"]
)
def test_text_models_download_nothing(kind: str, tmp_path: Path) -> None:
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    assert load_hf_config(tmp_path, offline=True).model_type == kind


@pytest.mark.parametrize(
    "name", ["package:xml.dom/x", "package:torch/../..", "package:a-b/c", "package:/x", "package:torch//etc"]
)
def test_a_package_is_not_imported_and_not_left(name: str) -> None:
    with pytest.raises(ValueError, match="give package:<package>/<folder in it>"):
        HfText(name)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_not_run(bert: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "config.json").write_text((Path(bert) / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((Path(bert) / name).read_text())
    for name in ("pytorch_model.bin", "model.pth"):
        torch.save({"weight": Touch(ran)}, tmp_path / name)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": Touch(ran)}))
    (tmp_path / "alone").mkdir()
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "alone" / "pytorch_model.bin")
    for weights in (tmp_path / "model.pth", tmp_path / "plain.pth", tmp_path / "alone"):
        with pytest.raises(ValueError, match="do not fit this model"):
            TimmImage("test_vit", pretrained=str(weights))
        assert not ran.exists()
    (tmp_path / "alone" / "pytorch_model.bin").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"lacks the config, tokenizer or weights|[Ww]eights"):
        HfText(str(tmp_path))
    assert not ran.exists()


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "pretrained_cfg_overlay", "cache_dir"])
def test_models_arguments_name_no_weights(tmp_path: Path, key: str) -> None:
    torch.save({"weight": Touch(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=f"model_kwargs.{key} is not the model's own"):
        TimmImage("test_vit", model_kwargs={key: str(tmp_path / "evil.pth")})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (100_000, 8), (8.5, 8), ("8", 8)])
def test_images_have_a_size_that_fits_into_memory(size: Any) -> None:
    with pytest.raises(ValueError, match="a side has 1 to 4096 pixels"):
        Preprocessing(ImageSpec(size=size), (0.5,) * 3, (0.5,) * 3)
    text = Preprocessing(ImageSpec(size=(8, 8)), (0.5,) * 3, (0.5,) * 3).to_json()
    facts = json.loads(text)
    facts["spec"]["size"] = size
    with pytest.raises(ValueError, match="a side has"):
        Preprocessing.from_json(json.dumps(facts))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_cfg", {"timm_model_name": "hf-hub:evil/model"}, "is no timm architecture"),
        ("vision_cfg", {"timm_model_name": "local-dir:/x"}, "is no timm architecture"),
        ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}, r"tokenizer_kwargs\.trust_remote_code: only"),
        ("text_cfg", {"tokenizer_kwargs": {"bpe_path": "/dev/zero"}}, r"tokenizer_kwargs\.bpe_path: only"),
    ],
)
def test_open_clip_downloads_from_no_other_place(part: str, changes: dict[str, Any], message: str) -> None:
    towers = pytest.importorskip("mim_lightning.encoders.open_clip", reason="needs the extra clip")
    model: dict[str, Any] = {"embed_dim": 8, "vision_cfg": {"image_size": 32}, "text_cfg": {"context_length": 8}}
    model[part] |= changes
    assets = {"open_clip_config.json": json.dumps({"model_cfg": model, "preprocess_cfg": {}})}
    for make in (towers.OpenClipImage, towers.OpenClipText):
        with pytest.raises(ValueError, match=message):
            make("local-dir:/gone", assets=assets)
