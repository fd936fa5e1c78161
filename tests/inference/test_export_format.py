"""A changed, damaged or malicious export is refused in one line that names the reason."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mim_lightning.inference.export_format import without_local_paths
from mim_lightning.inference.loading import load
from mim_lightning.model.checkpoint import load_matcher
from tests.inference.models import TEXTS, export_to, write_checkpoint


def change_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    next(tensor for tensor in tensors.values() if tensor.dtype == torch.float32).view(-1)[0] += 0.5
    save_file(tensors, folder / "model.safetensors")


def change_fingerprint(folder: Path) -> None:
    (folder / "fingerprint").write_text("0123456789abcdef\n")


def change_config(*keys: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / "config.json").write_text(json.dumps(content))

    return change


ENCODER = ("config", "model", "towers", "query_image", "encoder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_weight, "fingerprint xxh3-[0-9a-f]{16}, config.json says FINGERPRINT: it was changed"),
        (change_fingerprint, "fingerprint 0123456789abcdef, config.json says FINGERPRINT: it was changed"),
        (
            change_config("config", "model", "fusions", "query", "query_text", value=2.0),
            "fingerprint xxh3-[0-9a-f]{16}, config.json says FINGERPRINT: it was changed",
        ),
        (change_config("preprocessing", "query_image", value="{}"), "preprocessing .* says {}: it was changed"),
        (change_config("config", "model", "towers", "product_text", "encoder", "max_length", value=9), "was changed"),
        (change_config("precision", value="int8"), "it was changed"),
        (change_config("precision", value="int2"), r"damaged \(precision=int2: there are"),
        (change_config("format", value=9), "export format 9, this code reads 1"),
        (change_config("nonsense", value=9), r"config.json: damaged"),
        (change_config(*ENCODER, "_target_", value="os.system"), r"wants to build 'os\.system'"),
        (
            change_config(*ENCODER, "_target_", value="mim_lightning.command.os.system"),
            r"wants to build 'mim_lightning\.command\.os\.system'",
        ),
        (
            change_config(*ENCODER, "_target_", value="mim_lightning.encoders.timm_image.load_state_dict"),
            "wants to build",
        ),
        (change_config(*ENCODER, "extra", value=[{"_target_": "os.system"}]), r"wants to build 'os\.system'"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors: damaged"),
        (lambda folder: (folder / "fingerprint").unlink(), "no export here"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: damaged"),
    ],
)
def test_changed_files_are_refused(exported: Path, copy: Path, change: Callable[[Path], None], message: str) -> None:
    fingerprint = (exported / "fingerprint").read_text().strip()
    assert load(copy).fingerprint == fingerprint
    change(copy)
    with pytest.raises(ValueError, match=message.replace("FINGERPRINT", fingerprint)) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_checkpoints_refuse_code_that_is_reached_through_ours(tmp_path: Path) -> None:
    path, _ = write_checkpoint(tmp_path, "model=2tower")
    content = torch.load(path, weights_only=True)
    encoder = content["mim_lightning"]["config"]["model"]["towers"]["query_image"]["encoder"]
    encoder["_target_"] = "mim_lightning.command.os.system"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"wants to build 'mim_lightning\.command\.os\.system'"):
        load(path)


def test_the_card_contains_nothing_of_the_machine(exported: Path, checkpoint: Path) -> None:
    folder = str(checkpoint.parents[2])
    assert folder in json.dumps(load_matcher(checkpoint).config)
    for name in ("config.json", "README.md"):
        assert folder not in (exported / name).read_text()
    assert without_local_paths(
        {"a": ["/x/y.safetensors", "local-dir:/x/z/", "hf-hub:o/m", "https://a/b", "val/x"]}
    ) == {"a": ["y.safetensors", "local-dir:z", "hf-hub:o/m", "https://a/b", "val/x"]}


def test_a_quantized_export_equals_the_quantized_checkpoint(
    checkpoint: Path, exported: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    output = export_to(tmp_path / "int8", checkpoint, "precision=int8")
    direct, again = load(checkpoint, precision="int8"), load(output)
    assert again.fingerprint == direct.fingerprint == f"{load(checkpoint).fingerprint}+int8"
    assert np.array_equal(again.embed_query(pictures, TEXTS), direct.embed_query(pictures, TEXTS))
    smaller, whole = (folder / "model.safetensors" for folder in (output, exported))
    assert smaller.stat().st_size < 0.5 * whole.stat().st_size
    with pytest.raises(ValueError, match="holds int8 weights; for precision=float16 load the checkpoint"):
        load(output, precision="float16")
    change_weight(output)
    with pytest.raises(ValueError, match="it was changed"):
        load(output)
