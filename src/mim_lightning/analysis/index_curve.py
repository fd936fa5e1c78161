"""The curve of small vectors: a direction ranked by indexes of many sizes, as a table, a file and a figure."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mim_lightning.analysis.embeddings import EvaluationEmbeddings
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.display.text import plain
from mim_lightning.io.atomic import atomic_write
from mim_lightning.metrics import paired_difference
from mim_lightning.metrics.directions import evaluate_directions, read_side
from mim_lightning.types import Direction, RetrievalReport

METRIC, CUTOFF = "ndcg@10", 10
FindKeys = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
_NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class CurveEnds:
    """A direction, and the vectors of its two sides."""

    direction: str
    ends: Direction
    embeddings: EvaluationEmbeddings
    vectors: np.ndarray  # (N, D) of the gallery
    product_keys: np.ndarray  # (N,)
    query_vectors: np.ndarray  # (Q, D)


@dataclass(frozen=True)
class CurvePoint:
    """What an index of one size finds, takes and answers."""

    width: int
    precision: str
    kind: str
    ndcg: float
    low: float
    high: float
    difference: float  # from exact search of the whole vectors, paired by query
    difference_low: float
    difference_high: float
    memory_bytes: float  # of a product
    disk_bytes: float
    recall: float | None  # of the best ten by the whole vectors, over made-up queries; None: not measured
    queries_per_second: float

    @classmethod
    def of(
        cls,
        width: int,
        precision: str,
        kind: str,
        report: RetrievalReport,
        exact: RetrievalReport,
        sizes: tuple[float, float],
        recall: float | None,
        queries_per_second: float,
    ) -> CurvePoint:
        found, whole = report.scores[METRIC].numpy(), exact.scores[METRIC].numpy()
        change = paired_difference(found, whole, report.cluster_keys.numpy(), _NUM_RESAMPLES)
        differences = change.difference, change.low, change.high
        quality = report.values[METRIC], *report.intervals[METRIC], *differences
        return cls(width, precision, kind, *quality, *sizes, recall, queries_per_second)


def read_ends(record: EvaluationRecord, embeddings: EvaluationEmbeddings, direction: str | None) -> CurveEnds:
    """Return a direction of an evaluation with its vectors.

    Args:
        direction: None: the monitored one.

    Raises:
        ValueError: no such direction, or one whose scores are combined of several vectors.
    """
    known = {key: ends for key, ends in record.facts.config["directions"].items() if ends is not None}
    name = direction or record.facts.monitored.direction
    if name not in known:
        raise ValueError(f"--direction {name}: no such direction; {record.folder} has {', '.join(known)}")
    ends = Direction(**known[name])
    for side in (ends.query, ends.gallery):
        if side in embeddings.fusions and not getattr(embeddings.fusions[side], "needs_one_vector", True):
            raise ValueError(f"--direction {name}: '{side}' combines scores, which no smaller vector stands for")
    vectors, keys = read_side(ends.gallery, embeddings.gallery, embeddings.fusions)
    queries, _ = read_side(ends.query, embeddings.queries, embeddings.fusions)
    return CurveEnds(name, ends, embeddings, vectors.numpy(), keys.numpy(), queries.numpy())


def evaluate_with(ends: CurveEnds, find: FindKeys | None = None) -> RetrievalReport:
    """Return the report of a direction whose products an index finds; None: every row is compared."""

    def search(query_QD: torch.Tensor, num_wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert find is not None
        keys_QK, scores_QK = find(query_QD.numpy(), num_wanted)
        return torch.from_numpy(keys_QK), torch.from_numpy(scores_QK)

    data = ends.embeddings
    reports = evaluate_directions(
        {ends.direction: ends.ends},
        data.queries,
        data.gallery,
        data.fusions,
        data.fields,
        cutoffs=(CUTOFF,),
        depth=CUTOFF,
        num_hits=CUTOFF,
        num_resamples=_NUM_RESAMPLES,
        search=None if find is None else search,
    )
    return reports[ends.direction]


def _cells(point: CurvePoint) -> list[str]:
    return [
        str(point.width),
        point.precision,
        point.kind,
        f"{point.ndcg:.3f} [{point.low:.3f}, {point.high:.3f}]",
        f"{point.difference:+.3f} [{point.difference_low:+.3f}, {point.difference_high:+.3f}]",
        "exact" if point.recall is None else f"{point.recall:.3f}",
        f"{point.memory_bytes:,.0f}",
        f"{point.disk_bytes:,.0f}",
        f"{point.queries_per_second:,.0f}",
    ]


def smallest_within(points: Sequence[CurvePoint], max_loss: float) -> CurvePoint | None:
    """Return the point of the fewest bytes that loses at most `max_loss`, at the lower end of its interval."""
    fitting = [point for point in points if point.difference_low >= -max_loss]
    return min(fitting, key=lambda point: (point.memory_bytes, -point.queries_per_second), default=None)


HEADERS = ("width", "precision", "index", METRIC, "difference", "recall@10", "memory", "disk", "queries/s")


def _describe(direction: str, num_rows: int) -> str:
    return (
        f"{plain(direction)}: difference from exact search of whole vectors, paired; 95 % intervals over products; "
        "recall@10 of the best by whole vectors; bytes a product in memory and on disk; queries/s one at a time, of "
        f"{num_rows:,} rows"
    )


def print_points(direction: str, points: Sequence[CurvePoint], num_rows: int) -> None:
    """Print one row an index."""
    table = Table(box=SIMPLE, caption=Text(_describe(direction, num_rows)), caption_justify="left")
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for point in points:
        table.add_row(*_cells(point))
    Console(width=max(Console().width, 140)).print(table)


def write_points(
    direction: str, points: Sequence[CurvePoint], num_rows: int, folder: Path, fingerprint: str
) -> list[Path]:
    """Write `index_curve.csv`, `.md`, `.png` and `.json` into a folder, and return their paths.

    The JSON file says which model (`fingerprint`), direction and rows the points are of; `build_index` reads it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"index_curve.{suffix}" for suffix in ("csv", "md", "png", "json")]
    facts = {"fingerprint": fingerprint, "direction": direction, "num_rows": num_rows}
    with atomic_write(paths[3]) as partial:
        partial.write_text(json.dumps({**facts, "points": [asdict(point) for point in points]}, indent=2), "utf-8")
    with atomic_write(paths[0]) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [part.name for part in fields(CurvePoint)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)
    lines = [f"| {' | '.join(HEADERS)} |", f"|{' ---: |' * len(HEADERS)}"]
    lines += [f"| {' | '.join(_cells(point))} |" for point in points]
    with atomic_write(paths[1]) as partial:
        partial.write_text("\n".join([*lines, "", f"{_describe(direction, num_rows)}.", ""]), "utf-8")
    draw_points(direction, points, paths[2])
    return paths


def draw_points(direction: str, points: Sequence[CurvePoint], path: Path) -> None:
    """Draw nDCG@10 over the bytes of a product in memory, a line for each precision and type."""
    from mim_lightning.display.style import line_look, new_figure, save_figure

    figure, axes = new_figure(width=6.4, height=4.0)
    for place, (precision, kind) in enumerate(dict.fromkeys((point.precision, point.kind) for point in points)):
        line = sorted(
            (point for point in points if (point.precision, point.kind) == (precision, kind)),
            key=lambda point: point.memory_bytes,
        )
        look = line_look(place)
        axes.plot([p.memory_bytes for p in line], [p.ndcg for p in line], label=f"{precision}, {kind}", **look)
        axes.fill_between(
            [p.memory_bytes for p in line],
            [p.low for p in line],
            [p.high for p in line],
            color=look["color"],
            alpha=0.1,
            linewidth=0,
        )
        for point in line:
            axes.annotate(str(point.width), (point.memory_bytes, point.ndcg), fontsize=7, ha="center", va="bottom")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bytes a product in memory")
    axes.set_ylabel(METRIC)
    axes.set_title(f"{direction}: numbers are widths, bands 95 % intervals over products", loc="left")
    axes.legend(loc="lower right")
    save_figure(figure, path)
