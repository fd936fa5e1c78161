"""Values of a run's config that no constructor takes are checked first, with one-line errors."""

from pathlib import Path

import pytest

from mim_lightning.config import build_partial, compose
from mim_lightning.run import Run, identify, validate_kinds


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("embed_dim=abc", "embed_dim=abc: give a whole number or null"),
        ("monitor=null", "monitor=null: give a text"),
        ("run.id=null", "run.id=null: give a text"),
        ("run.folder=null", "run.folder=null: give a text"),
        ("model.pairs=null", "model.pairs=null: give a mapping"),
        ("directions=null", "directions=null: give a mapping"),
        ("loss.function=null", "loss.function=null: give a mapping"),
        ("paths.runs=null", "paths.runs=null: give a text"),
        ("model.towers.query_image=null", "model.towers.query_image=null: give a mapping"),
        ("model.towers.query_image.encoder=null", "model.towers.query_image.encoder=null: give a mapping"),
        ("~trainer._target_", "trainer._target_=null: give a text"),
        ("~data._target_", "data._target_=null: give a text"),
        ("~schedule", "schedule=null: give a mapping"),
        ("seed=x", "seed=x: give a whole number from 0"),
    ],
)
def test_an_invalid_value_names_its_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        validate_kinds(compose("train", [override]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.id=../../evil"], "run.id=../../evil: names the run's folder"),
        (["run.id=/evil"], "run.id=/evil: names the run's folder"),
        (["run.id=."], "run.id=.: names the run's folder"),
        (["run.id=../evil", "run.digest=0"], "run.id=../evil: names the run's folder"),
        (["data.name=../../evil"], "run.name=4tower-../../evil-seed1: names the run's folder"),
        (["run.name=/evil"], "run.name=/evil: names the run's folder"),
    ],
)
def test_no_run_is_outside_the_folder_of_runs(overrides: list[str], message: str) -> None:
    config = compose("train", overrides)
    validate_kinds(config)
    with pytest.raises(ValueError, match=f"^{message}"):
        identify(config)


@pytest.mark.parametrize("override", ["embed_dim=null", "run.id=2024", "run.id=group/name", "logger=none", "seed=0"])
def test_valid_values_pass(override: str) -> None:
    config = compose("train", [override])
    validate_kinds(config)
    run, config, _ = identify(config)
    assert run.run_id == config["run"]["id"] == str(config["run"]["id"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.warmup_fraction=abc", "schedule.warmup_fraction=abc: give a number"),
        ("+schedule.warmup_shar=0.1", "no config key 'schedule.warmup_shar'; did you mean 'warmup_fraction'"),
        ("+optim.optimizer.weight_decy=0.1", "no config key 'optim.optimizer.weight_decy'"),
        ("+optim.optimizer.fused=maybe", "optim.optimizer.fused=maybe: give true or false or null"),
    ],
)
def test_options_of_deferred_calls_are_checked_at_the_start(override: str, message: str) -> None:
    config = compose("train", [override])
    with pytest.raises(ValueError, match=message):
        for section, part in (("schedule", config["schedule"]), ("optim.optimizer", config["optim"]["optimizer"])):
            build_partial(part, section)


def test_the_options_of_every_optimizer_and_schedule_pass() -> None:
    for optim, schedule in (("adamw", "cosine"), ("sgd", "constant")):
        config = compose("train", [f"optim={optim}", f"schedule={schedule}", "+optim.optimizer.foreach=true"])
        assert callable(build_partial(config["schedule"], "schedule"))
        assert callable(build_partial(config["optim"]["optimizer"], "optim.optimizer"))


def test_results_of_an_older_version_are_read_under_their_present_keys(tmp_path: Path) -> None:
    run = Run("run", tmp_path)
    run.write_results({"val/a/hit@1": 0.5, "untouched/a/hit@1": 0.25})
    assert run.read_results() == {"val/a/hit@1": 0.5, "initial/a/hit@1": 0.25}
