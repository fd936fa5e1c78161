"""DDP and FSDP2 on one process and more: equal weights and results, checkpoints that every engine resumes and loads."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mim_lightning
from mim_lightning.artifact_paths import SHARDED_META
from mim_lightning.config import compose
from mim_lightning.evaluate import evaluate
from mim_lightning.io.damaged_file import DamagedFileError
from mim_lightning.model.checkpoint import load_matcher, verify_checkpoint
from mim_lightning.model.sharded_checkpoint import INDEX, read_sharded
from mim_lightning.run import Run, find_resumable, identify
from tests.flow.entry_points import read_checkpoint, start_ranks, timeless
from tests.shop import small

# 21 rows: two batches of 8 and one of 5; in float64, for Adam makes much of rounding
EXACT = [
    "trainer.precision=64-true",
    "callbacks=ema",
    "callbacks.ema.decay=0.9",
    "step.micro_batch_size=3",
    "results_from=last",
]
BAR = "callbacks.progress_bar="
MIDDLE = 4  # steps, of six: within the second epoch
PLAIN = ["trainer.precision=64-true", "model=4tower", "trainer.num_sanity_val_steps=0", "results_from=last"]
IMAGE, TEXT = "model.towers.query_image", "model.towers.product_text"
SPOILED = "callbacks.progress_bar={_target_: tests.flow.kill_callback.NaNAt, steps: [1, 4]}"
OPTIONS = {
    "sigmoid": ["loss=sigmoid", "trainer.accumulate_grad_batches=2", "optim.layer_decay=0.7"],
    "fused": ["optim.optimizer.fused=true", f"{TEXT}.train=last_n", f"{TEXT}.num_trained_layers=1"],
    "frozen": [f"{IMAGE}.train=frozen", "step.micro_batch_size=3", "trainer.gradient_clip_algorithm=value"],
    "lora": [f"{TEXT}.train=lora", "model.lora.rank=2", "optim=sgd", "trainer.gradient_clip_val=0.01"],
    "fusions": [
        *("model.fusions.query.kind=gate", "model.fusions.product.kind=learned_sum"),
        *("model.fusions.product.center=running", "trainer.accumulate_grad_batches=2", "step.micro_batch_size=3"),
    ],
    "compiled": ["model.compile=aot_eager", "loss.scale_per_pair=true", f"{IMAGE}.activation_checkpointing=true"],
    "spoiled": [SPOILED, "callbacks=ema", "callbacks.ema.decay=0.9"],
}
ENGINES = {"ddp": "trainer.strategy=ddp", "fsdp": "trainer.strategy=fsdp2"}
FULLY = "trainer.strategy={_target_: mim_lightning.lit.FullySharded"


def saving(folder: Path) -> str:
    """Return the override of a callback that saves the middle, in the bar's place: a run's id knows other callbacks."""
    return f"callbacks.progress_bar={{_target_: tests.flow.kill_callback.SaveAt, step: {MIDDLE}, path: {folder}/mid}}"


def train_on(num_ranks: int, *runs: list[str]) -> None:
    words = [[*run, f"trainer.devices={num_ranks}"] for run in runs]
    finished = start_ranks(num_ranks, json.dumps(words), module="tests.flow.engines")
    assert finished.returncode == 0, finished.stderr[-3000:]


def run_of(words: list[str]) -> Run:
    return identify(compose("train", words))[0]


def state(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint by name: weights, averages and the optimizer's."""
    content = read_checkpoint(path)
    optimizer = content["optimizer_states"][0]["state"]
    flat = {f"{idx}.{key}": value for idx, part in optimizer.items() for key, value in part.items()}
    live = {f"live {name}": value for name, value in content.get("current_model_state", {}).items()}
    return flat | live | content["state_dict"]


def assert_ends_as(run: Run, other: Run, atol: float = 1e-9) -> None:
    """Check that two runs end with the same weights, optimizer and results; with `atol` 0 to the last bit."""
    ours, theirs = state(run.last_checkpoint), state(other.last_checkpoint)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=atol)
    assert timeless(run) == pytest.approx(timeless(other), abs=atol)


def go_on(middle: Path, words: list[str]) -> Run:
    """Return the run of a config, with a checkpoint to go on from."""
    run = run_of(words)
    run.last_checkpoint.parent.mkdir(parents=True)
    (shutil.copytree if middle.is_dir() else shutil.copy)(middle, run.last_checkpoint)
    return run


def test_two_sharded_processes_end_as_one_and_one_goes_on_from_their_checkpoint(
    shop: Path, fit: Callable[..., Run]
) -> None:
    exact = [
        *EXACT,
        "model=2tower",
        "trainer.num_sanity_val_steps=0",
    ]  # four towers, with fusions, are in the slow test
    one = fit(*exact)
    words = small(shop, *exact, ENGINES["fsdp"], saving(shop), f"paths.runs={shop}/two")
    train_on(2, words)
    two = run_of(words)
    assert two.run_id == one.run_id and two.last_checkpoint.is_dir()
    assert_ends_as(two, one)
    resumed = go_on(shop / "mid", small(shop, *exact, f"paths.runs={shop}/resumed"))
    assert read_sharded(shop / "mid")["global_step"] == MIDDLE
    fit(*exact, f"paths.runs={shop}/resumed")
    assert_ends_as(resumed, one)
    check_loading(two)
    check_damage(two, shop)


@pytest.mark.slow
def test_both_engines_end_as_one_process_and_go_on_from_each_other_on_any_number(
    shop: Path, fit: Callable[..., Run]
) -> None:
    one = fit(*EXACT)
    whole: dict[tuple[str, int], Run] = {}
    for num_ranks in (2, 4):
        runs = {
            engine: small(shop, *EXACT, word, f"paths.runs={shop}/{engine}{num_ranks}")
            for engine, word in ENGINES.items()
        }
        train_on(num_ranks, *([*words, saving(shop / f"{engine}{num_ranks}")] for engine, words in runs.items()))
        for engine, words in runs.items():
            whole[engine, num_ranks] = run_of(words)
            assert_ends_as(run_of(words), one)
    for num_ranks in (1, 2, 4):
        resumed = {}
        for source in ENGINES:
            for engine, word in ENGINES.items():
                words = small(shop, *EXACT, word, f"paths.runs={shop}/{source}-{engine}{num_ranks}")
                resumed[source, engine] = words, go_on(shop / f"{source}2" / "mid", words)
        train_on(num_ranks, *(words for words, _ in resumed.values()))
        for (source, engine), (_, run) in resumed.items():
            assert_ends_as(run, one)
            if num_ranks == 2 and source == engine:
                assert_ends_as(run, whole[engine, 2], atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_options_of_a_step_end_as_one_process_with_both_engines(
    num_ranks: int, shop: Path, fit: Callable[..., Run]
) -> None:
    runs, ones = {}, {}
    for name, options in OPTIONS.items():
        words = [*PLAIN, *options, f"paths.runs={shop}/{name}"]
        ones[name] = fit(*words)
        for engine, word in ENGINES.items():
            runs[name, engine] = small(shop, *words, word, f"paths.runs={shop}/{name}/{engine}")
    train_on(num_ranks, *runs.values())
    for (name, _), words in runs.items():
        assert_ends_as(run_of(words), ones[name])


@pytest.mark.slow
def test_whole_checkpoints_and_cached_features_end_as_one_process(shop: Path, fit: Callable[..., Run]) -> None:
    cache = ["model.towers.query_image.train=frozen", "data.augment=null", "data.feature_cache.enabled=true"]
    options = {  # float32 and SGD: Adam makes much of rounding
        "whole": [f"{FULLY}, checkpoints: whole}}", "callbacks=ema", saving(shop / "middle")],
        "cache": [ENGINES["fsdp"], *cache, f"data.feature_cache.folder={shop}/features"],
    }
    runs, ones = {}, {}
    for name, given in options.items():
        words = [*PLAIN[1:], "optim=sgd", *given, f"paths.runs={shop}/{name}"]
        ones[name] = fit(*(word for word in words if not word.startswith(("trainer.strategy", BAR))))
        runs[name] = small(shop, *words, f"paths.runs={shop}/{name}/two")
    train_on(2, *runs.values())
    for name, one in ones.items():
        two = run_of(runs[name])
        assert two.last_checkpoint.is_dir() == (name != "whole")
        assert_ends_as(two, one, atol=1e-5)
    words = [*PLAIN[1:], "optim=sgd", "callbacks=ema", f"paths.runs={shop}/resumed"]
    resumed = go_on(shop / "middle" / "mid", small(shop, *words))
    fit(*words)
    assert_ends_as(resumed, ones["whole"], atol=1e-5)


@pytest.mark.slow
def test_weights_in_bfloat16_change_no_more_than_bfloat16_does(shop: Path) -> None:
    half = "trainer.precision=bf16-mixed"
    options = {
        "float32": [ENGINES["ddp"]],
        "ddp": [ENGINES["ddp"], half],
        "fsdp": [ENGINES["fsdp"], half],
        "gathered": [f"{FULLY}, gather_dtype: bfloat16}}", half],
    }
    runs = {
        name: small(shop, *PLAIN[1:], "optim=sgd", *given, f"paths.runs={shop}/{name}")
        for name, given in options.items()
    }
    train_on(2, *runs.values())
    states = {name: state(run_of(words).last_checkpoint) for name, words in runs.items()}

    def distance(one: str, other: str) -> float:
        names = [name for name, value in states[one].items() if value.is_floating_point()]
        return max(float((states[one][name] - states[other][name]).abs().max()) for name in names)

    assert distance("ddp", "fsdp") < 1e-6 < distance("fsdp", "gathered") < 2 * distance("float32", "ddp")


def check_loading(run: Run) -> None:
    """Check that what takes a checkpoint's file takes a sharded one, with the fingerprint of its whole weights."""
    trained = load_matcher(run.last_checkpoint)
    assert mim_lightning.load(run.last_checkpoint).fingerprint == trained.fingerprint
    evaluated = evaluate(compose("evaluate", [f"checkpoint={run.last_checkpoint}", "trainer=cpu"]))
    recorded = timeless(run)
    assert evaluated == pytest.approx({key: recorded[key] for key in evaluated}, abs=1e-6)


def check_damage(run: Run, folder: Path) -> None:
    """Check that a damaged checkpoint is not resumed from, and that its index runs no code."""
    last = run.last_checkpoint
    last.rename(last.with_name(".last.ckpt.00000000-1-00000000.former"))  # as a kill between two renames leaves it
    assert find_resumable(run) == last and last.is_dir()
    last.rename(folder / "aside")
    assert find_resumable(run) == run.best_checkpoint
    (folder / "aside").rename(last)
    part = last / "__1_0.distcp"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"the checksum of __1_0\.distcp does not match"):
        verify_checkpoint(last)
    assert find_resumable(run) == run.best_checkpoint
    part.unlink()
    with pytest.raises(DamagedFileError, match=r"__1_0\.distcp is missing"):
        verify_checkpoint(last)
    (last / SHARDED_META).unlink()
    with pytest.raises(DamagedFileError):
        verify_checkpoint(last)
    assert find_resumable(run) == run.best_checkpoint
    with pytest.raises(ValueError, match=r"last\.ckpt: no sharded checkpoint: it lacks meta\.pt"):
        load_matcher(last)
    hostile = run.best_checkpoint / INDEX
    hostile.write_bytes(pickle.dumps(Hostile(folder / "ran")))
    with pytest.raises(ValueError, match=r"\.metadata names "):
        load_matcher(run.best_checkpoint)
    assert not (folder / "ran").exists()


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.path,)
