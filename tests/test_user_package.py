"""An encoder of a user's own package: trained as it is, and in every command once the package is trusted by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mim_lightning
from mim_lightning.build_index import build_index
from mim_lightning.compare import compare
from mim_lightning.config import compose
from mim_lightning.evaluate import evaluate
from mim_lightning.export import export
from mim_lightning.plot import plot
from mim_lightning.search.__main__ import search
from mim_lightning.search.service.request_limits import Limits
from mim_lightning.search.service.search_service import open_service, read_arms
from mim_lightning.stored_config import TRUSTED_PACKAGES

ENCODER = """
from mim_lightning.encoders import TinyImage

class OurImage(TinyImage):
    pass
"""


def test_commands_build_what_a_trusted_package_exports(
    tmp_path: Path, fit: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "packages" / "our_encoders"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from our_encoders.image import OurImage\n")
    (package / "image.py").write_text(ENCODER)
    monkeypatch.syspath_prepend(package.parent)
    options = ["model=2tower", "trainer.max_epochs=1", "encoder.image._target_=our_encoders.OurImage"]
    run = fit(*options)
    checkpoint = f"checkpoint={run.best_checkpoint}"
    index, exported, evaluated = tmp_path / "index", tmp_path / "exported", tmp_path / "evaluated"
    photo = tmp_path / "shop" / "street1-0.jpg"

    service = compose("serve", [f"index={index}"])

    def run_all() -> list[Callable]:
        return [
            lambda: evaluate(compose("evaluate", [checkpoint, f"output={evaluated}"])),
            lambda: build_index(compose("build_index", [checkpoint, f"output={index}", "trainer=cpu"])),
            lambda: export(compose("export", [checkpoint, f"output={exported}", "device=cpu"])),
            lambda: mim_lightning.load(exported),
            lambda: search(compose("search", [f"index={index}", f"image={photo}", "output_image=null"])),
            lambda: open_service(service, read_arms(service), Limits(**service["limits"])),
        ]

    monkeypatch.setenv(TRUSTED_PACKAGES, "our_encoders")
    for command in run_all():
        command()
    monkeypatch.delenv(TRUSTED_PACKAGES)
    for command in run_all():
        with pytest.raises(
            ValueError, match=rf"wants to build 'our_encoders.OurImage'; .*{TRUSTED_PACKAGES}=<package>"
        ):
            command()
    # these two build no model
    compare([run.folder, evaluated], resamples=50)
    plot([run.folder], tmp_path / "figures", only=["curves"])
    assert "1 run" in capsys.readouterr().out
