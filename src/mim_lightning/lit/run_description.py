"""Lines that describe a run before it trains: its towers, its data, the values of its encoder, texts that are cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from lightning import Trainer

from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.fields import PRODUCT, side_of, texts_of
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.lit.shuffle_window import describe_windows
from mim_lightning.losses.objective import Objective
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import TextSpec, fields_of


def describe_towers(matcher: Matcher) -> str:
    """Return a line for each set of weights: its towers, encoder, widths and number of parameters."""
    lines = []
    for owner in matcher.towers:
        tower = matcher.tower(owner)
        users = " = ".join(name for name, other in matcher.owner_of.items() if other == owner)
        parameters = sum(p.numel() for p in tower.parameters())
        num_trained = sum(p.numel() for p in tower.parameters() if p.requires_grad)
        trained = f", {num_trained / 1e6:.2f} M trained" if num_trained < parameters else ""
        if not num_trained:
            trained = ", frozen"
        encoder = type(tower.encoder).__name__
        lines.append(
            f"  {users}: {encoder} {tower.encoder.width} -> {tower.width}, {parameters / 1e6:.2f} M parameters{trained}"
        )
    return "towers\n" + "\n".join(lines)


def describe_encoder_values(config: Mapping[str, Any]) -> str | None:
    """Return one line with the values of a run that come from its encoder's config; None if there are none.

    Another line names rates that suit a pretrained encoder which is trained as from scratch.
    """
    suited = dict(config["encoder"].get("training") or {})
    suggested = _by_key(suited.pop("suggested", {}))
    taken = [
        f"{section}.{name}"
        for section, values in suited.items()
        if isinstance(values, Mapping)  # not `train`, which the towers' lines show
        for key, value in values.items()
        if config.get(section, {}).get(key) == value
        for name in _by_key({key: value})
    ]
    lines = [f"from the encoder's config: {', '.join(taken)}"] if taken else []
    if suggested:
        lines.append(f"pretrained, but trained at the rate of what is new; {', '.join(suggested)} would suit it")
    return "\n".join(lines) or None


def _by_key(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return nested values as they are given on a command line."""
    found: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _by_key(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={value:g}" if isinstance(value, float) else f"{prefix}{key}={value}")
    return found


def describe_training(objective: Objective, datamodule: MatchDataModule) -> str:
    """Return the pairs, the sizes of the data, the number of negatives of a row, and what is shuffled together."""
    opened = datamodule.opened
    pairs = "".join(f"  {name} x {pair.weight:g}\n" for name, pair in objective.pairs.items())
    num_rows, order = len(opened.train), datamodule.present_order()
    batch_size = min(datamodule.batch_size, num_rows)
    epoch = f"  epoch of {order.num_batches} batches, see data.rows_per_epoch\n"
    windows = "".join(f"\n  {line}" for line in describe_windows(order, opened.train))
    return (
        f"pairs\n{pairs}"
        f"data '{datamodule.name}'\n"
        f"  {num_rows} training rows; {len(opened.queries)} queries against {len(opened.catalog)} gallery rows\n"
        f"{epoch if datamodule.epoch_settings.num_rows is not None else ''}"
        f"  batch of {batch_size} rows over all processes: up to {batch_size - 1} negatives a row"
        f"{windows}"
    )


def describe_limit(trainer: Trainer, datamodule: MatchDataModule) -> Iterator[str]:
    """Yield a line where epochs that `trainer.limit_train_batches` shortens are of different lengths."""
    num_batches, limit = datamodule.present_order().num_batches, trainer.limit_train_batches
    limit = int(limit * num_batches) if isinstance(limit, float) else limit
    is_one_epoch = trainer.max_epochs == 1 or trainer.fast_dev_run  # type: ignore[attr-defined]
    if not is_one_epoch and 0 < limit < num_batches and (rest := num_batches % limit):
        yield (
            f"trainer.limit_train_batches: the epoch in which a pass over the data ends has {rest} batches and not "
            f"{limit}; data.rows_per_epoch={limit * datamodule.batch_size} makes all epochs as long"
        )


NUM_SAMPLED, MIN_FRACTION = 256, 0.01  # rows whose texts are counted; fraction cut from which a tower is reported
LONGEST_ADVISED = 512  # tokens: what most text encoders can be made to read


def describe_cut_texts(datamodule: MatchDataModule, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield two lines for each text tower of which at least one sampled text in a hundred is cut.

    Data validation counts all rows, but only when data are prepared, and for the encoder that is named there.
    """
    inputs = [(tower, fields_of(tower, spec)) for tower, spec in sorted(datamodule.specs.items())]
    for tower, field, spec in [(tower, *part) for tower, parts in inputs for part in parts.items()]:
        if not isinstance(spec, TextSpec) or spec.count is None:
            continue
        shards = datamodule.opened.catalog if side_of(tower) == PRODUCT else datamodule.opened.queries
        counts = np.array(spec.count(list(_sample_texts(shards, field))))
        fraction = float((counts > spec.max_length).mean()) if len(counts) else 0.0
        if fraction >= MIN_FRACTION:
            key, longest = _max_length_key(tower, config), int(counts.max())
            whole = "them whole" if longest <= LONGEST_ADVISED else "more of them"
            advice = f"{key}={min(longest, LONGEST_ADVISED)} reads {whole}" if key else "its tokenizer takes no more"
            yield (
                f"  {fraction:.0%} of {field} are cut after {spec.max_length} tokens "
                f"(median {np.median(counts):.0f} of {len(counts)} texts)\n  {advice}"
            )


def _sample_texts(shards: ShardSet, field: str) -> Iterator[str]:
    """Yield the texts of evenly spaced rows; of a set at an address, of its first shard."""
    stop = len(shards) if not isinstance(shards.folder, str) else shards.span(0)[1]
    for number in np.unique(np.linspace(0, stop - 1, NUM_SAMPLED, dtype=np.int64)).tolist():
        with suppress(ValueError):  # training raises or skips a corrupt sample, as its config says
            if text := texts_of(shards.read_facts(number)).get(field):
                yield text


def _max_length_key(tower: str, config: Mapping[str, Any]) -> str | None:
    """Return the config key of the tokens that a tower's encoder reads, or None if it has none."""
    model = config.get("model") or {}
    owner = (model.get("tied") or {}).get(tower) or tower
    encoder = model["towers"][owner]["encoder"] if owner in (model.get("towers") or {}) else {}
    if "max_length" not in encoder:
        return None
    is_shared = encoder == (config.get("encoder") or {}).get("text")
    return "encoder.text.max_length" if is_shared else f"model.towers.{owner}.encoder.max_length"
