"""Values of a run's config that no constructor takes are checked first, with one-line errors."""

from datetime import timedelta
from pathlib import Path

import pytest

from mim_lightning.config import build_partial, compose, save_config
from mim_lightning.data.sampling.negative_table import write_negatives
from mim_lightning.interruption import STOPPED_AFTER
from mim_lightning.run import NOT_IN_RUN_ID_OF, Run, identify
from mim_lightning.train_validation import parse_max_time, validate_kinds


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


def test_a_time_limit_is_read_as_lightning_reads_it() -> None:
    assert parse_max_time(None) is None
    assert parse_max_time("01:12:00:05") == timedelta(days=1, hours=12, seconds=5)
    assert parse_max_time({"hours": 1.5}) == timedelta(minutes=90)
    for wrong in ("12h", "12:00:00", 5, {"hour": 1}, {"hours": "a"}, {}, {"hours": -1}, {"hours": 0}, "00:00:00:00"):
        with pytest.raises(ValueError, match=r"trainer.max_time=.*: give DD:HH:MM:SS, as 00:12:00:00, or {hours: 12}"):
            parse_max_time(wrong)  # type: ignore[arg-type]


def test_a_run_that_a_time_limit_ended_is_finished_until_it_has_more_time(tmp_path: Path) -> None:
    run = Run("a", tmp_path)
    assert not run.is_finished()
    run.write_results({"step": 5, STOPPED_AFTER: 60.5})
    assert [run.is_finished(limit) for limit in ("00:00:01:00", {"minutes": 2}, None)] == [True, False, False]
    run.write_results({"step": 9})
    assert run.is_finished() and run.is_finished({"minutes": 2})


def test_a_time_limit_is_no_part_of_an_id_unless_it_was_when_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"paths.runs={tmp_path}"]
    limited = [*words, "trainer.max_time=00:01:00:00"]
    plain = identify(compose("train", words))[0]
    assert identify(compose("train", limited))[0] == plain
    with monkeypatch.context() as before:
        before.setitem(NOT_IN_RUN_ID_OF, "trainer", tuple({*NOT_IN_RUN_ID_OF["trainer"]} - {"max_time"}))
        former, config, _ = identify(compose("train", limited))
    assert former != plain
    save_config(config, former.config_path)
    again = compose("train", limited)
    again["run"]["command"] = "mim train"
    found, config, _ = identify(again)
    assert found == former and "command" not in config["run"]  # without the limit it would start another run
    assert identify(compose("train", [*words, "trainer.max_time=00:02:00:00"]))[0] == plain


def test_a_given_id_is_not_that_of_a_run_on_data_with_other_content(tmp_path: Path) -> None:
    path = tmp_path / "negatives.parquet"
    words = [f"paths.runs={tmp_path}", "run.id=first", "data/sampling=hard_negatives", f"data.sampling.table={path}"]
    write_negatives(path, {"query_id": ["q"], "negative_ids": [["a"]]})
    run, config, _ = identify(compose("train", words))
    save_config(config, run.config_path)
    write_negatives(path, {"query_id": ["q"], "negative_ids": [["b"]]})
    with pytest.raises(ValueError, match=r"run\.id=first: .*data with other content; give another run\.id"):
        identify(compose("train", words))


def test_a_run_with_a_given_id_and_a_time_limit_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = [f"paths.runs={tmp_path}", "run.id=first", "trainer.max_time=00:01:00:00"]
    run, config, _ = identify(compose("train", limited))
    save_config(config, run.config_path)
    for words in (limited, limited[:2], [*limited[:2], "trainer.max_time=00:02:00:00"]):
        assert identify(compose("train", words))[0] == run, words
    with monkeypatch.context() as before:  # a run of the time when the limit was part of the digest
        before.setitem(NOT_IN_RUN_ID_OF, "trainer", tuple({*NOT_IN_RUN_ID_OF["trainer"]} - {"max_time"}))
        _, config, _ = identify(compose("train", [limited[0], "run.id=former", limited[2]]))
    save_config(config, tmp_path / "former" / "config.yaml")
    for limit in (limited[2], "trainer.max_time=null", "trainer.max_time=00:02:00:00"):
        former, config, _ = identify(compose("train", [limited[0], "run.id=former", limit]))
        assert former.run_id == "former" and identify(config)[0] == former, "a launched process is given the config"
    save_config(config, former.config_path)  # it goes on with another limit
    assert identify(compose("train", [limited[0], "run.id=former"]))[0] == former
    with pytest.raises(ValueError, match=r"run\.id=first: .* differs first in optim\.lr"):
        identify(compose("train", [*limited, "optim.lr=0.5"]))
    run.config_path.write_text("{")
    with pytest.raises(ValueError, match=r"config\.yaml: damaged"):
        identify(compose("train", limited))


def test_a_table_of_hard_negatives_is_known_by_its_content(tmp_path: Path) -> None:
    def run_of(name: str, product_id: str) -> Run:
        path = tmp_path / name
        write_negatives(path, {"query_id": ["q"], "negative_ids": [[product_id]]})
        words = ["data/sampling=hard_negatives", f"data.sampling.table={path}", f"paths.runs={tmp_path}"]
        return identify(compose("train", words))[0]

    first = run_of("a.parquet", "x")
    assert run_of("a.parquet", "y") != first and run_of("b.parquet", "x") == first
    with pytest.raises(ValueError, match=r"data\.sampling\.table=nowhere: no such file; .*mine. writes one"):
        identify(compose("train", ["data/sampling=hard_negatives", "data.sampling.table=nowhere"]))
