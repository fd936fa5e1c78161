"""The curve of small vectors of a run: an index of every width, precision and type, evaluated on kept embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mim_lightning.analysis.embeddings import read_embeddings
from mim_lightning.analysis.html.pages import write_report_page
from mim_lightning.analysis.index_curve import CurvePoint, evaluate_with, read_ends, smallest_within
from mim_lightning.analysis.query_history import read_history
from mim_lightning.analysis.record import EvaluationRecord
from mim_lightning.next_command import folder_beside
from mim_lightning.run import Run
from mim_lightning.search.index.index_settings import IndexSettings
from mim_lightning.search.measured_index import all_settings, build_temporary, make_rows, measure_speed


def measure_sizes(
    record: EvaluationRecord,
    direction: str | None,
    widths: Sequence[int],
    precisions: Sequence[str],
    kinds: Sequence[str],
    num_rows: int | None,
    rerank: int,
) -> tuple[str, list[IndexSettings], list[CurvePoint], int]:
    """Build an index of every size, and rank the direction's queries by it.

    Args:
        direction: None: the monitored one.
        widths: besides the full one.
        num_rows: of a made-up catalog whose queries a second are measured; None: those of the gallery.
        rerank: candidates of coarse codes that are compared by their vectors, for each hit.

    Returns:
        The direction, the settings of each index, what each finds and costs, and the rows whose speed was measured.
    """
    ends = read_ends(record, read_embeddings(record.folder), direction)
    settings = all_settings([None, *widths], precisions, kinds, rerank)
    for wanted in settings:
        wanted.validate_dimension(ends.vectors.shape[1])
    exact = evaluate_with(ends)
    large = ends.vectors if num_rows is None else make_rows(ends.vectors, num_rows)
    points = []
    for wanted in settings:
        built = build_temporary(ends.vectors, ends.product_keys, wanted)
        ranked = evaluate_with(ends, built.find)
        speed = measure_speed(large, ends.query_vectors, wanted)
        width, sizes = wanted.dimension or ends.vectors.shape[1], (built.memory_bytes, built.disk_bytes)
        point = CurvePoint.of(width, wanted.precision, built.kind, ranked, exact, sizes, built.recall, speed)
        points.append(point)
    return ends.direction, settings, points, len(large)


def choose_smallest(settings: Sequence[IndexSettings], points: Sequence[CurvePoint], max_loss: float) -> list[str]:
    """Return the keys of build_index for the smallest index that loses no more nDCG@10; none where all lose more.

    What counts is the lower end of the interval of the loss.
    """
    chosen = smallest_within(points, max_loss)
    if chosen is None:
        return []
    kind = settings[list(points).index(chosen)].kind
    return [f"dimension={chosen.width}", f"precision={chosen.precision}", f"index.kind={kind}"]


def building_arguments(record: EvaluationRecord, direction: str, keys: Sequence[str], curve: Path | None) -> list[str]:
    """Return the arguments of build_index for the gallery of a direction; none where the checkpoint is not in its run.

    Args:
        keys: of the size, which the curve has.
        curve: its JSON file; None: it was not written.
    """
    config = record.facts.config
    checkpoint = Run(record.facts.run_id, record.folder.parent).checkpoint(config.get("results_from", "best"))
    if not checkpoint.exists():
        return []
    measured = [f"curve={curve}"] if keys and curve is not None else []
    place = f"checkpoint={checkpoint}", f"output={folder_beside(checkpoint, 'index')}"
    return [*place, f"gallery={config['directions'][direction]['gallery']}", *keys, *measured]


def write_report(record: EvaluationRecord, direction: str, points: Sequence[CurvePoint]) -> Path:
    """Write the report of a run again, with the curve, and return its path."""
    path = record.folder.parent / "report.html"
    history = read_history(path.parent).get(record.facts.monitored.direction)
    write_report_page(record, path, history, sizes=(direction, points))
    return path
