"""Queries tracked from validation pass to pass: their hits, and how their rank changed.

<run>/browser/history.jsonl    one row a line: pass by pass, direction by direction
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mim_lightning.data.shards.lookup import QueryFacts
from mim_lightning.io.atomic import atomic_write, write_errors_named
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.types import NO_KEY, RetrievalReport, hash_id

BROWSER_FOLDER, HISTORY_FILE = "browser", "history.jsonl"
MAX_CANDIDATES = 2000  # from which queries are selected


@dataclass(frozen=True)
class TrackedQuery:
    """The hits of one query in one direction and one validation pass."""

    epoch: int  # -1: before training
    step: int  # optimizer steps before the pass
    direction: str
    query_id: str
    text: str  # "" without one
    segments: dict[str, str]
    truth_ids: list[str]  # the relevant products
    hit_ids: list[str]  # best first
    hit_scores: list[float]
    hit_is_relevant: list[bool]
    rank: int  # of the first relevant product, 1 for the top; 0: rank > depth
    rank_before: int | None = None  # in the previous pass; None in the first
    best_rank: int = 0  # so far, this pass included


def select_tracked_queries(
    keys: Sequence[int], facts: Mapping[int, QueryFacts], num_queries: int, seed: int = 0
) -> list[int]:
    """Select queries to track, by key, spread over the segments; deterministic.

    Each step takes the query whose labels were selected least often so far; ties are broken by a hash of seed and id.
    """
    candidates = sorted(keys, key=lambda key: hash_id(f"{seed}/{facts[key].query_id}"))[:MAX_CANDIDATES]
    seen: Counter[tuple[str, str]] = Counter()
    selected: list[int] = []
    for _ in range(min(num_queries, len(candidates))):
        best = min(candidates, key=lambda key: sum(seen[label] for label in facts[key].segments.items()))
        candidates.remove(best)
        selected.append(best)
        seen.update(facts[best].segments.items())
    return selected


def track(
    report: RetrievalReport,
    keys: Sequence[int],
    facts: Mapping[int, QueryFacts],
    truth_ids: Mapping[int, Sequence[str]],
    product_ids: Mapping[int, str],
    num_hits: int,
    epoch: int,
    step: int,
) -> list[TrackedQuery]:
    """Return the hits of the queries of `keys` in a validation pass.

    Args:
        report: of one direction; contains every key.
        keys: of the queries.
        facts: by query key.
        truth_ids: by query key.
        product_ids: by product key; contains all first hits.
        num_hits: of each query.
        epoch: of the pass.
        step: of the pass.
    """
    row_of = {key: row for row, key in enumerate(report.hits.query_keys.tolist())}
    rows = []
    for key in keys:
        row = row_of[key]
        hits = [product for product in report.hits.product_keys[row, :num_hits].tolist() if product != NO_KEY]
        rows.append(
            TrackedQuery(
                epoch=epoch,
                step=step,
                direction=report.direction,
                query_id=facts[key].query_id,
                text=facts[key].text,
                segments=facts[key].segments,
                truth_ids=list(truth_ids[key]),
                hit_ids=[product_ids[product] for product in hits],
                hit_scores=[round(score, 6) for score in report.hits.scores[row, : len(hits)].tolist()],
                hit_is_relevant=report.hits.is_relevant[row, : len(hits)].tolist(),
                rank=int(report.ranks[row]),
            )
        )
    return rows


class TrackedQueryLog:
    """The tracked queries of one run, in a file that survives a killed process.

    A run that resumes at an earlier step first removes the rows that it will write again.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / HISTORY_FILE
        self._ranks: dict[tuple[str, str], list[int]] | None = None  # by direction and query, pass by pass

    def append(self, rows: Sequence[TrackedQuery]) -> list[TrackedQuery]:
        """Write the rows of one pass, and return them with the previous and the best rank filled in."""
        if not rows:
            return []
        if self._ranks is None:
            self._ranks = self._resume(rows[0].step)
        complete = [self._complete(row, self._ranks.setdefault((row.direction, row.query_id), [])) for row in rows]
        with write_errors_named(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(_to_line(row) for row in complete))
            file.flush()
            os.fsync(file.fileno())
        return complete

    def ranks(self, direction: str, query_id: str) -> list[int]:
        """Return the ranks of a query so far, pass by pass."""
        return list((self._ranks or {}).get((direction, query_id), []))

    def _resume(self, step: int) -> dict[tuple[str, str], list[int]]:
        """Remove what an interrupted process wrote from this step on, and an incomplete line."""
        kept = [row for row in _read_rows(self.path) if row.step < step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as partial:
            partial.write_text("".join(_to_line(row) for row in kept), encoding="utf-8")
        ranks: dict[tuple[str, str], list[int]] = {}
        for row in kept:
            ranks.setdefault((row.direction, row.query_id), []).append(row.rank)
        return ranks

    @staticmethod
    def _complete(row: TrackedQuery, ranks: list[int]) -> TrackedQuery:
        before = ranks[-1] if ranks else None
        ranks.append(row.rank)
        found = [rank for rank in ranks if rank]
        return dataclasses.replace(row, rank_before=before, best_rank=min(found, default=0))


class TrackedRank(NamedTuple):
    """The rank of a query in one validation pass."""

    step: int  # optimizer steps before the pass
    epoch: int  # -1: before training
    rank: int  # 0: rank > depth


def read_history(folder: Path) -> dict[str, dict[str, list[TrackedRank]]]:
    """Return the ranks of a run's tracked queries, by direction and query id, pass by pass.

    Empty for a run that tracked none.

    Args:
        folder: of the run, or its browser folder.
    """
    history: dict[str, dict[str, list[TrackedRank]]] = {}
    for row in read_tracked(folder):
        rank = TrackedRank(row.step, row.epoch, row.rank)
        history.setdefault(row.direction, {}).setdefault(row.query_id, []).append(rank)
    return history


def read_tracked(folder: Path) -> list[TrackedQuery]:
    """Return all rows of a run in the order of the passes; none for a run that tracked none."""
    inner = folder / BROWSER_FOLDER / HISTORY_FILE
    return _read_rows(inner if inner.exists() else folder / HISTORY_FILE)


def _read_rows(path: Path) -> list[TrackedQuery]:
    if not path.exists():
        return []
    with errors_as_damaged_file(path, "delete it, and the run starts a new one"):
        *lines, last = path.read_bytes().split(b"\n")  # the last is empty, or incomplete if the writer was killed
        if not b"{".startswith(last[:1]):
            raise ValueError("it does not end in a row")
        return [TrackedQuery(**json.loads(line)) for line in lines]


def _to_line(row: TrackedQuery) -> str:
    return json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n"
