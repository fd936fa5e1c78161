"""A shop grows while a run trains: the run goes on with the version it started with, the next one sees the new rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mim_lightning.analysis.record import read_record
from mim_lightning.config import compose
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.evaluate import evaluate
from mim_lightning.prepare import prepare
from mim_lightning.run import Run
from tests.flow.entry_points import start, timeless, weights
from tests.shop import picture, small, write_table

Fit = Callable[..., Run]


def write_additions(shop: Path) -> tuple[Path, Path]:
    """Write tables of a new product with two queries, and of a query of a product that is there."""
    picture("grey", "bar", 3).save(shop / "new.jpg")
    picture("grey", "bar", 5).save(shop / "photo.jpg")
    products = [{"product_id": "100", "image": "new.jpg", "title": "grey bar", "category": "bar"}]
    rows = (("train", "100"), ("val", "100"), ("train", "003"))
    queries = [{"split": split, "image": "photo.jpg", "text": "grey", "product_id": name} for split, name in rows]
    return write_table(shop / "new.csv", products), write_table(shop / "more.csv", queries)


def grow(shop: Path) -> None:
    tables = write_additions(shop / "shop")
    folder = f"data.folder={shop}/prepared/manifest"
    prepare(compose("prepare", ["data=shards", folder, f"add.products={tables[0]}", f"add.queries={tables[1]}"]))


def test_a_run_goes_on_with_its_version(shop: Path, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    whole = fit()
    parts = ["callbacks.last.every_n_train_steps=1", f"paths.runs={shop}/parts"]
    kill = "callbacks.progress_bar={_target_: tests.flow.kill_callback.KillAt, step: 4}"
    assert start(*small(shop, *parts, kill)).returncode == -9
    grow(shop)
    assert open_prepared(shop / "prepared" / "manifest").version == 2
    capsys.readouterr()
    resumed = fit(*parts)
    assert "goes on with version 1 of the data, the newest is 2" in capsys.readouterr().out
    assert resumed.run_id == whole.run_id
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value)
    assert timeless(resumed) == timeless(whole)
    fit(*parts)
    said = capsys.readouterr().out
    assert "the run read version 1 of the data, the newest is 2; data.version=2 trains another run on it" in said

    later = fit("data.version=2", "trainer.max_epochs=1")
    assert later.run_id != whole.run_id
    records = [read_record(run.folder) for run in (whole, later)]
    assert [record.facts.data_version("main") for record in records] == [1, 2]
    assert [run.read_results().get("data_version") for run in (whole, resumed, later)] == [None, None, 2]
    found = evaluate(compose("evaluate", [f"checkpoint={later.best_checkpoint}", f"output={shop}/evaluated"]))
    assert found["data_version"] == 2, "an evaluation repeats that of the run"
    assert Run("", shop / "evaluated").read_results() == found
    counts = [record.directions["image_to_product"].num_products for record in records]
    assert counts == [7, 8]
    with pytest.raises(ValueError, match=r"prepared/manifest: has no version 3; it has 1, 2"):
        fit("data.version=3")
