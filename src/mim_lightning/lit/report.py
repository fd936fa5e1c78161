"""Results as tables on the terminal: one run by direction, several runs by metric.

Flat results ("val/image_to_image/hit@1" -> 0.61, "untouched/..." for epoch -1) come in, lines go out; the train
and evaluate doors and the end of a sweep call it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

COLUMNS = ("hit@1", "hit@5", "hit@10", "mrr", "map", "ndcg@10", "wrong_category@1")  # all others: results.json
Results = Mapping[str, float]
UNTOUCHED = "untouched"  # takes the place of "val" in the keys of epoch -1


def print_run(title: str, results: Results) -> None:
    """Print a direction a row: what the untouched model reached at hit@1, and what the trained one does."""
    caption = f"shares, 0 to 1{_describe_counts(results)}"
    table = Table(title=title, caption=caption, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("direction", no_wrap=True)
    has_untouched = any(key.startswith(UNTOUCHED) for key in results)
    if has_untouched:
        table.add_column("untouched\nhit@1", justify="right", style="dim")
    columns = [metric for metric in COLUMNS if any(key.endswith(f"/{metric}") for key in results)]
    for metric in columns:
        table.add_column(metric.replace("_", "\n"), justify="right")
    for direction in dict.fromkeys(key.split("/")[1] for key in results if key.startswith("val/")):
        before = [_cell(results, f"{UNTOUCHED}/{direction}/hit@1")] if has_untouched else []
        table.add_row(direction, *before, *(_cell(results, f"val/{direction}/{metric}") for metric in columns))
    _print(table)


def print_comparison(
    title: str, runs: Sequence[tuple[str, Results]], metrics: Sequence[str] = ("hit@1", "hit@10")
) -> None:
    """Print one row a job and, where jobs differ in their seed alone, one row for the mean of those."""
    keys = [key for key in _keys(runs) if key.rsplit("/", 1)[1] in metrics]
    table = Table(
        title=title, caption="shares, 0 to 1; mean ± sample deviation over seeds", title_justify="left", box=SIMPLE
    )
    table.add_column("overrides", no_wrap=True)
    for key in keys:
        table.add_column(key.removeprefix("val/").replace("/", "\n").replace("_to_", "\nto "), justify="right")
    groups: dict[str, list[Results]] = {}
    for name, results in runs:
        table.add_row(name, *(_cell(results, key) for key in keys), style="dim")
        groups.setdefault(_without_seed(name), []).append(results)
    if len(groups) < len(runs):
        table.add_section()
        for name, members in groups.items():
            table.add_row(f"{name or 'all'}, {len(members)} seeds", *(_mean_cell(members, key) for key in keys))
    _print(table)


def _describe_counts(results: Results) -> str:
    if "num_queries" not in results:
        return ""
    left_out = int(results["num_unanswerable"])
    text = f", over {int(results['num_queries'])} queries against {int(results['num_products'])} products"
    return text + (f" ({left_out} queries that no product answers left out)" if left_out else "")


def _keys(runs: Sequence[tuple[str, Results]]) -> list[str]:
    return [key for key in dict.fromkeys(key for _, results in runs for key in results) if key.startswith("val/")]


def _without_seed(overrides: str) -> str:
    return " ".join(word for word in overrides.split() if not word.startswith("seed="))


def _cell(results: Results, key: str) -> str:
    return f"{results[key]:.3f}" if key in results else "-"


def _mean_cell(members: Sequence[Results], key: str) -> str:
    values = [results[key] for results in members if key in results]
    if not values:
        return "-"
    spread = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _print(table: Table) -> None:
    console = Console()
    # a pipe has no width of its own: the table keeps all its columns there
    (console if console.is_terminal else Console(width=200)).print(table)
