"""Time a step under different settings, one step of each in turn.

    python benchmarks/step.py --config experiment=grocery --arm before= --arm kept=reuse_memory=true

Each arm is a process of its own, with the same batches, and only one of them runs at a time: memory settings belong to
a process, and whatever else the machine does meets every arm alike. The ratio of an arm is the median over rounds of
its step's time by the first arm's in the same round; in brackets the middle half.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from record import add_output, write_record

ENVIRONMENT = re.compile(r"[A-Z][A-Z0-9_]*=.*")  # a word of an arm that is no override


def main() -> None:
    options = _options()
    if options.show is not None:
        print(_table(json.loads(options.show.read_text())))
        return
    if options.child is not None:
        _serve_steps(json.loads(options.child))
        return
    shared = {"config": options.config, "work": options.work, "batches": options.batches, "threads": options.threads}
    arms = [arm.partition("=")[::2] for arm in options.arm]
    processes = {name: _start(words.split(), shared) for name, words in arms}
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
    first: dict[str, float] = {}
    for round_idx in range(-options.warmup, options.rounds):
        for name, process in processes.items():
            step = _ask(process, name)
            first.setdefault(name, step["seconds"])
            if round_idx >= 0:
                steps[name].append(step)
    for process in processes.values():
        process.communicate()
    machine = (
        f"{os.cpu_count()} cores, {options.threads} threads, torch {version('torch')}, {' '.join(platform.libc_ver())}"
    )
    record = {
        "work": options.work,
        "config": options.config,
        "arms": dict(arms),
        "machine": machine,
        "first": first,
        "steps": steps,
    }
    write_record(options.output, record)
    print(_table(record))


def _start(words: list[str], shared: dict[str, Any]) -> subprocess.Popen[str]:
    variables = dict(word.split("=", 1) for word in words if ENVIRONMENT.fullmatch(word))
    overrides = [word for word in words if not ENVIRONMENT.fullmatch(word)]
    told = json.dumps({**shared, "overrides": overrides})
    return subprocess.Popen(
        [sys.executable, __file__, "--child", told],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **variables},  # idle arms must not spin
    )


def _ask(process: subprocess.Popen[str], name: str) -> dict[str, float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        sys.exit(f"arm '{name}' failed, see above")
    return json.loads(line)


def _serve_steps(told: dict[str, Any]) -> None:
    """Run a step for every line of the standard input."""
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch

    run_step = _make_step(told)
    pool = ThreadPoolExecutor(1)  # as the service, whose model runs in a thread
    for step_idx, _ in enumerate(sys.stdin):
        torch.manual_seed(step_idx)
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        value = pool.submit(run_step, step_idx).result() if told["work"] == "serve" else run_step(step_idx)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        answer = {
            "seconds": seconds,
            "system_seconds": after.ru_stime - before.ru_stime,
            "faults": after.ru_minflt - before.ru_minflt,
            "peak_mb": after.ru_maxrss / 1024,
            "value": value,
        }
        print(json.dumps(answer), file=answers, flush=True)


def _make_step(told: dict[str, Any]) -> Callable[[int], float]:
    """Build the run of a config as training does, and return a function that runs a step and returns a number of it."""
    import torch
    from lightning import seed_everything

    from mim_lightning.config import build, build_matcher, build_objective, build_partial, compose
    from mim_lightning.launch import set_up_process
    from mim_lightning.lit.optim import parameter_groups
    from mim_lightning.model.activation_checkpointing import restore_statistics, start_checkpointing
    from mim_lightning.model.compilation import compile_encoders

    torch.set_num_threads(told["threads"])
    config = compose("train", [*told["config"].split(), "trainer=cpu", "data.num_workers=0", *told["overrides"]])
    set_up_process(config, "cpu")
    seed_everything(config["seed"], verbose=False)
    matcher = build_matcher(config)
    start_checkpointing(matcher)
    compile_encoders(matcher, config["model"]["compile"])
    objective = build_objective(config, matcher.names)
    datamodule = build(config["data"], specs=matcher.input_specs())
    datamodule.prepare_data()
    loader = datamodule.train_dataloader() if told["work"] == "train" else datamodule.val_dataloader()[0]
    batches = [batch for batch, _ in zip(loader, range(told["batches"]), strict=False)]

    def embed(step_idx: int) -> float:
        with torch.inference_mode():
            embeddings = matcher(batches[step_idx % len(batches)])
        return sum(vectors.sum().item() for vectors in embeddings.vectors.values())

    if told["work"] != "train":
        matcher.eval()
        return embed
    rates = {key: config["optim"][key] for key in ("lr", "weight_decay", "lr_scales")}
    optimizer = build_partial(config["optim"]["optimizer"], "optim.optimizer")(
        parameter_groups(matcher, objective, **rates)
    )
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    matcher.train()

    def train(step_idx: int) -> float:
        batch = batches[step_idx % len(batches)]
        loss = objective(matcher(batch), batch).loss
        optimizer.zero_grad()  # where Lightning does: after the forward pass
        with restore_statistics(matcher):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config["trainer"]["gradient_clip_val"])
        optimizer.step()
        return loss.item()

    return train


def _table(record: dict[str, Any]) -> str:
    lines = [
        "| | first step, s | step, s | ratio | in the kernel, s | page faults | peak memory, MB | equal results |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    arms = {name: _columns(steps) for name, steps in record["steps"].items()}
    first = next(iter(arms.values()))
    first_seconds = record.get("first", {})  # compiling is in it
    for name, arm in arms.items():
        ratio = arm["seconds"] / first["seconds"]
        low, middle, high = np.percentile(ratio, (25, 50, 75))
        away = np.abs(arm["value"] - first["value"]).max()
        lines.append(
            f"| {name} | {f'{first_seconds[name]:.1f}' if first_seconds else '-'} "
            f"| {np.median(arm['seconds']):.3f} | {middle:.3f} ({low:.3f} to {high:.3f}) "
            f"| {np.median(arm['system_seconds']):.3f} | {np.median(arm['faults']):,.0f} | {arm['peak_mb'].max():,.0f} "
            f"| {'yes' if away == 0 else f'to {away:.0e}'} |"
        )
    rounds = len(first["seconds"])
    return "\n".join([*lines, "", f"*Medians of {rounds} steps, `{record['config']}`; {record['machine']}.*"])


def _columns(steps: list[dict[str, float]]) -> dict[str, np.ndarray]:
    return {key: np.array([step[key] for step in steps]) for key in steps[0]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = ("train", "embed", "serve")
    parser.add_argument("--work", choices=works, default="train", help="what a step is; serve: embed, in a thread")
    parser.add_argument("--config", default="experiment=grocery", help="overrides that all arms share")
    parser.add_argument(
        "--arm", action="append", default=[], help="<name>=<overrides and environment variables>; repeat it"
    )
    parser.add_argument("--rounds", type=int, default=12, help="steps of each arm that are measured")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each arm before")
    parser.add_argument("--batches", type=int, default=4, help="distinct batches, the same for all arms")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads of each arm")
    add_output(parser)
    parser.add_argument("--show", type=Path, help="print the table of such a file instead")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
