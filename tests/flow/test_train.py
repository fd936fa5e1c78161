"""A run from tables to results: it learns, writes all its files, resumes, and does not run twice."""

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mim_lightning import load
from mim_lightning.config import compose
from mim_lightning.encoders import TinyImage
from mim_lightning.evaluate import evaluate
from mim_lightning.run import Run, identify
from mim_lightning.run_states import read_states
from tests.conftest import train_on_shop
from tests.flow.entry_points import start, timeless, weights
from tests.shop import small

Fit = Callable[..., Run]


def logged(run: Run) -> list[tuple[str, ...]]:
    """Return the positions of the rows in a run's CSV files, and the columns with values."""
    (path,) = (run.folder / "csv").glob("*/metrics.csv")
    with path.open(newline="") as file:
        rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    return [(row.get("epoch", ""), row["step"], *sorted(row)) for row in rows]


@pytest.mark.parametrize("towers", ["2tower", "3tower", "4tower"])
def test_a_few_seconds_of_training_learn(fit: Fit, towers: str) -> None:
    monitor = compose("train", [f"model={towers}"])["monitor"]
    options = ["trainer.max_epochs=25", "trainer.check_val_every_n_epoch=25", "optim.lr=3e-3", "data.augment=null"]
    results = fit(f"model={towers}", *options).read_results()
    assert results is not None
    assert results[monitor] == 1.0
    assert results[monitor] > results[monitor.replace("val/", "initial/")]


def test_training_may_have_images_of_another_size_than_evaluation(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: dict[bool, set[int]] = {True: set(), False: set()}  # by whether the encoder is in training
    forward = TinyImage.forward

    def spy(self: TinyImage, inputs: torch.Tensor) -> torch.Tensor:
        sides[self.training].add(inputs.shape[-1])
        return forward(self, inputs)

    monkeypatch.setattr(TinyImage, "forward", spy)
    run = fit("model=2tower", "data.augment.image_size=40", f"paths.runs={tmp_path}")
    assert sides[True] == {40} and {32} <= sides[False] <= {32, 40}  # 40: one image, which shows that it takes them
    assert load(run.last_checkpoint).prepare_images([Image.new("RGB", (50, 40))]).shape[-1] == 32


def test_a_run_writes_all_its_files(fit_once: Fit) -> None:
    run = fit_once()
    assert {path.name for path in run.folder.iterdir()} == {
        "config.yaml",
        "results.json",
        "report.html",
        "hits.png",
        "evaluation",
        "browser",
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
            low, high = (results[f"val/{direction}/{metric}/{end}"] for end in ("low", "high"))
            assert 0 <= low <= results[f"val/{direction}/{metric}"] <= high <= 1
            assert f"initial/{direction}/{metric}" in results


def test_evaluate_gives_the_same_numbers_from_the_file_alone(fit_once: Fit, tmp_path: Path) -> None:
    run = fit_once()
    output = tmp_path / "evaluated"
    config = compose("evaluate", [f"checkpoint={run.best_checkpoint}", f"output={output}", "trainer=cpu"])
    evaluated = evaluate(config)
    recorded = run.read_results()
    assert recorded is not None
    assert evaluated == {
        key: value for key, value in recorded.items() if not key.startswith(("initial/", "epoch", "step", "fit_"))
    }
    assert json.loads((output / "results.json").read_text()) == evaluated
    assert (output / "hits.png").is_file()


def test_a_finished_run_is_reported_and_not_trained_again(fit_once: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit_once()
    before = run.best_checkpoint.stat().st_mtime_ns
    assert train_on_shop(run.folder.parents[1]) == run
    assert run.best_checkpoint.stat().st_mtime_ns == before
    assert "finished before" in capsys.readouterr().out


def test_the_id_is_stable_and_changes_with_the_result(shop: Path) -> None:
    def run_id(*overrides: str) -> str:
        return identify(compose("train", small(shop, *overrides)))[0].run_id

    first = run_id()
    elsewhere = [
        "trainer.devices=2",
        "data.num_workers=3",
        "logger=wandb",
        "paths.runs=elsewhere",
        "callbacks.last=null",
    ]
    assert run_id() == first == run_id(*elsewhere)
    moved = shop / "moved"
    moved.mkdir()
    (shop / "shop").rename(moved / "shop")
    assert first == identify(compose("train", small(moved)))[0].run_id
    ids = {first}
    for change in ("seed=2", "model=3tower", "optim.lr=0.5", "callbacks.retrieval_eval.depth=20", "data.batch_size=4"):
        ids.add(identify(compose("train", small(moved, change)))[0].run_id)
    table = moved / "shop" / "products.csv"
    table.write_text(table.read_text().replace("red disc", "red ball"))
    ids.add(identify(compose("train", small(moved)))[0].run_id)
    assert len(ids) == 7


def test_a_given_id_belongs_to_one_config(fit: Fit) -> None:
    fit("run.id=mine")
    with pytest.raises(ValueError, match=r"run\.id=mine: .* differs first in optim\.lr: 0\.001 there, 0\.5 here"):
        fit("run.id=mine", "optim.lr=0.5")


def test_init_from_a_3_tower(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    three = fit("model=3tower")
    run = fit("model=4tower", f"init_from={three.best_checkpoint}", "optim.lr=0.0")
    assert "tensors loaded into towers.query_image" in caplog.text
    for name, value in weights(three, "best").items():
        if name.startswith("matcher."):
            assert torch.equal(value, weights(run, "best")[name])


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_killed_and_resumed_equals_not_stopped(shop: Path, fit: Fit, fit_once: Fit, workers: int) -> None:
    whole = fit_once()
    parts = ["callbacks.last.every_n_train_steps=1", f"paths.runs={shop}/parts", f"data.num_workers={workers}"]
    # in the second of two epochs of three steps; in the bar's place, for the run's id knows other callbacks
    kill = "callbacks.progress_bar={_target_: tests.flow.kill_callback.KillAt, step: 4}"
    killed = start(*small(shop, *parts, kill))
    assert killed.returncode == -9, killed.stderr
    (found,) = read_states(shop / "parts")
    assert found.state == "stopped"
    assert str(found.next_command).endswith(f" {shlex.join(['train', *small(shop, *parts, kill)])}")
    resumed = fit(*parts)
    assert resumed.run_id == whole.run_id
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=1e-6)
    assert timeless(resumed) == pytest.approx(timeless(whole), abs=1e-6)


@pytest.mark.slow
def test_a_killed_run_with_adapters_ends_as_one_that_was_not(shop: Path, fit: Fit) -> None:
    pytest.importorskip("peft", reason="needs the extra: pip install 'mim-lightning[lora]'")
    adapters = ["model.towers.product_text.train=lora", "model.lora.rank=2", "model.lora.dropout=0.1", "optim.lr=1e-2"]
    whole = fit(*adapters)
    parts = [*adapters, "callbacks.last.every_n_train_steps=1", f"paths.runs={shop}/parts"]
    kill = "callbacks.progress_bar={_target_: tests.flow.kill_callback.KillAt, step: 4}"
    assert start(*small(shop, *parts, kill)).returncode == -9
    resumed = fit(*parts)
    assert resumed.run_id == whole.run_id and timeless(resumed) == timeless(whole)
    expected = weights(whole)
    assert any("lora_A" in name for name in expected)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


def test_resumed_by_epochs_remembers_its_best(shop: Path, fit: Fit) -> None:
    longer = ["trainer.max_epochs=4", "optim.lr=3e-3"]
    whole = fit(*longer)
    killed = start(
        *small(
            shop,
            *longer,
            f"paths.runs={shop}/parts",
            "callbacks.progress_bar={_target_: tests.flow.kill_callback.KillAt, step: 7}",
        )
    )
    assert killed.returncode == -9, killed.stderr
    resumed = fit(*longer, f"paths.runs={shop}/parts")
    assert logged(resumed) == logged(whole), "one file, and each step in it once"
    assert timeless(resumed) == pytest.approx(timeless(whole), abs=1e-6)


def test_an_invalid_image_or_a_missing_split_stops_before_anything_is_written(shop: Path) -> None:
    (shop / "shop" / "street3-1.jpg").write_text("no picture")
    finished = start(*small(shop))
    assert finished.returncode == 2
    error = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "queries.csv, row 16, column 'image'" in error[0], finished.stderr
    assert (shop / "prepared" / "manifest-check" / "check.html").is_file()
    assert not (shop / "prepared" / "manifest").exists() and not list(shop.rglob("*.tar"))
    assert not (shop / "runs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.val_split=test", "no split 'test'; it has \\['train', 'val'\\]"),
        ("data.shards.train_split=trian", "has no row 'trian'"),
        ("callbacks.best=null", "callbacks.best: cannot be left out"),
        ("monitor=val/nothing/hit@1", "monitor=val/nothing/hit@1: is no metric of a direction"),
        ("monitor=val/image_to_image/hit@2", "is no metric; there are val/image_to_image/hit@1"),
        (
            "+model.pairs.query_product.wieght=2",
            "no config key 'model.pairs.query_product.wieght'; did you mean 'weight'",
        ),
        ("+loss.init_scal=2", "no config key 'loss.init_scal'; did you mean 'init_scale'"),
        ("+optim.lrr=2", "no config key 'optim.lrr'; did you mean 'lr'"),
        ("+directions.x={query: query_image, galery: product}", "unexpected keyword argument 'galery'"),
    ],
)
def test_mistakes_deep_inside_are_named(fit: Fit, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(override)


def test_a_run_needs_no_logger(fit: Fit) -> None:
    assert fit("logger=none").read_results() is not None


def test_directions_without_queries_are_left_out_and_reported(
    shop: Path, fit: Fit, caplog: pytest.LogCaptureFixture
) -> None:
    queries = shop / "shop" / "queries.csv"
    header, *rows = queries.read_text().splitlines()
    cells = [row.split(",") for row in rows]  # split, image, text, product_id
    queries.write_text("\n".join([header, *(f"{split},{image},,{product}" for split, image, _, product in cells)]))
    results = fit().read_results()
    assert "directions.text_to_product: no validation query has a query_text: left out" in caplog.text
    assert results is not None and {key.split("/")[1] for key in results if key.startswith("val/")} == {
        *("image_to_image", "image_to_text", "image_to_product", "query_to_product"),
    }
