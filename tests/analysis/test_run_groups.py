"""Runs that differ only in seed and fold are one group; its label is what distinguishes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.analysis.run_groups import group_runs
from tests.analysis.evaluations import config, plain_rows, write_evaluation

NOT_IN_RUN_ID = ("run", "paths", "trainer.devices", "data.num_workers")


def record(folder: Path, name: str, *args: Any, **more: Any) -> EvaluationRecord:
    return write_evaluation(folder / name, plain_rows([1, 2]), config(*args, **more))


def test_seeds_and_folds_are_runs_of_one_arm(tmp_path: Path) -> None:
    given = [
        record(tmp_path, "a", "4tower", 2, 1),
        record(tmp_path, "b", "2tower", 1, 0),
        record(tmp_path, "c", "4tower", 1, 1),
        record(tmp_path, "d", "4tower", 1, 0, trainer__devices=8, data__num_workers=9),
    ]
    first, second = group_runs(given, NOT_IN_RUN_ID)
    assert (first.label, second.label) == ("4tower", "2tower")
    assert {fold: [r.folder.name for r in records] for fold, records in first.records.items()} == {
        0: ["d"],
        1: ["c", "a"],
    }
    assert (first.num_runs, first.seeds) == (3, [1, 2])
    assert first.describe() == "3 runs, seeds 1, 2, folds 0, 1"
    assert second.describe() == "1 run, seed 1"


def test_relevant_keys_separate_groups(tmp_path: Path) -> None:
    given = [record(tmp_path, "a"), record(tmp_path, "b", seed=2, trainer__devices=8)]
    assert len(group_runs(given, ("run", "paths"))) == 2
    assert len(group_runs(given, NOT_IN_RUN_ID)) == 1


def test_arms_of_one_model_are_called_by_the_keys_that_differ(tmp_path: Path) -> None:
    given = [
        record(tmp_path, "a", loss__temperature=0.1),
        record(tmp_path, "b", loss__temperature=0.5),
        record(tmp_path, "c", "3tower"),
    ]
    assert [arm.label for arm in group_runs(given[:2], NOT_IN_RUN_ID)] == [
        "loss.temperature=0.1",
        "loss.temperature=0.5",
    ]
    assert [arm.label for arm in group_runs(given, NOT_IN_RUN_ID)] == [
        "2tower loss.temperature=0.1",
        "2tower loss.temperature=0.5",
        "3tower",
    ]


def test_many_differing_keys_are_cut_short(tmp_path: Path) -> None:
    keys = {f"optim__key{number}": 1 for number in range(6)}
    given = [record(tmp_path, "a", **keys), record(tmp_path, "b", **dict.fromkeys(keys, 2))]
    assert group_runs(given, NOT_IN_RUN_ID)[1].label == "optim.key0=2 optim.key1=2 optim.key2=2 +3"


def test_another_checkpoint_of_a_run_is_an_arm(tmp_path: Path) -> None:
    names = (("best", 1), ("last", 1), ("best2", 2), ("last2", 2))
    given = [record(tmp_path, name, seed=seed) for name, seed in names]
    arms = group_runs(given, NOT_IN_RUN_ID)
    assert [[r.folder.name for r in arm.records[0]] for arm in arms] == [["best", "best2"], ["last", "last2"]]
    assert [arm.label for arm in arms] == ["2tower (best)", "2tower (last)"]


def test_folders_differ_between_machines_and_say_nothing(tmp_path: Path) -> None:
    given = [
        record(tmp_path, "a", seed=1, data__source={"root": "/here/grocery"}),
        record(tmp_path, "b", seed=2, data__source={"root": "/there/grocery"}),
        record(tmp_path, "c", seed=1, data__source={"root": "/here/fashion"}),
    ]
    assert [arm.num_runs for arm in group_runs(given, NOT_IN_RUN_ID)] == [2, 1]


def test_a_folder_given_twice_is_refused(tmp_path: Path) -> None:
    one = record(tmp_path, "a")
    with pytest.raises(ValueError, match="is given twice"):
        group_runs([one, one], NOT_IN_RUN_ID)


def test_configs_are_compared_by_value(tmp_path: Path) -> None:
    # one config as it was composed, one as it came back from JSON
    one, other = record(tmp_path, "a"), record(tmp_path, "b", seed=2)
    other.facts.config.update(json.loads(json.dumps({"loss": other.facts.config["loss"]}, sort_keys=True)))
    (arm,) = group_runs([one, other], NOT_IN_RUN_ID)
    assert arm.num_runs == 2


def test_runs_that_start_from_other_models_are_other_arms(tmp_path: Path) -> None:
    def start(model: str, seed: int) -> str:
        return f"/runs/{model}-shop-fold{seed}of5-seed{seed}-0123abcd/checkpoints/best.ckpt"

    given = [
        record(tmp_path, f"{model}{seed}", seed=seed, init_from=start(model, seed))
        for model, seed in (("2tower", 1), ("3tower", 1), ("3tower", 2), ("2tower", 2))
    ]
    arms = group_runs(given, NOT_IN_RUN_ID)
    assert [arm.label for arm in arms] == ["init_from=2tower-shop/best.ckpt", "init_from=3tower-shop/best.ckpt"]
    assert [[r.folder.name for rs in arm.records.values() for r in rs] for arm in arms] == [
        ["2tower1", "2tower2"],
        ["3tower1", "3tower2"],
    ]


def test_many_groups_are_named_by_their_differences_from_the_first(tmp_path: Path) -> None:
    keys = {f"loss__pair{number}": 1 for number in range(5)}
    given = [record(tmp_path, "all", **keys)]
    given += [record(tmp_path, f"without{number}", **(keys | {f"loss__pair{number}": 0})) for number in range(5)]
    labels = [arm.label for arm in group_runs(given, NOT_IN_RUN_ID)]
    assert labels == ["2tower", *(f"loss.pair{number}=0" for number in range(5))]
