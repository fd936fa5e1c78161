"""The notebook of the documentation runs, and entry points called from Python do what their commands do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mim_lightning
from mim_lightning.run import Run
from tests.preloaded import PYTHON
from tests.shop import small

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
SMALLER = {  # than for people
    '"trainer.max_epochs=12"': '"trainer.max_epochs=1", "trainer.num_sanity_val_steps=0", "data.num_workers=0"',
    "num_products=60": "num_products=12",
    "queries_per_product=6": "queries_per_product=2",
}


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    lines = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code = "\n".join(lines)
    checks = """
assert run.folder.is_dir() and results["val/composed_to_product/hit@1"] >= 0
assert card.num_products == 12 and len(result.hits) == 5
assert vectors.shape == (1, run.model.dimension) and run.model.fingerprint == card.fingerprint
"""
    for long, short in SMALLER.items():
        assert long in code
        code = code.replace(long, short)
    code += checks
    ended = subprocess.run(
        [os.environ[PYTHON], "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_a_run_trained_from_python_is_that_of_the_command(shop: Path) -> None:
    words = small(shop, "model=2tower", "trainer.max_epochs=1", "trainer.num_sanity_val_steps=0")
    run = mim_lightning.train(*words)  # type: ignore[operator]
    assert isinstance(run, Run) and run.results == run.read_results()
    assert mim_lightning.train(*words) == run  # type: ignore[operator]
    assert "mim_lightning.train" in sys.modules and mim_lightning.train.train  # still the module
    with pytest.raises(ValueError, match=r"no config key 'embed_dimm'; did you mean 'embed_dim'\?"):
        mim_lightning.train("embed_dimm=8")  # type: ignore[operator]
    with pytest.raises(ValueError, match="checkpoint: needs a value; give checkpoint=<file>"):
        mim_lightning.evaluate()  # type: ignore[operator]
    place = shop / "a, b=c"  # a path is taken as it is
    with pytest.raises((ValueError, OSError), match="a, b=c"):
        mim_lightning.evaluate(f"checkpoint={place}")  # type: ignore[operator]
    with pytest.raises(ValueError, match="the run is not finished"):
        _ = Run("other", shop).results
