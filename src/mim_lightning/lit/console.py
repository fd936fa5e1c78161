"""Terminal output of training and evaluation: progress bar, description of the run, warnings, table of results.

Results are flat: "val/image_to_image/hit@1" -> 0.61, and "initial/..." for the model before training.
"""

from __future__ import annotations

import logging
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mim_lightning.analysis.segments import SEGMENTS
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.display.numbers import format_count
from mim_lightning.display.text import plain
from mim_lightning.fields import PRODUCT, side_of, texts_of
from mim_lightning.interruption import STOPPED_AFTER
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.lit.shuffle_window import describe_windows
from mim_lightning.losses.objective import Objective
from mim_lightning.model.matcher import Matcher
from mim_lightning.types import TextSpec, fields_of, variants_of, whole_name

INITIAL = "initial"  # replaces "val" in the keys of epoch -1, the model before training
WIDTH, BAR_WIDTH = 80, 10  # characters
DROPPED = (  # starts of Lightning's messages that say nothing to a user of this project
    "Tip:",
    "Loading `train_dataloader`",
    "TPU available",
    "GPU available",
    "Restoring states",
    "Loaded model weights",
    "Found current_model_state",
    "You're using the WeightAveraging callback, but saving",
)
DROPPED_WARNINGS = (
    # workers are a matter of data.num_workers; epoch-level values are equal on all ranks before they are logged
    ".*does not have many workers.*",
    ".*sync_dist=True.*",
    ".*treespec.*",
    ".*in eval mode at the start of training.*",  # frozen parts, as their towers want them
    ".*not supported by the model summary.*",
    # configure_model adds no layer here, and evaluation reads the average as any weights
    ".*using the WeightAveraging callback.*",
    ".*is smaller than the logging interval.*",  # the mean of an epoch is logged whatever its length
)
LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
Results = Mapping[str, float]


def silence_lightning() -> None:
    """Drop the lines of Lightning that say nothing to a user of this project."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(lambda record: not any(text in record.getMessage() for text in DROPPED))
    for message in DROPPED_WARNINGS:
        warnings.filterwarnings("ignore", message)


@rank_zero_only
def warn(message: str) -> None:
    """Print one warning line, without the file and line number that `rank_zero_warn` puts before it."""
    logging.getLogger(LOGGERS[0]).warning(message)


class ProgressBar(RichProgressBar):
    """Lightning's bar with the loss and the last value of the monitored metric, on one line of 80 columns.

    The loss is the mean over the rows of the epoch so far: a single batch, the last of which may have a row or two,
    says little. On a GPU, and with several processes, it changes every `trainer.log_every_n_steps` steps.
    """

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        description, bar, batches, _, speed = super().configure_columns(trainer)
        assert isinstance(bar, BarColumn)
        bar.bar_width = BAR_WIDTH
        return [description, bar, batches, TimeRemainingColumn(compact=True, elapsed_when_finished=True), speed]

    @contextmanager
    def counting(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """Show a further line while something else is done, by what is yielded: it takes how many are done."""
        if self.progress is None or self.is_disabled:
            yield lambda num_done: None
            return
        task = self._add_task(total, what)
        try:
            yield lambda num_done: self._update(task, num_done)
        finally:
            self.progress.update(task, visible=False)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = {name.rsplit("/", 1)[-1]: value for name, value in super().get_metrics(trainer, pl_module).items()}
        metrics.pop("v_num", None)
        return {"loss": metrics.pop("running_loss"), **metrics} if "running_loss" in metrics else metrics


# --- before training ----------------------------------------------------------------------------------


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


# --- results ------------------------------------------------------------------------------------------

# most important first: a terminal shows as many as fit; all others are in results.json
METRICS = ("hit@1", "hit@10", "mrr", "hit@5", "ndcg@10", "map", "wrong_category@1")
LEFT_OUT = {
    "num_in_gallery": "{} left out, image is in the gallery",
    "num_repeated": "{} left out, same image and answer again",
    "num_near_gallery": "{} counted, image is nearly one of the gallery",
}


def print_run(title: str, results: Results) -> None:
    """Print one row a direction: queries, hit@1 before training, hit@1 with its interval, further metrics that fit."""
    console = Console()
    width = max(WIDTH, console.width) if console.is_terminal else WIDTH
    names = directions_in(results)
    has_counts, has_initial = bool(_counts(results, "num_queries")), any(key.startswith(INITIAL) for key in results)
    parts = {name: list(_segments(results, name)) for name in names}
    table = Table(title=Text(plain(title)), title_justify="left", box=SIMPLE, padding=0, pad_edge=False)
    table.add_column("direction", overflow="fold")
    headers = ["queries\n", "with\ntext"] * has_counts + [f"{INITIAL}\nhit@1"] * has_initial
    logged = [key.split("/")[:3][-1] for key in results if key.startswith("val/")]
    known = variants_of(METRICS, logged)
    first = next(iter(variants_of(METRICS[:1], logged)), METRICS[0])
    labels = [*names, *(f"  {part}" for found in parts.values() for part in found)]
    used = max((min(len(plain(label)), 28) for label in labels), default=0) + sum(1 + _width_of(h) for h in headers)
    shown = list(_fitting(known, width - used - 2))
    for header in (*headers, *(header for metric in shown for header in _headers(metric))):
        table.add_column(header, justify="right", no_wrap=True)
    for name in names:
        counts = [_count(results, f"counts/{name}/{which}") for which in ("num_queries", "num_with_words")] * has_counts
        initial = [_cell(results, f"{INITIAL}/{name}/{first}")] * has_initial
        table.add_row(Text(plain(name)), *counts, *initial, *_cells(results, f"val/{name}", shown))
        for part in parts[name]:
            key = f"{SEGMENTS}/{name}/{part}"
            counts = [_count(results, f"{key}/num_queries"), ""] * has_counts
            cells = _cells(results, key, shown)
            table.add_row(Text(f"  {plain(part)}"), *counts, *[""] * has_initial, *cells, style="dim")
    Console(width=width).print(table)
    rest = [metric for metric in known if metric not in shown]
    for line in (*_describe_counts(results, rest), *_left_out(results)):
        Console(width=width).print(line, highlight=False, markup=False)


def directions_in(results: Results) -> list[str]:
    return list(dict.fromkeys(key.split("/")[1] for key in results if key.startswith("val/")))


def _headers(metric: str) -> list[str]:
    header = metric.replace("_", "\n")
    return [header, "95 %\ninterval"] if whole_name(metric) == METRICS[0] else [header]


def _fitting(metrics: Sequence[str], width: int) -> Iterator[str]:
    """Yield the first metrics whose columns fit into so many characters."""
    for metric in metrics:
        for header in _headers(metric):
            width -= 1 + max(len("0.00 - 0.00") if "interval" in header else len("0.000"), _width_of(header))
        if width < 0:
            return
        yield metric


def _width_of(header: str) -> int:
    return max(map(len, header.split("\n")))


def _cells(results: Results, key: str, metrics: Sequence[str]) -> Iterator[str]:
    for metric in metrics:
        yield _cell(results, f"{key}/{metric}")
        if whole_name(metric) == METRICS[0]:
            low, high = (results.get(f"{key}/{metric}/{end}") for end in ("low", "high"))
            yield "-" if low is None or high is None else f"{low:.2f} - {high:.2f}"


def _cell(results: Results, key: str) -> str:
    return f"{results[key]:.3f}" if key in results else "-"


def _count(results: Results, key: str) -> str:
    return f"{int(results[key])}" if key in results else "-"


def _segments(results: Results, direction: str) -> Iterator[str]:
    """Yield the segments that are reported of a direction, such as "words=with"."""
    start = f"{SEGMENTS}/{direction}/"
    yield from dict.fromkeys(key.removeprefix(start).split("/")[0] for key in results if key.startswith(start))


def _describe_counts(results: Results, rest: Sequence[str]) -> Iterator[str]:
    yield "  metrics: fractions, 0 to 1; 95 % cluster bootstrap intervals over products"
    if queries := _counts(results, "num_queries"):
        yield f"  {_range(queries)} queries against {int(results['num_products'])} products"
        if any(whole_name(key) != key for key in results if key.startswith("val/")):
            yield "  of a sample of the gallery: higher than in the whole, not comparable with it"
        if any(unanswerable := _counts(results, "num_unanswerable")):
            yield f"  {_range(unanswerable)} queries left out: none of their products is in the gallery"
    if "step" in results and "epoch" in results:
        yield f"  of the checkpoint at step {int(results['step'])}, in epoch {int(results['epoch'])}"
    if STOPPED_AFTER in results:
        yield f"  ended by trainer.max_time after {timedelta(seconds=round(results[STOPPED_AFTER]))} of training"
    if rest:
        yield f"  in results.json: {', '.join(rest)} and more"


def _left_out(results: Results) -> Iterator[str]:
    """Yield a line for each direction with queries that answer themselves, repeat a photo, or nearly do."""
    for direction in directions_in(results):
        counts = {name: int(results.get(f"counts/{direction}/{name}", 0)) for name in LEFT_OUT}
        lines = [LEFT_OUT[name].format(format_count(count, "query")) for name, count in counts.items() if count]
        yield from (f"  {plain(direction)}: {line}" for line in lines)


def _counts(results: Results, name: str) -> list[int]:
    """Return a count of every direction."""
    return [int(value) for key, value in results.items() if key.startswith("counts/") and key.endswith(f"/{name}")]


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def describe_sample(results: Results, run_folder: Path, checkpoint: Path) -> str | None:
    """Return a line if the results are of a sample of the gallery, with the command that ranks the whole; else None."""
    if all(whole_name(key) == key for key in results if key.startswith("val/")):
        return None
    words = (f"checkpoint={checkpoint}", "whole_gallery=true", f"output={run_folder / 'whole_gallery'}")
    return f"the gallery was sampled; of the whole: python -m mim_lightning.evaluate {shlex.join(words)}"


def describe_decline(results: Results, monitor: str) -> str | None:
    """Return a line if training made the monitored metric worse, or None."""
    after, before = results.get(monitor), results.get(monitor.replace("val/", f"{INITIAL}/", 1))
    if after is None or before is None or after >= before:
        return None
    return (
        f"training made {monitor} worse: {after:.3f}, {before:.3f} before training; "
        "try a smaller optim.lr or optim.lr_scales.encoder=0.1"
    )
