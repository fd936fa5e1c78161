"""Towers in ONNX embed as in PyTorch, for any number of rows and any length; a tower that does not is no export."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mim_lightning.encoders.hf_text import HfText
from mim_lightning.encoders.interface import Encoder
from mim_lightning.encoders.timm_image import TimmImage
from mim_lightning.inference.loading import load
from mim_lightning.inference.onnx import OnnxTower, _digest, export_towers, open_towers, sample_inputs
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from tests.inference.models import TEXTS, export_to, write_bert

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="needs the extra: pip install 'mim-lightning[onnx]'")


@pytest.fixture(scope="module")
def with_onnx(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to(tmp_path_factory.mktemp("onnx") / "model", checkpoint, "onnx=true")


def test_the_same_api_the_same_vectors(with_onnx: Path, pictures: list[Path]) -> None:
    expected, found = load(with_onnx, device="cpu"), load(with_onnx, runtime="onnx")
    assert found.fingerprint == expected.fingerprint and found.tower_names == expected.tower_names
    assert found.encoders["product_image"].session is found.encoders["query_image"].session  # type: ignore[attr-defined]
    for batch_size in (1, 3, 32):
        vectors = found.embed_query(pictures, TEXTS, batch_size=batch_size)
        np.testing.assert_allclose(vectors, expected.embed_query(pictures, TEXTS), atol=1e-5)
    for texts in (["red"], ["one two three four five six seven", "a"], ["w"] * 33, ["long " * 50]):
        np.testing.assert_allclose(found.embed_texts(texts), expected.embed_texts(texts), atol=1e-5)
    card = (with_onnx / "README.md").read_text()
    assert "| onnx/query_image.onnx | images | 32 |" in card and "compared with PyTorch on noise" in card


def test_invalid_values_are_refused(with_onnx: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no ONNX towers; export with onnx=true"):
        load(exported, runtime="onnx")
    with pytest.raises(ValueError, match="device=cuda: runtime=onnx computes on the CPU"):
        load(with_onnx, runtime="onnx", device="cuda")
    with pytest.raises(ValueError, match="holds ONNX towers of float32 weights, not of int8"):
        load(with_onnx, runtime="onnx", precision="int8")
    copy = Path(shutil.copytree(with_onnx, tmp_path / "copy"))
    with (copy / "onnx" / "query_image.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(
        ValueError, match=r"query_image\.onnx: digest [0-9a-f]{16}, config\.json says .* it was changed"
    ):
        load(copy, runtime="onnx")
    (copy / "onnx" / "query_image.onnx").rename(tmp_path / "elsewhere")
    (copy / "onnx" / "query_image.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"query_image\.onnx: is a link that leads out of"):
        load(copy, runtime="onnx")
    (copy / "onnx" / "query_image.onnx").unlink()
    with pytest.raises(ValueError, match="the ONNX tower is missing"):
        load(copy, runtime="onnx")


def convert(encoder: Encoder, folder: Path, name: str = "query_image") -> tuple[Tower, OnnxTower, dict]:
    torch.manual_seed(0)
    tower = Tower(encoder, 16).eval()
    matcher = Matcher({name: tower}, {}, {}).eval()
    specs = {name: encoder.spec}
    facts = export_towers(matcher, folder, sample_inputs(specs, None))
    opened = open_towers(folder, facts, matcher.owner_of, specs)[name]
    assert isinstance(opened, OnnxTower)
    return tower, opened, facts[name]


def test_a_tower_that_differs_is_not_exported(
    checkpoint: Path, with_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mim_lightning.inference import onnx

    def fake_export(_: object, __: object, **options: object) -> object:
        class Program:
            def save(self, path: Path) -> None:
                shutil.copy(with_onnx / "onnx" / "product_text.onnx", path)

        return Program()

    monkeypatch.setattr(onnx.torch.onnx, "export", fake_export)
    other = Matcher({"query_text": text_tower(), "query_image": image_tower()}, {}, {}).eval()
    specs = {name: other.tower(name).encoder.spec for name in other.towers}
    with pytest.raises(ValueError, match=r"tower 'query_text' differs from PyTorch: smallest cosine -?0"):
        export_towers(other, tmp_path, sample_inputs(specs, None))


def text_tower() -> Tower:
    from mim_lightning.encoders.tiny import TinyText

    torch.manual_seed(5)
    return Tower(TinyText(32, 200, 32, 1), 16)


def image_tower() -> Tower:
    from mim_lightning.encoders.tiny import TinyImage

    return Tower(TinyImage(32, 64), 16)


def test_a_refused_export_names_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mim_lightning.inference import onnx

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand a page of advice")

    monkeypatch.setattr(onnx.torch.onnx, "export", fail)
    matcher = Matcher({"query_text": text_tower()}, {}, {})
    with pytest.raises(
        ValueError, match=r"onnx: tower 'query_text' cannot be exported \(RuntimeError: no such"
    ) as error:
        export_towers(matcher, tmp_path, sample_inputs({"query_text": matcher.tower("query_text").encoder.spec}, None))
    assert "\n" not in str(error.value)

    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx.torch.onnx, "export", fill)
    (tmp_path / "other").mkdir()
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/other/onnx/query_text.onnx'"):
        export_towers(matcher, tmp_path / "other", sample_inputs({"query_text": text_tower().encoder.spec}, None))


def test_the_missing_extra_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"install the extra: pip install 'mim-lightning\[onnx\]'"):
        export_to(tmp_path / "a", checkpoint, "onnx=true")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@torch.no_grad()
def test_mobilenetv2_as_conf_has_it(tmp_path: Path) -> None:
    encoder = TimmImage("mobilenetv2_100", image_size=112, model_kwargs={"pad_type": "same"})
    images = sample_inputs({"query_image": encoder.spec}, None)["query_image"]
    assert isinstance(images, torch.Tensor)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of these images, as after training
    encoder.train()(images)
    tower, opened, facts = convert(encoder.eval(), tmp_path)
    assert facts["min_cosine"] > 0.99999 and facts["max_abs_difference"] < 1e-4 and facts["num_samples"] == 32
    torch.testing.assert_close(opened(images[5:8]), tower(images[5:8]), atol=1e-4, rtol=0)
    assert (tower(images)[0] - tower(images)[1]).abs().max() > 0.01  # else the comparison would prove nothing


@pytest.mark.slow
@torch.no_grad()
def test_a_text_model_of_hugging_face(tmp_path: Path) -> None:
    name = write_bert(tmp_path / "bert")["name"]
    tower, opened, facts = convert(HfText(name), tmp_path, "query_text")
    assert facts["min_cosine"] > 0.9999
    for texts in (["red"], ["red blue disc box red red red", "a", ""]):
        tokens = tower.encoder.spec.tokenize(texts)  # type: ignore[union-attr]
        torch.testing.assert_close(opened(tokens), tower(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "link", None])
def test_weights_are_in_the_folder(tmp_path: Path, location: str | None) -> None:
    """An untrusted file may name any file as its weights; a file that is not ONNX is one line too."""
    import onnx

    folder = tmp_path / "export"
    path = folder / "onnx" / "query_image.onnx"
    path.parent.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    (path.parent / "link").symlink_to(tmp_path / "secret")
    weights = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location or "")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights]
    )
    content = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    path.write_bytes(content.SerializeToString() if location else b"no ONNX")
    facts = {"query_image": {"digest": _digest(path)}}
    with pytest.raises(ValueError, match=r"query_image\.onnx: not readable by ONNX Runtime") as caught:
        open_towers(folder, facts, {"query_image": "query_image"}, {})
    assert "\n" not in str(caught.value)
