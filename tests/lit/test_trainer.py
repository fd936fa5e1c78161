"""Options that a user of Lightning knows by name each work or raise one line before training; checkpoints are whole."""

from __future__ import annotations

import errno
import os
import pickle
import re
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from mim_lightning.config import build, compose
from mim_lightning.errors import is_user_error
from mim_lightning.evaluate import evaluate
from mim_lightning.io.damaged_file import DamagedFileError
from mim_lightning.lit import trainer as trainer_module
from mim_lightning.lit.fully_sharded import FullySharded
from mim_lightning.lit.module import validate_finite
from mim_lightning.lit.trainer import AtomicCheckpointIO, ask_first_rank, validate_trainer, validate_unsharded
from mim_lightning.run import Run, identify
from tests.flow.entry_points import weights
from tests.shop import small

Fit = Callable[..., Run]
DEFAULT = compose("train", [])["trainer"]
EARLY_STOPPING = "+callbacks.early={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": "abc"}, "trainer.max_epochs=abc: give a whole number or null"),
        ({"max_epochs": -1}, "trainer.max_epochs=-1: the schedule needs an end"),
        ({"precision": "nonsense"}, "trainer.precision=nonsense: give .*bf16-true"),
        ({"precision": "16-true"}, "trainer.precision=16-true: .* give 16-mixed, bf16-mixed or bf16-true"),
        ({"limit_val_batches": 2}, "trainer.limit_val_batches=2: .*check_val_every_n_epoch=5"),
        ({"limit_val_batches": 1}, "trainer.limit_val_batches=1: "),
        ({"limit_val_batches": 0.5}, "trainer.limit_val_batches=0.5: "),
        ({"num_sanity_val_steps": 2}, "trainer.num_sanity_val_steps=2: give -1"),
        ({"num_sanity_val_steps": None}, "trainer.num_sanity_val_steps=null: give -1"),
        ({"overfit_batches": 1}, "trainer.overfit_batches=1: .*debug=overfit"),
        ({"val_check_interval": 0}, "trainer.val_check_interval=0: "),
        ({"val_check_interval": 3, "accumulate_grad_batches": 2}, "trainer.val_check_interval=3: counts batches, 2 of"),
        ({"gradient_clip_val": -1}, "trainer.gradient_clip_val=-1: give a number, 0 or more"),
        ({"logger": False}, "trainer.logger=false: .*logger=none"),
        ({"callbacks": {"a": 1}}, "trainer.callbacks="),
        ({"barebones": True}, "trainer.barebones=true: give logger=none"),
        ({"enable_checkpointing": False}, "trainer.enable_checkpointing=false: "),
        ({"accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches=0: give a whole number, 1 or more"),
        ({"check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch=0: give a whole number, 1 or more"),
        ({"strategy": "ddp_spawn"}, "trainer.strategy=ddp_spawn: starts processes itself.*give ddp"),
        ({"strategy": "fsdp"}, "trainer.strategy=fsdp: is the former FSDP; give trainer=fsdp"),
        (
            {"strategy": "fsdp2", "precision": "16-mixed"},
            "trainer.precision=16-mixed: trainer=fsdp scales no gradients",
        ),
        (
            {"strategy": {"_target_": "mim_lightning.lit.FullySharded", "gather_dtype": "bfloat16"}},
            "trainer.strategy.gather_dtype=bfloat16: .* give trainer.precision=bf16-mixed",
        ),
        ({"detect_anomaly": 3}, "trainer.detect_anomaly=3: give true or false"),
    ],
)
def test_settings_without_a_result_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        validate_trainer(DEFAULT | options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16-true"},
        {"limit_val_batches": 1.0},
        {"fast_dev_run": True, "limit_val_batches": 2},
        {"num_sanity_val_steps": 0},
        {"max_epochs": -1, "max_steps": 5},
        {"max_epochs": None},
        {"accumulate_grad_batches": 2, "val_check_interval": 0.5, "limit_train_batches": 3, "profiler": "simple"},
        {"val_check_interval": "00:01:00:00", "check_val_every_n_epoch": None, "deterministic": "warn"},
        {"gradient_clip_val": None, "max_time": "00:01:00:00", "enable_progress_bar": False, "callbacks": None},
    ],
)
def test_valid_settings_pass(options: dict[str, Any]) -> None:
    validate_trainer(DEFAULT | options)


def test_a_model_held_in_bfloat16_trains_and_its_checkpoint_gives_the_same_numbers(fit: Fit) -> None:
    run = fit("trainer.precision=bf16-true", "trainer.max_epochs=1", "results_from=last")
    assert weights(run)["matcher.towers.query_image.projection.weight"].dtype == torch.bfloat16
    evaluated = evaluate(compose("evaluate", [f"checkpoint={run.last_checkpoint}", "trainer=cpu"]))
    recorded = run.read_results()
    assert recorded is not None
    assert evaluated == {key: recorded[key] for key in evaluated}


def test_no_epoch_measures_the_untrained_model_and_leaves_a_checkpoint(fit: Fit) -> None:
    run = fit("trainer.max_epochs=0")
    results = run.read_results()
    assert results is not None and results["step"] == 0
    for key in [key for key in results if key.startswith("initial/")]:
        assert results[key.replace("initial/", "val/", 1)] == results[key]
    evaluated = evaluate(compose("evaluate", [f"checkpoint={run.best_checkpoint}", "split=train", "trainer=cpu"]))
    assert evaluated["counts/image_to_image/num_queries"] > results["counts/image_to_image/num_queries"]


def test_evaluate_measures_an_untrained_model_without_any_checkpoint(fit: Fit, shop: Path) -> None:
    results = fit("trainer.max_epochs=0").read_results()
    shop_keys = ("data", "encoder", "embed_dim", "trainer", "paths.data")
    overrides = [word for word in small(shop) if word.split("=")[0].startswith(shop_keys)]
    evaluated = evaluate(compose("evaluate", ["encoder=tiny", "model=4tower", f"output={shop}/out", *overrides]))
    assert results is not None
    assert evaluated == {key: results[key] for key in evaluated}  # the same seed, the same weights
    assert (shop / "out" / "results.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "checkpoint: needs a value; give checkpoint=<file>, or encoder=clip_vit_b32"),
        (["encoder=tiny", "model=4tower"], "give checkpoint=<file>, or data=manifest"),
        (["checkpoint=a.ckpt", "encoder=tiny"], "encoder: the checkpoint has its own"),
    ],
)
def test_evaluate_names_missing_keys(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        evaluate(compose("evaluate", words))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("directions=3", "directions=3: give a mapping or null"),
        ("monitor=[]", r"monitor=\[\]: give a text or null"),
        ("output={}", r"output={}: give a text or null"),
        ("embed_dim=abc", "embed_dim=abc: give a whole number or null"),
        ("checkpoint=2024", "2024: no such checkpoint file"),
    ],
)
def test_evaluate_takes_no_other_kind_of_value(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        evaluate(compose("evaluate", ["checkpoint=a", override]))


def test_a_run_that_ends_before_its_first_validation_reports_its_last_step(fit: Fit) -> None:
    run = fit("trainer.max_steps=2")
    results = run.read_results()
    assert results is not None and results["step"] == 2


def test_a_fast_dev_run_measures_and_writes_nothing(shop: Path, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    # more queries than its batches hold: nothing could be ranked
    run = fit("trainer.fast_dev_run=true", "data.eval_batch_size=2")
    assert run.read_results() is None
    assert not (shop / "runs").exists() or not list((shop / "runs").rglob("*.*"))
    assert "hit@1" not in capsys.readouterr().out


class OwnMetric(Callback):
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val/own", float(trainer.current_epoch))


def test_a_metric_that_a_callback_of_the_users_logs_can_be_monitored(fit: Fit) -> None:
    own = f"+callbacks.own={{_target_: {__name__}.OwnMetric}}"
    results = fit(EARLY_STOPPING + "val/own, mode: min, patience: 1}", own, "trainer.max_epochs=4").read_results()
    assert results is not None and results["epoch"] <= 1  # the second was worse, so it stopped


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("embed_dim=-3", "embed_dim=-3: give a whole number above 0, or null"),
        (EARLY_STOPPING + "nope}", "callbacks: EarlyStopping monitors 'nope', which is no metric; there are val/"),
        (EARLY_STOPPING + "val/composed_to_product/hit}", "which is no metric; there are val/.*hit@1"),
        ("+callbacks.n={_target_: torch.nn.Identity}", "callbacks.n: is no Lightning callback but torch.nn"),
        ("+callbacks.n=3", "n=3: give {_target_: <its class>, ...}, or null"),
        ("+logger.n={_target_: torch.nn.Identity}", "logger.n: is no Lightning logger"),
        ("callbacks.last=3", "last=3: give {_target_: <its class>, ...}, or null"),
        ("monitor=3", "monitor=3: is no metric of a direction"),
        ("callbacks.best.filename=other", "callbacks.best: must write .*best.ckpt"),
        ("+callbacks.best.save_top_k=2", "callbacks.best.save_top_k=2: best.ckpt is one file"),
        ("data.num_workers=abc", "data.num_workers=abc: give a whole number or null"),
        ("loss.init_scale=abc", "loss.init_scale=abc: give a number"),
        ("seed=null", "seed=null: give a whole number from 0 to 4294967295"),
        ("seed=-1", "seed=-1: give a whole number"),
        ("seed=1.5", "seed=1.5: give a whole number"),
    ],
)
def test_mistakes_are_reported_before_training(fit: Fit, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(override)


def test_a_runs_folder_that_cannot_be_written_is_reported_first(shop: Path) -> None:
    (shop / "file").write_text("")
    config = compose("train", small(shop, f"paths.runs={shop}/file/runs"))
    with pytest.raises(ValueError, match=r"file is a file; give another folder as paths\.runs=<folder>"):
        from mim_lightning.train import train

        train(config)
    assert identify(config)[0].folder.parts[-3:-1] == ("file", "runs")


def test_wandb_without_a_key_is_one_line() -> None:
    from wandb.errors import UsageError

    from mim_lightning.errors import to_error_report

    error = UsageError("No API key configured. Use `wandb login` to log in.")
    assert is_user_error(error)
    assert to_error_report(error, "train").reason.endswith("with logger.wandb.offline=true")


def test_a_missing_package_is_a_user_error_unless_it_is_ours() -> None:
    assert is_user_error(ModuleNotFoundError("psutil is not installed"))
    assert not is_user_error(ModuleNotFoundError("no module", name="mim_lightning.nope"))


class Ranks:
    """A strategy of two processes that are called one after the other, the first rank first."""

    def __init__(self) -> None:
        self.is_global_zero, self.sent, self.has_group = True, b"", False

    def setup_environment(self) -> None:
        self.has_group = True

    def broadcast(self, own: Any) -> Any:
        assert self.has_group
        self.sent = pickle.dumps(own) if self.is_global_zero else self.sent
        return pickle.loads(self.sent)


@pytest.mark.parametrize(
    "fault",
    [
        None,
        DamagedFileError("last.ckpt", "cut short", "remove it"),
        PermissionError(13, "Permission denied", "last.ckpt"),
    ],
)
def test_only_rank_zero_searches_and_all_ranks_get_its_result(fault: Exception | None) -> None:
    calls = []

    def ask() -> Path:
        calls.append(1)
        if fault is not None:
            raise fault
        return Path("last.ckpt")

    ranks: Any = Ranks()
    for ranks.is_global_zero in (True, False):
        if fault is None:
            assert ask_first_rank(ranks, ask) == Path("last.ckpt")
        else:
            with pytest.raises(type(fault), match=re.escape(str(fault))):
                ask_first_rank(ranks, ask)
    assert calls == [1]


def test_others_wait_in_the_store_for_the_first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(trainer_module, "PATIENCE", timedelta(seconds=0.1))
    for is_first in (True, False):  # one after the other, with the same number of questions before
        monkeypatch.setattr(trainer_module, "_asked", iter([0]))
        trainer_module._wait_for_first_rank(is_first)
    monkeypatch.setattr(trainer_module, "_asked", iter([1]))
    with pytest.raises(RuntimeError, match=r"[Tt]imeout"):
        trainer_module._wait_for_first_rank(False)


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_stage_3", {"_target_": "mim_lightning.lit.FullySharded"}])
def test_a_strategy_that_divides_the_weights_embeds_no_catalog(strategy: Any) -> None:
    validate_unsharded({"strategy": "ddp"})
    with pytest.raises(ValueError, match=r"trainer\.strategy=.*leave trainer=auto"):
        validate_unsharded({"strategy": strategy})


CONTENT = {"state_dict": {"weight": torch.arange(1000.0)}, "epoch": 3}


def test_it_is_written_beside_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    assert os.listdir(path.parent) == ["last.ckpt"]
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert loaded["epoch"] == 3 and torch.equal(loaded["state_dict"]["weight"], CONTENT["state_dict"]["weight"])  # type: ignore[index]


def test_a_disk_that_fills_up_keeps_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    former = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        AtomicCheckpointIO().save_checkpoint({}, path)
    assert path.read_bytes() == former and os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_with_nan_are_refused(bad: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    validate_finite(model, "at step 1")
    model[0].weight.data[1, 1] = bad  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match=r"'0\.weight' is not finite at step 2"):
        validate_finite(model, "at step 2")


def test_a_mask_may_hold_infinity_but_statistics_no_nan() -> None:
    model = nn.BatchNorm1d(2)
    model.register_buffer("mask", torch.tensor([float("-inf")]))
    validate_finite(model, "at step 1")
    model.running_mean.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="'running_mean' is not finite"):
        validate_finite(model, "at step 1")


def test_nan_weights_on_one_rank_are_refused_on_all() -> None:
    with pytest.raises(ValueError, match="a tensor of another process is not finite at step 1"):
        validate_finite(nn.Linear(2, 2), "at step 1", agree=lambda own: False)
    model, given = nn.Linear(2, 2), []
    model.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="'weight' is not finite"):
        validate_finite(model, "at step 1", agree=lambda own: bool(given.append(own)))  # type: ignore[func-returns-value]
    assert given == [False]


def test_sharding_takes_a_timeout_in_seconds_and_no_other_option() -> None:
    strategy = compose("train", ["trainer=fsdp", "trainer.strategy.timeout=60"])["trainer"]["strategy"]
    built: Any = build(strategy)
    assert isinstance(built, FullySharded) and built._timeout == timedelta(seconds=60)
    with pytest.raises(ValueError, match=r"trainer\.strategy\.timeout=0: give seconds, above 0"):
        FullySharded(timeout=0)
    with pytest.raises(ValueError, match="tensor_parallel_size"):
        build({**strategy, "tensor_parallel_size": 2})


def test_a_file_takes_the_place_of_a_folder_whatever_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").mkdir()
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
