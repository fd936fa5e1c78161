"""A few queries followed from pass to pass: which ones, what they found, and how their rank moved.

RetrievalReports and facts of the queries go in after each validation pass, a `FollowedQuery` a query and direction
comes out, and stays in a file; the browser callback writes, pages read (`read_history`).

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

from mim_lightning.data.shards.lookup import QueryFacts
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.types import NO_KEY, RetrievalReport, id_key

BROWSER_FOLDER, HISTORY_FILE = "browser", "history.jsonl"
MAX_CANDIDATES = 2000  # spread over the segments are the queries chosen from these


@dataclass(frozen=True)
class FollowedQuery:
    """What one query found in one direction, in one pass."""

    epoch: int  # -1 for the untouched model
    step: int  # optimiser steps taken before the pass
    direction: str
    query_id: str
    text: str  # "" without words
    segments: dict[str, str]
    truth_ids: list[str]  # the products that answer it
    hit_ids: list[str]  # best first
    hit_scores: list[float]
    hit_is_relevant: list[bool]
    rank: int  # of the first right product, 1 for the top; 0 where it lies beyond the depth
    rank_before: int | None = None  # in the pass before; None in the first
    best_rank: int = 0  # so far, this pass included


def choose_queries(keys: Sequence[int], facts: Mapping[int, QueryFacts], num_queries: int, seed: int = 0) -> list[int]:
    """Choose queries to follow, by key, spread over the segments: always the same ones of the same queries.

    Each choice takes the labels that stand least often among those before, a digest of seed and id where several do.
    """
    candidates = sorted(keys, key=lambda key: id_key(f"{seed}/{facts[key].query_id}"))[:MAX_CANDIDATES]
    seen: Counter[tuple[str, str]] = Counter()
    chosen: list[int] = []
    for _ in range(min(num_queries, len(candidates))):
        best = min(candidates, key=lambda key: sum(seen[label] for label in facts[key].segments.items()))
        candidates.remove(best)
        chosen.append(best)
        seen.update(facts[best].segments.items())
    return chosen


def follow(
    report: RetrievalReport,
    keys: Sequence[int],
    facts: Mapping[int, QueryFacts],
    truth_ids: Mapping[int, Sequence[str]],
    product_ids: Mapping[int, str],
    num_hits: int,
    epoch: int,
    step: int,
) -> list[FollowedQuery]:
    """Return what the queries of `keys` found in a pass.

    Args:
        report: of one direction; every key stands in it.
        facts, truth_ids: by query key.
        product_ids: by product key; all first hits stand in it.
    """
    places = {key: place for place, key in enumerate(report.hits.query_keys.tolist())}
    rows = []
    for key in keys:
        place = places[key]
        hits = [product for product in report.hits.product_keys[place, :num_hits].tolist() if product != NO_KEY]
        rows.append(
            FollowedQuery(
                epoch=epoch,
                step=step,
                direction=report.direction,
                query_id=facts[key].query_id,
                text=facts[key].text,
                segments=facts[key].segments,
                truth_ids=list(truth_ids[key]),
                hit_ids=[product_ids[product] for product in hits],
                hit_scores=[round(score, 6) for score in report.hits.scores[place, : len(hits)].tolist()],
                hit_is_relevant=report.hits.is_relevant[place, : len(hits)].tolist(),
                rank=int(report.ranks[place]),
            )
        )
    return rows


class BrowserHistory:
    """The rows of one run, in a file that outlives being killed.

    A run that starts again at an earlier step takes back the rows it makes anew, so none stands twice.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / HISTORY_FILE
        self._ranks: dict[tuple[str, str], list[int]] | None = None  # by direction and query, pass by pass

    def append(self, rows: Sequence[FollowedQuery]) -> list[FollowedQuery]:
        """Write the rows of one pass, and return them with the rank before and the best rank filled in."""
        if not rows:
            return []
        if self._ranks is None:
            self._ranks = self._resume(rows[0].step)
        complete = [self._complete(row, self._ranks.setdefault((row.direction, row.query_id), [])) for row in rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(_to_line(row) for row in complete))
            file.flush()
            os.fsync(file.fileno())
        return complete

    def ranks(self, direction: str, query_id: str) -> list[int]:
        """Return the ranks of a query so far, pass by pass."""
        return list((self._ranks or {}).get((direction, query_id), []))

    def _resume(self, step: int) -> dict[tuple[str, str], list[int]]:
        """Cut off what an interrupted process wrote from this step on, with a line it did not finish."""
        kept = [row for row in _read_rows(self.path) if row.step < step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as partial:
            partial.write_text("".join(_to_line(row) for row in kept), encoding="utf-8")
        ranks: dict[tuple[str, str], list[int]] = {}
        for row in kept:
            ranks.setdefault((row.direction, row.query_id), []).append(row.rank)
        return ranks

    @staticmethod
    def _complete(row: FollowedQuery, ranks: list[int]) -> FollowedQuery:
        before = ranks[-1] if ranks else None
        ranks.append(row.rank)
        found = [rank for rank in ranks if rank]
        return dataclasses.replace(row, rank_before=before, best_rank=min(found, default=0))


def read_history(folder: Path) -> dict[str, dict[str, list[tuple[int, int]]]]:
    """Return the followed ranks of a run: by direction and query id, (epoch, rank) pass by pass.

    Epoch -1 is the untouched model; rank 0 lies beyond the depth. Empty for a run that followed none.

    Args:
        folder: of the run, or its browser folder.
    """
    history: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for row in read_followed(folder):
        history.setdefault(row.direction, {}).setdefault(row.query_id, []).append((row.epoch, row.rank))
    return history


def read_followed(folder: Path) -> list[FollowedQuery]:
    """Return every followed row of a run, in the order of the passes; none for a run that followed none."""
    inner = folder / BROWSER_FOLDER / HISTORY_FILE
    return _read_rows(inner if inner.exists() else folder / HISTORY_FILE)


def _read_rows(path: Path) -> list[FollowedQuery]:
    if not path.exists():
        return []
    with errors_as_damaged_file(path, "delete it, and the run starts a new one"):
        *lines, _ = path.read_bytes().split(b"\n")  # the last is empty, or torn where the writer was killed
        return [FollowedQuery(**json.loads(line)) for line in lines]


def _to_line(row: FollowedQuery) -> str:
    return json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n"
