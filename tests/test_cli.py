"""Texts on the command line reach their key as typed."""

import re
from importlib import import_module
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mim_lightning import cli
from mim_lightning.cli import (
    _naming_removed,
    compose_arguments,
    quote_value,
    validate_groups,
    validate_keys,
    validate_options,
    validate_sections,
)
from mim_lightning.former_names import present_overrides


@pytest.mark.parametrize(
    "text", ["[red] mug", "a, b: c", "it's", '"two" words', "${oc.env:HOME}", "=SUM(A1)", "50% {off}"]
)
def test_texts_of_users_are_taken_verbatim(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([quote_value(f"text={text}", ["text"])])
    assert str(override.value()).replace("\\${", "${") == text


def test_lists_and_null_keep_their_meaning() -> None:
    parser = OverridesParser.create()
    (images, nothing) = parser.parse_overrides(
        [quote_value(a, ["image"]) for a in ("image=[a.jpg,b.jpg]", "image=null")]
    )
    assert (images.value(), nothing.value()) == (["a.jpg", "b.jpg"], None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=1", "--hepl"], "unrecognized arguments: --hepl; see mim train --help"),
        (["--cfg"], "argument --cfg/-c: expected one argument; see mim train --help"),
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
    ],
)
def test_an_option_that_hydra_does_not_have_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        validate_options("train", arguments)


def test_options_of_hydra_are_taken() -> None:
    for arguments in (["--help"], ["-m", "seed=1,2"], ["--cfg", "job", "--package", "optim"], ["--version"], ["a=-1"]):
        validate_options("train", arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model", "'model': is no <key>=<value>; quote"),
        ("seed=(", "quote a value with spaces, commas or brackets, as"),
        ("data.=3", "'data.=3': the key has nothing beside a dot; give <section>.<key>=<value>"),
        ("+data..folder=shop", "'+data..folder=shop': the key has nothing beside a dot"),
        ("~data.", "'~data.': the key has nothing beside a dot"),
    ],
)
def test_an_argument_that_cannot_be_parsed_is_named_with_what_is_right(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        compose_arguments("train", [argument])
    assert "\n" not in str(error.value) and "hydra.cc" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("train", "+sed=2", "no config key 'sed'; did you mean 'seed'?"),
        ("train", "+opti.lr=2", "no config key 'opti.lr'; did you mean 'optim.lr'?"),
        ("prepare", "++trainer.max_epochs=2", "no config key 'trainer.max_epochs'"),
    ],
)
def test_a_section_that_nothing_reads_is_refused(name: str, argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        validate_sections(name, ["seed=3", argument])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ["+experiment=grocery", "++trainer.max_epochs=2", "+monitor=x", "-m", "seed=1,2"]),
        ("train", ["+width=64", "embed_dim=${width}"]),
        ("train", ["+own.key=1", "--config-dir=there"]),
        ("evaluate", ["data=manifest", "++data.source.columns.queries.kind=k", "+hydra.verbose=true"]),
        ("train", ["-cd", "..", "-cd", "/a/../b", "-cd", "a/.."]),
        ("train", ["data/sampling=grouped", "data.folder=../a..b/", "paths.runs=."]),
    ],
)
def test_keys_that_are_read_are_taken(name: str, arguments: list[str]) -> None:
    validate_keys(arguments)
    validate_sections(name, arguments)


def test_an_option_given_to_a_group_as_to_a_key_is_refused() -> None:
    arguments = present_overrides(["data.order=grouped"])
    with pytest.raises(ValueError, match="data/sampling is a group of options; choose one by data/sampling=grouped"):
        validate_groups(arguments)
    with pytest.raises(ValueError, match="choose one by data/splits=product_disjoint"):
        validate_groups(present_overrides(["++data.protocol=disjoint"]))
    validate_groups(["data/sampling=grouped", "data.sampling=null", "data.sampling.mine=grouped", "seed=1", "-m", "~x"])
    validate_groups([f"data.sampling={{_target_: {'mine' * 100}}}", "data.name=grouped"])


def test_a_removed_key_that_is_needed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train", "seed=1", "~trainer.devices", "~callbacks.last=1"])
    error = KeyError("devices")
    named = _naming_removed(error)
    assert isinstance(named, ValueError) and named.__cause__ is error
    assert str(named) == "trainer.devices: is required; give trainer.devices=<value> instead of ~trainer.devices"
    for other in (KeyError("seed"), KeyError(), ValueError("devices")):
        assert _naming_removed(other) is other


def test_the_command_line_is_kept_with_its_folder_data_and_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = SimpleNamespace(task=["++trainer.max_epochs=2", "a=b c", "sweep=grid"])
    config = SimpleNamespace(overrides=overrides, runtime=SimpleNamespace(cwd="/my work"))
    monkeypatch.setattr(cli, "HydraConfig", SimpleNamespace(initialized=lambda: True, get=lambda: config))
    own = ["--config-dir", "my conf", "-cn=mine", "hydra.searchpath=[file://x]"]
    monkeypatch.setattr("sys.argv", ["mim train", "-m", *own, "a=b c"])
    monkeypatch.setenv("MIM_PREPARED_DIR", "/my data")
    monkeypatch.delenv("MIM_DATA_DIR", raising=False)
    assert cli.command_line("train") == (
        "cd '/my work' && MIM_PREPARED_DIR='/my data' mim train --config-dir 'my conf' -cn=mine "
        "'hydra.searchpath=[file://x]' trainer.max_epochs=2 'a=b c'"
    )
    overrides.task.append("trial={number: 0, storage: postgres://u:secret@h}")
    assert cli.command_line("train") is None


@pytest.mark.parametrize(("variable", "kept"), [("LOCAL_RANK", None), ("HOME", "mim train")])
def test_the_processes_of_another_launcher_keep_no_command(
    monkeypatch: pytest.MonkeyPatch, variable: str, kept: str | None
) -> None:
    train = import_module("mim_lightning.train")
    got: list[str | None] = []
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", cli.FROZEN_CONFIG):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "0")
    monkeypatch.setattr(train, "command_line", lambda name: f"mim {name}")
    nothing = SimpleNamespace(read_results=lambda: None)
    monkeypatch.setattr(train, "train_run", lambda config: got.append(config["run"].get("command")) or nothing)
    train.train({"run": {}, "monitor": "x"})
    assert got == [kept]
