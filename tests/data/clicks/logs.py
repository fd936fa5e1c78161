"""Logs of impressions for tests: rows of a few queries, in a store or in a file."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from mim_lightning.data.clicks.click_log import ClickLog
from mim_lightning.data.manifest.row_store import RowStore
from mim_lightning.data.manifest.rows import OnIssue, raise_issue
from mim_lightning.data.manifest.table import open_table

Row = tuple[str, str, str, int, bool]  # answer, query, product, position, clicked
COLUMNS = ("impression_id", "query_id", "product_id", "position", "clicked")


def draw_rows(num_queries: int, examine: Callable[[int], float], seed: int = 0, num_answers: int = 8) -> list[Row]:
    """Return the rows of answers in random order, whose clicks follow the position-based model."""
    rng, rows = random.Random(seed), []
    for query in range(num_queries):
        relevance = {f"p{number}": rng.choice((0.1, 0.3, 0.9)) for number in rng.sample(range(9), 5)}
        for answer in range(num_answers):
            shown = rng.sample([*relevance], 4)
            for position, product in enumerate(shown, start=1):
                is_clicked = rng.random() < examine(position) * relevance[product]
                rows.append((f"a{query}-{answer}", f"q{query}", product, position, is_clicked))
    return rows


def write_log(path: Path, rows: Iterable[Row]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((*row[:-1], int(row[-1])) for row in rows)
    return path


def click_log(path: Path, rows: Iterable[Row], max_position: int = 20, on_issue: OnIssue = raise_issue) -> ClickLog:
    return ClickLog(open_table(write_log(path, rows), "impressions"), {}, RowStore(), max_position, on_issue)
