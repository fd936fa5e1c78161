"""The entry point plot: figures of runs, one line for each mistake."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from mim_lightning.analysis.embeddings import EvaluationEmbeddings, write_embeddings
from mim_lightning.data.manifest.manifest import ManifestSource
from mim_lightning.data.preparation.preparation import prepare_shards
from mim_lightning.data.preparation.prepared import PreparedData, ShardSettings
from mim_lightning.plot import main
from tests.analysis.evaluations import Row, config, write_evaluation
from tests.analysis.tables import gallery_of, queries_of, unit
from tests.shop import write_shop

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

METRICS = """epoch,step,train/loss/query_product,train/logit_scale,val/image_to_image/hit@1,val/image_to_image/mrr
-1,0,,,0.1,0.2
0,9,4.5,14.0,,
0,12,,,0.5,0.6
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("data")
    products, queries = write_shop(folder / "shop")
    return prepare_shards(ManifestSource(str(products), str(queries)), folder / "prepared", ShardSettings())


def leave_run(folder: Path, data: PreparedData, model: str, seed: int, fold: int | None = None) -> str:
    """Leave behind what a finished run does."""
    directions = {"image_to_image": {"query": "query_image", "gallery": "product_image"}}
    made = config(model, seed, fold, directions=directions)
    query_ids = [data.queries("val").read_facts(number)["query_id"] for number in range(6)]
    rows = [
        Row(q, f"{number:03d}", 1 + (number + seed) % 3)
        for number, q in enumerate(query_ids)
        if fold is None or number % 2 == fold  # each fold asks other queries
    ]
    write_evaluation(folder / "evaluation", rows, made, data_folder=str(data.folder))
    queries = queries_of({"query_image": unit(12, 8, seed)}, torch.arange(12) % 6)
    gallery = gallery_of({"product_image": unit(6, 8, seed + 9)}, torch.arange(6))
    write_embeddings(folder / "evaluation", EvaluationEmbeddings(queries, gallery, {}, "weights"))
    (folder / "csv" / "version_0").mkdir(parents=True)
    (folder / "csv" / "version_0" / "metrics.csv").write_text(METRICS)
    return str(folder)


def leave_unfinished(folder: Path, model: str, seed: int) -> str:
    """Leave behind what a run has while it trains."""
    made = config(model, seed, monitor="val/image_to_image/mrr", data__folder="/nowhere", data__val_split="val")
    (folder / "csv" / "version_0").mkdir(parents=True)
    (folder / "csv" / "version_0" / "metrics.csv").write_text(METRICS)
    OmegaConf.save(made, folder / "config.yaml")
    return str(folder)


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["draw", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_one_run_has_every_figure(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = leave_run(tmp_path / "run", data, "2tower", 1), tmp_path / "figures"
    assert call(monkeypatch, run, "--output", str(output), "--num-queries", "3") == 0
    assert files(output) == ["curves.png", "hits.png", "losses.png", "map-2tower.png"]
    for name in files(output):
        with Image.open(output / name) as picture:
            assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    stdout = capsys.readouterr().out
    assert "2tower: 1 run, seed 1" in stdout and "t-SNE of 18 points" in stdout
    assert all(str(output / name) in stdout for name in files(output))


def test_seeds_are_one_model_and_models_stand_side_by_side(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [leave_run(tmp_path / f"{m}-{s}", data, m, s) for m in ("2tower", "4tower") for s in (1, 2)]
    output = tmp_path / "figures"
    assert call(monkeypatch, *runs[:2], "--output", str(output), "--only", "hits") == 0
    with Image.open(output / "hits.png") as picture:
        width_of_one = picture.width
    assert call(monkeypatch, *runs, "--output", str(output), "--only", "hits,map", "--num-hits", "5") == 0
    with Image.open(output / "hits.png") as picture:
        assert picture.width > 1.6 * width_of_one
    assert files(output) == ["hits.png", "map-2tower.png", "map-4tower.png"]
    assert "4tower: 2 runs, seeds 1, 2" in capsys.readouterr().out


def test_models_are_compared_in_a_fold_that_all_have(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [leave_run(tmp_path / str(f), data, "2tower", 1, f) for f in (0, 1)]
    runs.append(leave_run(tmp_path / "other", data, "4tower", 1, fold=1))
    assert call(monkeypatch, *runs, "--output", str(tmp_path / "figures"), "--only", "hits") == 0
    assert call(monkeypatch, runs[0], runs[2], "--output", str(tmp_path / "figures"), "--only", "hits") == 2
    assert "2tower, 4tower have no fold in common" in capsys.readouterr().err


def test_a_run_that_still_trains_has_curves(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    young, output = leave_unfinished(tmp_path / "young", "2tower", 2), tmp_path / "figures"
    assert call(monkeypatch, young, "--output", str(output)) == 0
    assert files(output) == ["curves.png", "losses.png"]
    stdout = capsys.readouterr().out
    assert "hits skipped: " in stdout and "map skipped: " in stdout


def test_beside_finished_runs_of_its_arm_it_waits(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mim_lightning.analysis.figures.save import group_evaluated_runs
    from mim_lightning.plot import _read

    done = leave_run(tmp_path / "done", data, "2tower", 1)
    young = tmp_path / "young"
    leave_unfinished(young, "2tower", 2)
    arms = group_evaluated_runs([_read(young), _read(Path(done))], ["run", "monitor", "data", "directions"])
    assert [(arm.label, arm.seeds) for arm in arms] == [("2tower", [1])]
    (alone,) = group_evaluated_runs([_read(young)], [])
    assert alone.seeds == [2]


def test_mistakes_end_in_one_line(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = leave_run(tmp_path / "run", data, "2tower", 1), str(tmp_path / "figures")
    for words, message in (
        ([run, "--output", output, "--only", "pie"], "--only pie: no such figure; there are curves, losses, hits, map"),
        ([run, "--output", output, "--only", "curves", "--metric", "hit@7"], "--metric hit@7: no run logged it"),
        (
            [run, "--output", output, "--only", "hits", "--direction", "up"],
            "--direction up: 2tower has no such",
        ),
        ([run, "--output", output, "--only", "map", "--sides", "query_image"], "give a query side and a product side"),
        ([run, "--output", output, "--only", "map", "--sides", "query_image,shop"], "no tower or fusion 'shop'"),
        ([run, "--output", output, "--num-queries", "0"], "'0': must be a whole number, 1 or more"),
        ([str(tmp_path), "--output", output], f"{tmp_path}: contains no evaluation record"),
        ([run], "the following arguments are required: --output"),
    ):
        assert call(monkeypatch, *words) == 2, words
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    assert files(tmp_path / "figures") == []
