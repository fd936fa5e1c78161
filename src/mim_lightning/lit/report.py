"""A run's results as a table on the terminal, by direction.

Flat results ("val/image_to_image/hit@1" -> 0.61, "untouched/..." for epoch -1) come in, lines go out; the train
and evaluate doors call it. The table of a sweep is in `sweep.summary`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_lightning.analysis.segments import SEGMENTS
from mim_lightning.display.numbers import format_count
from mim_lightning.display.text import plain

COLUMNS = ("hit@1", "hit@5", "hit@10", "mrr", "map", "ndcg@10", "wrong_category@1")  # all others: results.json
Results = Mapping[str, float]
UNTOUCHED = "untouched"  # takes the place of "val" in the keys of epoch -1


def print_run(title: str, results: Results) -> None:
    """Print a direction a row: hit@1 of the untouched model, that of the trained one with its interval, and more."""
    caption = f"shares, 0 to 1; 95 % bootstrap intervals over products{_describe_counts(results)}"
    table = Table(title=escape(plain(title)), caption=caption, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("direction", no_wrap=True)
    has_counts = bool(_counts(results, "num_queries"))
    if has_counts:
        table.add_column("queries", justify="right")
        table.add_column("with\nwords", justify="right", style="dim")
    has_untouched = any(key.startswith(UNTOUCHED) for key in results)
    if has_untouched:
        table.add_column("untouched\nhit@1", justify="right", style="dim")
    columns = [metric for metric in COLUMNS if any(key.endswith(f"/{metric}") for key in results)]
    for metric in columns:
        table.add_column(metric.replace("_", "\n"), justify="right")
        if metric == "hit@1":
            table.add_column("95 %\ninterval", justify="right", style="dim")
    for direction in dict.fromkeys(key.split("/")[1] for key in results if key.startswith("val/")):
        before = [_cell(results, f"{UNTOUCHED}/{direction}/hit@1")] if has_untouched else []
        cells = [_cell(results, f"val/{direction}/{metric}") for metric in columns]
        if "hit@1" in columns:
            cells.insert(columns.index("hit@1") + 1, _interval(results, f"val/{direction}/hit@1"))
        table.add_row(Text(plain(direction)), *_kinds(results, direction) * has_counts, *before, *cells)
        for part in _parts_of(results, direction):
            key = f"{SEGMENTS}/{direction}/{part}"
            cells = [_cell(results, f"{key}/{metric}") for metric in columns]
            if "hit@1" in columns:
                cells.insert(columns.index("hit@1") + 1, _interval(results, f"{key}/hit@1"))
            counts = [_count(results, f"{key}/num_queries"), ""] * has_counts
            table.add_row(Text(f"  {plain(part)}"), *counts, *[""] * has_untouched, *cells, style="dim")
    _print(table)
    for line in _left_out(results):
        Console().print(line, highlight=False, markup=False)


def _kinds(results: Results, direction: str) -> list[str]:
    return [_count(results, f"counts/{direction}/{name}") for name in ("num_queries", "num_with_words")]


def _parts_of(results: Results, direction: str) -> list[str]:
    """Return the segments that are told of a direction, "words=with" for one."""
    start = f"{SEGMENTS}/{direction}/"
    return list(dict.fromkeys(key.removeprefix(start).split("/")[0] for key in results if key.startswith(start)))


LEFT_OUT = {
    "num_in_gallery": "{} left out whose photo is a picture of the gallery",
    "num_repeated": "{} left out of a photo that has the same answer in another row",
    "num_near_gallery": "{} counted whose photo looks like a picture of the gallery",
}


def _left_out(results: Results) -> Iterator[str]:
    """Yield a line for each direction with queries that answer themselves, repeat a photo, or nearly do."""
    for direction in dict.fromkeys(key.split("/")[1] for key in results if key.startswith("val/")):
        counts = {name: int(results.get(f"counts/{direction}/{name}", 0)) for name in LEFT_OUT}
        told = [LEFT_OUT[name].format(format_count(count, "query")) for name, count in counts.items() if count]
        if told:
            yield f"{plain(direction)}: {', '.join(told)}"


def describe_decline(results: Results, monitor: str) -> str | None:
    """Return a line if training made the monitored metric worse, or None."""
    after, before = results.get(monitor), results.get(monitor.replace("val/", f"{UNTOUCHED}/", 1))
    if after is None or before is None or after >= before:
        return None
    return (
        f"training made it worse: {monitor} is {after:.3f}, the untouched model had {before:.3f}; "
        "try a smaller optim.lr or optim.lr_scales.encoder=0.1"
    )


def _describe_counts(results: Results) -> str:
    queries = _counts(results, "num_queries")
    left_out = _counts(results, "num_unanswerable")
    if not queries:
        return ""
    text = f", over {_range(queries)} queries against {int(results['num_products'])} products"
    return text + (f" ({_range(left_out)} queries that no product answers left out)" if any(left_out) else "")


def _counts(results: Results, name: str) -> list[int]:
    """Return a count of every direction."""
    return [int(value) for key, value in results.items() if key.startswith("counts/") and key.endswith(f"/{name}")]


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _count(results: Results, key: str) -> str:
    return f"{int(results[key])}" if key in results else "-"


def _cell(results: Results, key: str) -> str:
    return f"{results[key]:.3f}" if key in results else "-"


def _interval(results: Results, key: str) -> str:
    if f"{key}/low" not in results:
        return "-"
    return f"{results[f'{key}/low']:.2f} - {results[f'{key}/high']:.2f}"


def _print(table: Table) -> None:
    console = Console()
    # a pipe has no width of its own: the table keeps all its columns there
    (console if console.is_terminal else Console(width=200)).print(table)
