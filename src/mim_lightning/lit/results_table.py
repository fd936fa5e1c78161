"""Table of a run's results in a terminal, and the lines below it.

Results are flat: "val/image_to_image/hit@1" -> 0.61, and "initial/..." for the model before training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mim_lightning.analysis.segments import SEGMENTS
from mim_lightning.display.numbers import format_count
from mim_lightning.display.text import plain
from mim_lightning.interruption import STOPPED_AFTER
from mim_lightning.metric_names import variants_of, whole_name

INITIAL = "initial"  # replaces "val" in the keys of epoch -1, the model before training
WIDTH = 80  # characters
Results = Mapping[str, float]
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
        if is_of_sample(results):
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


def is_of_sample(results: Results) -> bool:
    """Return whether results are of a sample of the gallery."""
    return any(whole_name(key) != key for key in results if key.startswith("val/"))


def describe_decline(results: Results, monitor: str) -> str | None:
    """Return a line if training made the monitored metric worse, or None."""
    after, before = results.get(monitor), results.get(monitor.replace("val/", f"{INITIAL}/", 1))
    if after is None or before is None or after >= before:
        return None
    return (
        f"training made {monitor} worse: {after:.3f}, {before:.3f} before training; "
        "try a smaller optim.lr or optim.lr_scales.encoder=0.1"
    )
