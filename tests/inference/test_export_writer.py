"""An export is complete, has plain files, embeds as its checkpoint does, and replaces no foreign folder."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mim_lightning.export import main
from mim_lightning.inference.loading import load
from mim_lightning.model.fusion import describe_fusions
from mim_lightning.model.matcher import Matcher
from tests.inference.models import TEXTS, export_to, write_bert, write_checkpoint


def test_the_folder_embeds_as_the_checkpoint_does(checkpoint: Path, exported: Path, pictures: list[Path]) -> None:
    original, again = load(checkpoint), load(exported)
    assert again.fingerprint == original.fingerprint == (exported / "fingerprint").read_text().strip()
    assert (
        describe_fusions(again.fusions) == describe_fusions(original.fusions)
        and again.tower_names == original.tower_names
    )
    assert np.array_equal(again.embed_query(pictures, TEXTS), original.embed_query(pictures, TEXTS))
    assert np.array_equal(again.embed_products(pictures, TEXTS), original.embed_products(pictures, TEXTS))


def test_the_folder_contains_plain_readable_files(exported: Path) -> None:
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {"model.safetensors", "config.json", "fingerprint", "README.md"}  # tiny encoders have no assets
    assert {path.stat().st_mode for path in exported.iterdir()} == {(exported / "fingerprint").stat().st_mode}
    assert not [path for path in exported.parent.iterdir() if path != exported], "nothing is left beside it"


def test_a_foreign_folder_is_left_alone_and_an_export_replaced(
    checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for place in (foreign, foreign / "thesis.txt"):
        with pytest.raises(ValueError, match="exists and is no export"):
            export_to(place, checkpoint)
    assert [path.name for path in tmp_path.rglob("*")] == ["foreign", "thesis.txt"]
    former = Path(shutil.copytree(exported, tmp_path / "former"))
    other, _ = write_checkpoint(tmp_path / "other", "model=2tower", seed=1)
    export_to(former, other)
    assert load(former).fingerprint == load(other).fingerprint != load(exported).fingerprint


def test_a_failure_leaves_the_former_export(
    checkpoint: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in copy.iterdir()}
    monkeypatch.setattr("mim_lightning.inference.export_writer.write_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_to(copy, checkpoint)
    assert {path: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_tokenisers_travel_as_files(tmp_path: Path) -> None:
    encoder = write_bert(tmp_path / "bert")
    checkpoint, matcher = write_checkpoint(tmp_path, "model=4tower", encoders={"product_text": encoder})
    expected = embed(matcher, ["red box", "blue"])
    shutil.rmtree(tmp_path / "bert")
    output = export_to(tmp_path / "a", checkpoint)
    assert {"config.json", "tokenizer.json"} <= {path.name for path in (output / "product_text").iterdir()}
    np.testing.assert_allclose(load(output, device="cpu").embed_texts(["red box", "blue"]), expected, atol=1e-5)
    tokenizer = output / "product_text" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("blue", "grey"))
    with pytest.raises(ValueError, match=r"product_text: preprocessing .* it was changed"):
        load(output)


@torch.no_grad()
def embed(matcher: Matcher, texts: list[str]) -> np.ndarray:
    tower = matcher.tower("product_text")
    return tower(tower.encoder.spec.tokenize(texts)).numpy()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output=a"], "error: checkpoint: needs a value; give checkpoint=<value>"),
        (["checkpoint=/nowhere.ckpt", "output=a"], "error: /nowhere.ckpt: no such checkpoint file"),
        (["precison=int8"], "error: no config key 'precison'; did you mean 'precision'?"),
        (["checkpoint=CHECKPOINT", "output=a", "precision=int3"], "error: precision=int3: there are float32, bfloat16"),
        (["checkpoint=CHECKPOINT", "output=a", "data=shards", "data.folder=b"], "error: b: no prepared data here"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    checkpoint: Path,
    overrides: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export", *(part.replace("CHECKPOINT", str(checkpoint)) for part in overrides)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith(message), errors
    assert not list(tmp_path.iterdir())
