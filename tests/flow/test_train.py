"""A run from tables to results: it learns, leaves everything behind, resumes, and does not run twice."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mim_lightning.config import compose
from mim_lightning.evaluate import evaluate
from mim_lightning.run import Run, identify
from tests.flow.doors import start, weights
from tests.shop import small

Fit = Callable[..., Run]


@pytest.mark.parametrize("towers", ["2tower", "3tower", "4tower"])
def test_a_few_seconds_of_training_learn(fit: Fit, towers: str) -> None:
    monitor = compose("train", [f"model={towers}"])["monitor"]
    results = fit(f"model={towers}", "trainer.max_epochs=25", "optim.lr=3e-3", "data.augment=null").read_results()
    assert results is not None
    assert results[monitor] == 1.0
    assert results[monitor] > results[monitor.replace("val/", "untouched/")]


def test_a_run_leaves_everything_behind(fit: Fit) -> None:
    run = fit()
    assert {path.name for path in run.folder.iterdir()} == {
        "config.yaml",
        "results.json",
        "hits.png",
        "checkpoints",
        "csv",
    }
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert Image.open(run.folder / "hits.png").width > 500
    rows = (run.folder / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    epochs = [line.split(",")[rows[0].split(",").index("epoch")] for line in rows[1:]]
    assert "-1.0" in epochs and {"0", "1"} <= set(epochs)
    results = run.read_results()
    assert results is not None
    for direction in ("image_to_image", "image_to_product", "text_to_product", "composed_to_product"):
        for metric in ("hit@1", "recall@5", "mrr", "map", "ndcg@10", "wrong_category@1"):
            assert 0 <= results[f"val/{direction}/{metric}"] <= 1
            assert f"untouched/{direction}/{metric}" in results


def test_evaluate_gives_the_same_numbers_from_the_file_alone(fit: Fit, tmp_path: Path) -> None:
    run = fit()
    output = tmp_path / "evaluated"
    config = compose("evaluate", [f"checkpoint={run.best_checkpoint}", f"output={output}", "trainer=cpu"])
    evaluated = evaluate(config)
    recorded = run.read_results()
    assert recorded is not None
    assert evaluated == {key: value for key, value in recorded.items() if not key.startswith(("untouched/", "best_"))}
    assert json.loads((output / "results.json").read_text()) == evaluated
    assert (output / "hits.png").is_file()


def test_a_finished_run_says_so_and_returns(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit()
    before = run.best_checkpoint.stat().st_mtime_ns
    assert fit() == run
    assert run.best_checkpoint.stat().st_mtime_ns == before
    assert "finished before" in capsys.readouterr().out


def test_the_id_is_stable_and_knows_what_matters(tmp_path: Path) -> None:
    def run_id(*overrides: str) -> str:
        return identify(compose("train", small(tmp_path, *overrides)))[0].run_id

    assert run_id() == run_id()
    assert run_id() == run_id("trainer.devices=2", "data.num_workers=3", "logger=none", "paths.runs=elsewhere")
    assert len({run_id(), run_id("seed=2"), run_id("model=3tower"), run_id("optim.lr=0.5")}) == 4


def test_init_from_a_3_tower(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    three = fit("model=3tower")
    run = fit("model=4tower", f"init_from={three.best_checkpoint}", "optim.lr=0.0")
    assert "tensors loaded into towers.query_image" in caplog.text
    for name, value in weights(three, "best").items():
        if name.startswith("matcher."):
            assert torch.equal(value, weights(run, "best")[name])


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_and_resumed_equals_not_stopped(shop: Path, fit: Fit, workers: int) -> None:
    whole = fit()
    parts = ["callbacks.last.every_n_train_steps=1", f"paths.runs={shop}/parts", f"data.num_workers={workers}"]
    kill = "+callbacks.kill={_target_: tests.flow.stop.KillAt, step: 4}"  # in the second of two epochs of three steps
    killed = start(*small(shop, *parts, kill))
    assert killed.returncode == -9, killed.stderr
    resumed = fit(*parts)
    assert resumed.run_id == whole.run_id
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=1e-6)
    assert resumed.read_results() == pytest.approx(whole.read_results(), abs=1e-6)


def test_an_empty_split_or_a_bad_picture_stops_before_anything_is_written(shop: Path) -> None:
    (shop / "shop" / "street3-1.jpg").write_text("no picture")
    finished = start(*small(shop))
    assert finished.returncode == 2
    error = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "queries.csv, row 16, column 'image'" in error[0], finished.stderr
    assert not (shop / "prepared").exists() or not list((shop / "prepared").iterdir())
