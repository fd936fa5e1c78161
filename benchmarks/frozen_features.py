"""Time epochs of training with a frozen image encoder: encoded every time, read from the cache, and the texts alone.

    python benchmarks/frozen_features.py --config experiment=grocery model=4tower

Trains on the rows of the config's data with `data.augment=null`, image towers frozen, in rounds in which all three take
turns; prints the seconds of an epoch (loading, forward, loss, backward, optimizer), the ratios of each round, and what
filling the cache took. "texts alone" loads and trains the text towers on the pair of texts: what is left to pay for.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Trainer
from record import add_output, write_record

from mim_lightning.config import build, build_matcher, build_objective, compose
from mim_lightning.lit.frozen_features import FrozenFeatures
from mim_lightning.lit.module import MatchModule
from mim_lightning.lit.optim import parameter_groups
from mim_lightning.losses.objective import Objective
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import Batch


def main() -> None:
    options = _options()
    with TemporaryDirectory() as folder:
        words = [*options.config, "data.augment=null", "model.towers.query_image.train=frozen"]
        words += ["model.towers.product_image.train=frozen", "data.feature_cache.enabled=true"]
        config = compose("train", [*words, f"data.feature_cache.folder={folder}"])
        torch.manual_seed(0)
        matcher = build_matcher(config)
        objective = build_objective(config, matcher.names)
        texts = {name: spec for name, spec in matcher.input_specs().items() if name.endswith("text")}
        of_texts = {name: pair for name, pair in config["model"]["pairs"].items() if {*_sides(pair)} <= {*texts}}
        text_objective = build_objective({**config, "model": {**config["model"], "pairs": of_texts}}, matcher.names)
        computed, cached, alone = (build(config["data"], specs=s) for s in (*[matcher.input_specs()] * 2, texts))
        for datamodule in (computed, cached, alone):
            datamodule.prepare_data()
        trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, precision="32-true")
        trainer.datamodule = cached
        started = time.perf_counter()
        FrozenFeatures().on_fit_start(trainer, MatchModule(matcher, objective))
        filling = time.perf_counter() - started
        arms = {
            "encoded every epoch": (computed.train_dataloader(), objective),
            "features cached": (cached.train_dataloader(), objective),
            "texts alone": (alone.train_dataloader(), text_objective),
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for round_idx in range(-options.warmup, options.rounds):
            for name, (loader, loss) in arms.items():
                taken = _time_epoch(matcher, loss, loader, options.batches)
                if round_idx >= 0:
                    seconds[name].append(taken)
    record = {"config": options.config, "filling": filling, "seconds": seconds, "batches": options.batches}
    write_record(options.output, record)
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; filling the cache took {filling:.1f} s")
    first = seconds["encoded every epoch"]
    for name, taken in seconds.items():
        ratios = sorted(mine / other for mine, other in zip(taken, first, strict=True))
        print(f"{name:20} {median(taken):7.2f} s  {median(ratios):.3f} x  ({ratios[0]:.3f} to {ratios[-1]:.3f})")


def _sides(pair: dict[str, Any]) -> tuple[str, str]:
    return pair["left"], pair["right"]


def _time_epoch(matcher: Matcher, objective: Objective, loader: Iterable[Batch], num_batches: int | None) -> float:
    """Return the seconds of an epoch, or of so many batches of it."""
    groups = parameter_groups(matcher, objective, 1e-3, 0.05, {})
    optimizer = torch.optim.AdamW(groups)
    matcher.train()
    started = time.perf_counter()
    for idx, batch in enumerate(loader):
        optimizer.zero_grad()
        objective(matcher(batch), batch).loss.backward()
        optimizer.step()
        if num_batches is not None and idx + 1 >= num_batches:
            break
    return time.perf_counter() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=["experiment=grocery", "model=4tower"], metavar="key=value")
    parser.add_argument("--rounds", type=int, default=2, help="epochs of each, in turn")
    parser.add_argument("--warmup", type=int, default=0, help="rounds before those")
    parser.add_argument("--batches", type=int, default=None, help="of an epoch; all if left out")
    add_output(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
