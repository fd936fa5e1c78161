"""Upload and download of an export, by the client of huggingface_hub against a fake hub on loopback."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from mim_lightning.inference.hub import push
from mim_lightning.inference.loading import load
from tests.inference.hub import Hub, commit_of, running_hub
from tests.inference.models import TEXTS, export_to


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
        yield hub


def test_pushed_and_loaded_again(hub: Hub, checkpoint: Path, tmp_path: Path, pictures: list[Path]) -> None:
    output = export_to(tmp_path / "a", checkpoint, "push_to_hub=me/shoes")
    files = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert {name: data for name, data in hub.repos["me/shoes"].items() if name != ".gitattributes"} == files
    assert hub.is_private["me/shoes"]
    again = load("hf://me/shoes", device="cpu")
    assert again.fingerprint == load(checkpoint).fingerprint
    assert np.array_equal(again.embed_query(pictures, TEXTS), load(checkpoint).embed_query(pictures, TEXTS))


def test_a_new_export_replaces_the_old_and_nothing_else(hub: Hub, exported: Path) -> None:
    push(exported, "me/shoes", private=False)
    assert not hub.is_private["me/shoes"]
    hub.repos["me/shoes"]["onnx/query_image.onnx"] = b"of an earlier export"
    push(exported, "me/shoes", private=False)
    assert "onnx/query_image.onnx" not in hub.repos["me/shoes"] and ".gitattributes" in hub.repos["me/shoes"]
    hub.repos["me/thesis"] = {"thesis.txt": b"years of work"}
    with pytest.raises(ValueError, match=r"push_to_hub=me/thesis: the hub refused it .*thesis\.txt.* is complete"):
        push(exported, "me/thesis", private=True)
    assert hub.repos["me/thesis"] == {"thesis.txt": b"years of work"}


def test_a_tampered_download_is_refused(hub: Hub, exported: Path) -> None:
    push(exported, "me/shoes", private=True)
    config = hub.repos["me/shoes"]["config.json"]
    hub.repos["me/shoes"]["config.json"] = config.replace(b"mim_lightning.encoders.TinyImage", b"os.system")
    with pytest.raises(ValueError, match=r"wants to build 'os\.system'"):
        load("hf://me/shoes")


def test_an_earlier_revision_is_loaded_by_its_name(hub: Hub, exported: Path) -> None:
    push(exported, "me/shoes", private=True)
    first = commit_of(hub.repos["me/shoes"])
    hub.repos["me/shoes"]["config.json"] = b"{}"  # what came later
    assert load(f"hf://me/shoes@{first}", device="cpu").fingerprint == load(exported).fingerprint
    with pytest.raises(ValueError, match=r"hf://me/shoes@v9: cannot be downloaded .*Revision Not Found"):
        load("hf://me/shoes@v9")


def test_private_content_is_not_pushed_to_a_public_repository(hub: Hub, copy: Path) -> None:
    push(copy, "me/shoes", private=False)
    held = dict(hub.repos["me/shoes"])
    (copy / "note.txt").write_text("not for everyone")
    with pytest.raises(ValueError, match=r"push_to_hub=me/shoes: .*it exists and is public; give private=false"):
        push(copy, "me/shoes", private=True)
    assert hub.repos["me/shoes"] == held


def test_without_a_token_is_one_line_that_says_so(
    hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    push(exported, "me/shoes", private=True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    for ask in (lambda: push(exported, "me/hats", private=True), lambda: load("hf://me/shoes")):
        with pytest.raises(ValueError, match=r"401.*need a token: `hf auth login`, or HF_TOKEN") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert "me/hats" not in hub.repos


def test_missing_repositories_are_one_line(hub: Hub) -> None:
    for path, message in (
        ("hf://me/nothing", "cannot be downloaded .*Repository Not Found"),
        ("hf://shoes", "give <user>/<repo>"),
    ):
        with pytest.raises(ValueError, match=f"^{path}: {message}") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_an_invalid_name_is_refused_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="push_to_hub=shoes: give <user>/<repo>"):
        export_to(tmp_path / "a", checkpoint, "push_to_hub=shoes")
    assert not (tmp_path / "a").exists()
