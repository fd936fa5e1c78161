"""Tracked queries of real runs: the tables in the run's folder, and in an offline W&B run."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning import LightningModule, Trainer
from PIL import Image

from mim_lightning.analysis.query_history import read_history, read_tracked
from mim_lightning.analysis.record import read_record
from mim_lightning.config import compose
from mim_lightning.lit import trainer as trainer_module
from mim_lightning.lit.callbacks.tracked_queries import TrackedQueries
from mim_lightning.run import Run, identify
from mim_lightning.train import train
from mim_lightning.wandb_workspace import build_workspace
from tests.flow.entry_points import start
from tests.lit.offline_run import OfflineRun, read_offline_runs
from tests.shop import small, write_shop

EPOCHS = [-1, 0, 1, 2]
LEARN = [
    "trainer.max_epochs=3",
    "optim.lr=3e-3",
    "trainer.log_every_n_steps=1",
    "callbacks.tracked_queries.num_queries=4",
]
OFFLINE = ["logger=wandb", "logger.wandb.offline=true"]
STEP, TABLE = "trainer/global_step", "tracked_queries/image_to_image/nrows"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One run of three epochs with W&B offline; its staging folder is in the run's parent."""
    folder = tmp_path_factory.mktemp("browser")
    write_shop(folder / "shop", num_products=7)
    overrides = small(folder, *LEARN, *OFFLINE, "results_from=last")
    wandb.teardown()  # its process, which another test may have started, writes relative to the folder of its start
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = compose("train", [*overrides, "paths.runs=runs"])  # relative, as by default
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_DATA_DIR", str(folder / "staged"))
        train(config)
    run = identify(config)[0]
    yield replace(run, folder=folder / run.folder)


@pytest.fixture(scope="module")
def offline(trained: Run) -> OfflineRun:
    (found,) = read_offline_runs(trained.folder)
    return found


def passes(offline: OfflineRun) -> list[Any]:
    return [artifact for artifact in offline.artifacts if artifact.name.startswith("browser-")]


def test_every_direction_is_tracked_from_epoch_minus_one(trained: Run) -> None:
    history = read_history(trained.folder)
    directions = compose("train", ["model=4tower"])["directions"]
    # no query of this shop asks for another product than it shows
    assert set(history) == set(directions) - {"composed_to_other_product"}
    for queries in history.values():
        assert len(queries) == 4
        assert all([found.epoch for found in ranks] == EPOCHS for ranks in queries.values())
    assert len({frozenset(queries) for queries in history.values()}) == 1  # the same queries in each


def test_ranks_and_hits_are_those_of_the_evaluation(trained: Run) -> None:
    record = read_record(trained.folder)  # of the last checkpoint, like the last pass
    last = [row for row in read_tracked(trained.folder) if row.epoch == EPOCHS[-1]]
    assert len(last) == 4 * len(record.directions)
    for row in last:
        expected = record.directions[row.direction]
        place = expected.query_ids.index(row.query_id)
        assert row.rank == expected.ranks[place]
        assert row.hit_ids == expected.hit_ids[place][:5]
        assert row.hit_scores == pytest.approx(expected.hit_scores[place][:5], abs=1e-5)
        assert row.hit_is_relevant == expected.hit_is_relevant[place][:5]
        assert row.truth_ids == [expected.unit_ids[place]]  # one product a query in this shop
        assert row.text == expected.texts[place]
        assert row.segments["category"] == expected.segments["category"][place]


def test_one_axis_for_everything(offline: OfflineRun) -> None:
    assert [row["_step"] for row in offline.history] == list(range(len(offline.history)))
    axis = [row[STEP] for row in offline.history]
    assert axis == sorted(axis)
    for epoch in EPOCHS:
        (metrics,) = [row for row in offline.history if row.get("epoch") == epoch and "val/image_to_image/hit@1" in row]
        (tables,) = [row for row in offline.history if row.get("epoch") == epoch and TABLE in row]
        assert metrics[STEP] == tables[STEP]
        assert tables[TABLE] == 4
    assert any("train/loss" in row for row in offline.history)


def test_tables_agree_with_the_rows(trained: Run, offline: OfflineRun) -> None:
    rows = read_tracked(trained.folder)
    assert len(passes(offline)) == len(EPOCHS)
    before: dict[str, Any] = {}
    for epoch, artifact in zip(EPOCHS, passes(offline), strict=True):
        table = artifact.table("composed_to_product")
        expected = [row for row in rows if row.epoch == epoch and row.direction == "composed_to_product"]
        assert [cells["query"] for cells in table] == [row.query_id for row in expected]
        for cells, row in zip(table, expected, strict=True):
            assert (cells["text"], cells["rank"], cells["segment: category"]) == (
                row.text,
                row.rank,
                row.segments["category"],
            )
            assert cells["rank before"] == before.get(row.query_id)
            assert cells["best rank"] == row.best_rank
            assert cells["ranks"].endswith(str(row.rank)) and len(cells["ranks"].split(" > ")) == epoch + 2
            hit = cells["hit 1"]
            word = "right" if row.hit_is_relevant[0] else "wrong"
            assert hit["caption"].startswith(f"{row.hit_scores[0]:.3f} {word}")
            assert {hit["path"], cells["image"]["path"], cells["truth"]["path"]} <= set(artifact.files)
        before = {row.query_id: row.rank for row in expected}


def test_images_are_stored_once(trained: Run, offline: OfflineRun) -> None:
    digests: dict[str, set[str]] = {}
    for artifact in passes(offline):
        pictures = {name: entry for name, entry in artifact.files.items() if name.startswith("pictures/")}
        assert len(pictures) > 8
        for name, (digest, path) in pictures.items():
            digests.setdefault(name, set()).add(digest)
            assert path == trained.folder / "browser" / name  # the original file, no copy
    assert all(len(found) == 1 for found in digests.values())  # of one artifact W&B keeps each digest once
    on_disk = {f"pictures/{path.name}" for path in (trained.folder / "browser" / "pictures").iterdir()}
    assert on_disk == set(digests)
    staged = [path for path in (trained.folder.parents[1] / "staged").rglob("*") if path.is_file()]
    assert staged and all(path.read_bytes()[:1] == b"{" for path in staged)  # tables alone
    # the grid of hits at the end, which the run logs besides
    assert len(list(trained.folder.glob("wandb/offline-run-*/files/media/images/**/*.*"))) == 1


def test_images_show_the_right_item(trained: Run, offline: OfflineRun) -> None:
    cells = passes(offline)[-1].table("image_to_image")[0]
    with Image.open(trained.folder / "browser" / cells["truth"]["path"]) as picture:
        assert picture.size == (cells["truth"]["width"], cells["truth"]["height"])
        found = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    number = int(cells["truth ids"])
    with Image.open(trained.folder.parents[1] / "shop" / f"shop{number}.jpg") as picture:
        expected = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert found == pytest.approx(expected, abs=4)


def test_config_and_final_result_are_there(trained: Run, offline: OfflineRun) -> None:
    assert offline.config["model"]["pairs"]["query_product"]["weight"] == 1.0
    assert offline.config["optim"]["lr"] == 3e-3 and offline.config["model"]["name"] == "4tower"
    results = trained.read_results()
    assert results is not None
    final = {key: value for row in offline.history for key, value in row.items() if key.startswith("result/")}
    assert final == {key.replace("val/", "result/"): value for key, value in results.items() if key.startswith("val/")}


def test_the_dashboard_asks_for_what_a_run_logs(offline: OfflineRun) -> None:
    keys = {key for row in offline.history for key in row}
    assert "train/data_wait_fraction" in keys
    logged = keys | {"/".join(key.split("/")[:2]) for key in keys if key.startswith(("tracked_queries/", "hits/"))}
    logged.add("train/data_wait_share")  # of older runs
    config = {f"{key}.{name}" for key, name in _paths(offline.config)} | set(offline.config)
    pairs = compose("train", ["model=4tower"])["model"]["pairs"]
    spec = build_workspace("e", "p", pairs, "val/image_to_image/hit@1")._to_model().spec.section.panel_bank_config
    asked, patterns, settings = set(), set(), set()
    for panel in (panel for section in spec.sections for panel in section.panels):
        found = panel.model_dump(by_alias=True, exclude_none=True)["config"]
        asked |= {*found.get("metrics", []), *found.get("mediaKeys", []), *found.get("targetKey", "").split()}
        patterns |= {found["metricRegex"]} if "metricRegex" in found else set()
        accessors = [column["accessor"] for column in found.get("columns", [])]
        accessors += [axis for axis in (found.get("xAxis"), found.get("yAxis")) if axis]
        for accessor in accessors:
            kind, _, name = accessor.rpartition(":")
            (settings if kind == "config" else asked).add(name)
        settings |= {found["groupBy"]} if "groupBy" in found else set()
    assert len(asked) > 6 and len(patterns) == 5 and len(settings) > 8
    assert asked <= logged
    assert all(any(re.search(pattern, key) for key in logged) for pattern in patterns)
    assert {name.replace(".value", "", 1) for name in settings} <= config


def _paths(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, part in value.items():
        if isinstance(part, dict):
            yield from ((key, name) for name in part)
            yield from ((f"{key}.{inner}", name) for inner, name in _paths(part))


def test_killed_and_started_again_no_row_is_repeated(
    shop: Path, fit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(shop / "staged"))
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # else W&B's background process outlives the killed one
    whole = fit(*LEARN)
    assert not (whole.folder / "browser" / "pictures").exists()  # without W&B no images are needed
    parts = [*LEARN, *OFFLINE, f"paths.runs={shop}/parts"]
    # one step into the last epoch of three
    killed = start(*small(shop, *parts, "callbacks.progress_bar={_target_: tests.flow.kill_callback.KillAt, step: 7}"))
    assert killed.returncode == -9, killed.stderr
    resumed = fit(*parts)
    found, expected = read_tracked(resumed.folder), read_tracked(whole.folder)
    assert [replace(row, hit_scores=[]) for row in found] == [replace(row, hit_scores=[]) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row.hit_scores == pytest.approx(other.hit_scores, abs=1e-5)
    first, second = read_offline_runs(resumed.folder)
    assert second.resume  # W&B joins them, in order
    parts_of = [[row["epoch"] for row in part.history if TABLE in row] for part in (first, second)]
    assert parts_of[0] == EPOCHS[: len(parts_of[0])]  # W&B writes its log every few seconds, and loses the rest
    assert parts_of[1] == EPOCHS[3:]
    assert [row["_step"] for row in second.history] == list(range(len(second.history)))
    assert all(row[STEP] <= second.history[0][STEP] for row in first.history)


def test_a_failed_run_is_closed_and_logged_as_failed(
    shop: Path, fit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(trainer_module, "validate_trainer", lambda options: None)  # which would raise earlier
    with pytest.raises(ValueError, match="no numbers are published from a partial pass"):
        fit(*OFFLINE, "data.eval_batch_size=2", "+trainer.limit_val_batches=1")
    assert wandb.run is None  # the next run of a sweep would log into it
    (folder,) = (shop / "runs").iterdir()
    for _ in range(100):  # W&B's background process writes the last record after its answer
        (found,) = read_offline_runs(folder)
        if found.exit_code is not None:
            break
        time.sleep(0.1)
    assert found.exit_code == 1


def test_tracking_can_be_switched_off_but_not_with_zero_queries(fit: Callable[..., Run]) -> None:
    assert read_tracked(fit("callbacks.tracked_queries=null").folder) == []
    with pytest.raises(ValueError, match="which is off"):
        TrackedQueries().setup(Trainer(logger=False, barebones=True), LightningModule(), "fit")
    with pytest.raises(ValueError, match="num_queries and num_hits are 1 or more"):
        TrackedQueries(num_queries=0)
