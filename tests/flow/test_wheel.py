"""A wheel built from the tree, installed elsewhere, runs from another directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.flow.entry_points import ROOT
from tests.preloaded import VENDORS
from tests.shop import small, write_shop


def test_an_installed_wheel_trains_from_another_directory(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    # the editable install would lend its own to the run below
    assert "hydra_plugins/mim_lightning_sweepers/__init__.py" in zipfile.ZipFile(wheel).namelist()
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True)
    write_shop(tmp_path / "shop")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    python = os.environ[VENDORS]  # which has imported nothing from the tree
    where = "import mim_lightning.config as c; print(c.conf_dir())"
    found = subprocess.run([python, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == str(site / "mim_lightning" / "conf")
    command = [python, "-m", "mim_lightning.train", *small(tmp_path, "trainer.max_epochs=1")]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert len(list((tmp_path / "runs").glob("*/results.json"))) == 1
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 1  # its templates travelled
