"""Large vision transformers: how much of the device's matrix product speed a training step reaches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training.pace import Segment
from benchmarks.training.setup import CLIP_NORM, Setup
from mim_lightning.config import build_objective, build_partial
from mim_lightning.lit.optim import parameter_groups

Compare = Callable[[Setup, Sequence[str], int], dict[str, list[Segment]]]

COMMON = (
    "data=grocery", "model=3tower", "encoder=mobilenetv2_minilm", "encoder/image=vit_b16", "encoder.text.max_length=77",
    "encoder.image.pretrained=false", "encoder.image.drop_path_rate=0.0", "optim.lr=1e-4",
)  # fmt: skip
MODELS = {
    "ViT-B/16": (*COMMON, "encoder.image.name=vit_base_patch16_224"),
    "ViT-L/14": (*COMMON, "encoder.image.name=vit_large_patch14_224"),
}
NUM_STEPS, NUM_PROFILED = 10, 3


def measure_models(
    setup: Setup, num_rounds: int, compare: Compare, models: dict[str, tuple[str, ...]] | None = None
) -> dict[str, Any]:
    """Return of each model the segments from shards, and a step on a batch that is in memory."""
    setups = {name: replace(setup, overrides=overrides) for name, overrides in (models or MODELS).items()}
    # all forks before this process uses the device
    rounds = {name: compare(one, ("ours", "bare loop"), num_rounds) for name, one in setups.items()}
    peak = matmul_peak(setup.device)
    return {name: {"rounds": rounds[name], "step": measure_step(one) | {"peak": peak}} for name, one in setups.items()}


def matmul_peak(device: str) -> float:
    """Return the FLOP/s of a large matrix product, in bfloat16 on a GPU."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: left @ right, device, 30)


def measure_step(setup: Setup) -> dict[str, Any]:
    """Return seconds, FLOP and images of a step on one batch, and where its time goes."""
    config = setup.config()
    matcher, datamodule = setup.build(config)
    objective = build_objective(config, matcher.names).to(setup.device)
    matcher.to(setup.device).train()
    rates = {key: config["optim"][key] for key in ("lr", "weight_decay", "lr_scales", "layer_decay")}
    optimizer = build_partial(config["optim"]["optimizer"], "optim.optimizer")(
        parameter_groups(matcher, objective, **rates)
    )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    batch = next(iter(datamodule.train_dataloader())).to(setup.device)

    def step() -> None:
        with torch.autocast(setup.device, torch.bfloat16, enabled=setup.device == "cuda"):
            loss = objective(matcher(batch), batch).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    seconds = _seconds(step, setup.device, NUM_STEPS)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (setup.device == "cuda")
    with profile(activities=activities) as profiled:
        for _ in range(NUM_PROFILED):
            step()
        _synchronize(setup.device)
    images = sum(len(batch.inputs[name]) for name in ("query_image", "product_image"))
    return {
        "seconds": seconds,
        "flop": counter.get_total_flops(),
        "images": images,
        "profile": profiled.key_averages().table(sort_by=f"self_{setup.device}_time_total", row_limit=25),
    }


def _seconds(function: Callable[[], Any], device: str, times: int) -> float:
    """Return the median time of a call, after three to warm up."""
    taken = []
    for _ in range(3 + times):
        _synchronize(device)
        started = time.perf_counter()
        function()
        _synchronize(device)
        taken.append(time.perf_counter() - started)
    return median(taken[3:])


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
