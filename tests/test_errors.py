"""Failures in one line, from one process to another and into a run's folder."""

import errno
from pathlib import Path

import pytest
import yaml
from hydra.errors import CompactHydraException, ConfigCompositionException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from mim_lightning.config import compose, conf_dir
from mim_lightning.errors import (
    ChildError,
    ErrorReport,
    clear_notes,
    is_user_error,
    read_error,
    to_error_report,
    write_error,
    write_note,
)

HINTS = {
    "experiment=smoke": "no option 'smoke' in config group 'experiment'; there are {experiment}",
    "+experiment=smoke": "no option 'smoke' in config group 'experiment'; there are {experiment}",
    "data=mainfest": "no option 'mainfest' in config group 'data'; there are {data}; did you mean 'manifest'?",
    "encoder/text=x": "no option 'x' in config group 'encoder/text'; there are {encoder/text}",
    "trainer=[cpu,x]": "no option 'x' in config group 'trainer'; there are {trainer}",
    "loss.init_scal=3": "no config key 'loss.init_scal'; did you mean 'loss.init_scale' or 'loss.init_bias'?",
    "optim.lr_scale.encoder=0.1": "no config key 'optim.lr_scale'; did you mean 'optim.lr_scales'?",
}

YAML_STARTS, TAB = "<unicode string>", "character '\\t' that cannot start any token"


def yaml_error(text: str) -> Exception:
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.safe_load(text)
    return caught.value


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


LOWER = "; lower data.batch_size, data.eval_batch_size, step.micro_batch_size or data.num_workers"
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})  # torch's
TrialPruned = type("TrialPruned", (Exception,), {})  # Optuna's, by its name


@pytest.mark.parametrize(
    ("error", "kind", "reason", "mendable"),
    [
        (ValueError("optim.lr=-1:\n  give more than 0"), "ValueError", "optim.lr=-1: give more than 0", True),
        (TypeError("no such thing"), "TypeError", "TypeError: no such thing", False),
        (TrialPruned("lags behind"), "TrialPruned", "lags behind", True),
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free.\nSee the notes"),
            "OutOfMemoryError",
            f"CUDA out of memory. Tried to allocate 2.00 GiB{LOWER}",
            True,
        ),
        (MemoryError(), "MemoryError", f"out of memory{LOWER}", True),
        (
            OSError(errno.EMFILE, "", "shop/0.tar"),
            "OSError",
            "shop/0.tar: Too many open files; raise the limit of this shell with ulimit -n",
            True,
        ),
        (yaml_error("a:\n\t- 1"), "ScannerError", f"{YAML_STARTS}, line 2: not valid YAML: found {TAB}", True),
        (
            yaml_error("a: \0"),
            "ReaderError",
            f"{YAML_STARTS}: not valid YAML: special characters are not allowed",
            True,
        ),
        (caused(ConfigCompositionException(), ValueError("x: ${a")), "ConfigCompositionException", "x: ${a", True),
        (ImportError("failed to map segment", path="/x/_duckdb.so"), "ImportError", "failed to map segment", True),
        (
            ImportError("cannot import name 'x'", path="x.py"),
            "ImportError",
            "ImportError: cannot import name 'x'",
            False,
        ),
        (ChildError(ErrorReport("KeyError", "KeyError: 'a'")), "KeyError", "KeyError: 'a'", True),
        (
            MissingConfigException("in Hydra's English", "hydra/launcher/jobli", ["basic"]),
            "MissingConfigException",
            "no option 'jobli' in config group 'hydra/launcher'; there are basic; "
            "more with pip install 'mim-lightning[sweep]'",
            True,
        ),
    ],
)
def test_an_exception_is_reported_in_one_line(error: Exception, kind: str, reason: str, mendable: bool) -> None:
    assert to_error_report(error, "train") == ErrorReport(kind, reason)
    assert to_error_report(error, "serve") == ErrorReport(kind, reason.removesuffix(LOWER)), "which has no such keys"
    assert is_user_error(error) == mendable


def test_an_error_of_a_library_that_has_no_memory_left_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("could not create a primitive")
    assert not is_user_error(error)
    monkeypatch.setattr("mim_lightning.errors.can_map", lambda num_bytes: False)
    assert is_user_error(error)
    assert to_error_report(error, "train").reason == f"out of memory: {error}{LOWER}"
    monkeypatch.setattr("mim_lightning.errors.has_memory_limit", lambda: True)
    reason = f"out of memory within the limit of this process (ulimit -v): {error}{LOWER}"
    assert to_error_report(error, "train").reason == reason


def test_former_groups_in_defaults_lists_of_the_users_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "experiment/mine.yaml": "defaults: [{override /data/protocol: disjoint}, {override /model: 2tower}]",
        "data/mine.yaml": "defaults: [base, {override order: grouped}, _self_]",
        "data/present.yaml": "defaults: [base, {override sampling: grouped}]",
        "list.yaml": "[1, 2]",
        "number.yaml": "defaults: 3",
        "broken.yaml": "a: [",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [
        f"{tmp_path}/data/mine.yaml: data/order=grouped is now data/sampling=grouped",
        f"{tmp_path}/experiment/mine.yaml: data/protocol=disjoint is now data/splits=product_disjoint",
    ]
    for arguments in ([f"--config-dir={tmp_path}"], ["seed=1", "-cd", str(tmp_path)]):
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        error = ConfigCompositionException("Could not override 'data/order'.\nNo match in the defaults list.")
        reason = "Could not override 'data/order'. No match in the defaults list"
        assert to_error_report(error, "train").reason == "; ".join([reason, *found])
    monkeypatch.setattr("sys.argv", ["train"])
    assert to_error_report(error, "train").reason == reason


@pytest.mark.parametrize("override", HINTS)
def test_choices_are_those_of_the_group_and_nothing_else(override: str) -> None:
    with pytest.raises(CompactHydraException) as caught:
        compose("train", [override])
    groups = {
        group: ", ".join(sorted(path.stem for path in (Path(conf_dir()) / group).glob("*.yaml") if path.stem != "base"))
        for group in ("experiment", "data", "encoder/text", "trainer")
    }
    assert to_error_report(caught.value, "train").reason == HINTS[override].format(**groups)


@pytest.mark.parametrize(
    ("name", "override", "hint"),
    [
        ("evaluate", "data.val_split=x", "choose data=<option> ({}), which has it; or did you mean 'split'?"),
        ("evaluate", "data.folder=x", "choose data=<option> ({}), which has it"),
        ("prepare", "data.source.impressions=x.csv", "choose data=clicks, which has it"),
        (
            "train",
            "data.source.products=x",
            "choose data=<option> (clicks, emoji, huggingface, manifest), which has it",
        ),
        ("train", "data.sampling.every_n_epochs=2", "choose data/sampling=hard_negatives, which has it"),
    ],
)
def test_a_key_of_an_option_that_is_not_chosen_names_those_that_have_it(
    name: str, override: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [name, override])
    with pytest.raises(CompactHydraException) as caught:
        compose(name, [override])
    options = sorted(path.stem for path in (Path(conf_dir()) / "data").glob("*.yaml") if path.stem != "base")
    expected = f"no config key '{override.split('=')[0]}'; {hint.format(', '.join(options))}"
    assert to_error_report(caught.value, name).reason == expected


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (
            "data.shards=null",
            "data.val_split: cannot be resolved from ${.shards.val_split}: a key in it is missing",
        ),
        ("~data.shards", "data.val_split: cannot be resolved from ${.shards.val_split}: a key in it is missing"),
        ("data.augment.min_scale=${.nope}", "data.augment.min_scale: cannot be resolved from ${.nope}: a key"),
        ("data.splits=null", "run.name: cannot be resolved from ${model.name}-<set>${data.splits.label}-seed${seed}:"),
    ],
)
def test_a_value_that_another_key_should_give_is_named(override: str, reason: str) -> None:
    with pytest.raises(OmegaConfBaseException) as caught:
        compose("train", [override])
    assert to_error_report(caught.value, "train").reason.startswith(reason)


def test_the_error_of_the_first_failing_process_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "failure.json"
    assert read_error(path) is None
    write_error(path, ErrorReport("ValueError", "the cause"))
    write_error(path, ErrorReport("RuntimeError", "connection closed by peer"))
    assert read_error(path) == ErrorReport("ValueError", "the cause")


def test_notes_say_how_a_run_ended_until_it_is_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_note(folder, ErrorReport("ValueError", "diverged"))
    write_note(folder, ErrorReport("TrialPruned", "lags"))
    assert sorted(path.name for path in folder.iterdir()) == ["failed.json", "pruned.json"]
    assert '"reason": "diverged"' in (folder / "failed.json").read_text()
    clear_notes(folder)
    clear_notes(tmp_path / "never started")
    assert not list(folder.iterdir())
