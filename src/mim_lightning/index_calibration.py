"""Calibration of an index by held-out queries: fitted, drawn, kept in its card, and made again when it grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mim_lightning.artifact_paths import is_address
from mim_lightning.config import build
from mim_lightning.data.manifest.id_list import read_ids
from mim_lightning.data.preparation.prepared import open_prepared
from mim_lightning.display.progress import ProgressMeter
from mim_lightning.inference.model import LoadedModel
from mim_lightning.inference.quantization import base_fingerprint
from mim_lightning.search.calibration import (
    CALIBRATION,
    KINDS,
    ScoreCalibration,
    content_of,
    describe_calibrations,
    fit_calibration,
)
from mim_lightning.search.index.card import IndexCard
from mim_lightning.search.index.factory import open_index, read_index_card
from mim_lightning.search.index_builder import delete_products
from mim_lightning.search.judged_searches import judge_searches
from mim_lightning.search.results import print_card
from mim_lightning.search.searcher import open_searcher
from mim_lightning.stored_config import data_of

FIGURE = "calibration.svg"  # in the folder of the index
READ_AT_ONCE = 64  # queries


@dataclass(frozen=True)
class CalibrationSettings:
    """How an index is calibrated.

    Args:
        folder: of prepared data; None: of those that the model was trained with.
        split: of the queries; None: the one that training evaluated.
        num_queries: at most, drawn by `seed`.
        num_hits: of each search that count.
        false_alarm_rate: see `fit_calibration`.
    """

    folder: str | None = None
    split: str | None = None
    num_queries: int = 1000
    num_hits: int = 10
    false_alarm_rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_queries", "num_hits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 < self.false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate={self.false_alarm_rate}: give a fraction above 0 and below 1")


def calibrate_index(
    place: str, checkpoint: str | None, settings: CalibrationSettings
) -> tuple[dict[str, ScoreCalibration], dict[str, str]]:
    """Calibrate an index, store the result in its card and draw it; return it, and why a kind of query has none.

    Raises:
        ValueError: index, model or queries are missing, or no kind of query could be calibrated.
    """
    searcher = open_searcher(place, checkpoint)
    assert isinstance(searcher.encoder, LoadedModel)
    data = data_of(searcher.encoder.config, place)
    folder = settings.folder or str(data["folder"])
    prepared = open_prepared(folder, build(data.get("cache")))
    split = settings.split or str(data["val_split"])
    if split not in prepared.splits():
        raise ValueError(f"split={split}: {folder} has no queries of it; there are {', '.join(prepared.splits())}")
    queries = prepared.queries(split)
    order = np.random.default_rng(settings.seed).permutation(len(queries))
    numbers = np.sort(order[: settings.num_queries]).tolist()
    found, lacking = {}, {}
    for kind in KINDS:
        with ProgressMeter(len(numbers), verb="", noun="queries", label=f"{kind} queries") as meter:
            parts = (numbers[start : start + READ_AT_ONCE] for start in range(0, len(numbers), READ_AT_ONCE))
            samples = (sample for part in parts for sample in queries.read_few(part))
            judged = judge_searches(
                searcher, samples, kind, settings.num_hits, lambda: meter.update(meter.num_done + 1)
            )
        try:
            found[kind] = fit_calibration(
                judged.scores,
                judged.is_right,
                judged.best_wrong,
                judged.is_answerable,
                judged.groups,
                settings.false_alarm_rate,
                settings.seed,
            )
        except ValueError as error:
            lacking[kind] = str(error)
    if not found:
        reasons = "; ".join(f"{kind}: {reason}" for kind, reason in lacking.items())
        raise ValueError(f"{place}: cannot be calibrated by split '{split}' of {folder}: {reasons}")
    stored = {**asdict(settings), "folder": folder, "split": split}
    index, searched = open_index(place), searcher.index.card
    if content_of(index.card) != content_of(searched):
        raise ValueError(f"{place}: was changed by another process while it was calibrated; calibrate it again")
    fingerprint = base_fingerprint(searcher.encoder.fingerprint)
    index.set_extra({CALIBRATION: describe_calibrations(searched, fingerprint, found, stored)})
    index.save()
    if not is_address(place):
        from mim_lightning.analysis.html.reliability_figure import write_reliability

        write_reliability(Path(place) / FIGURE, {kind: calibration.bins for kind, calibration in found.items()})
    return found, lacking


def stored_settings(place: str) -> Mapping[str, Any] | None:
    """Return the settings by which an index was calibrated; None if it was not, or there is no index."""
    try:
        stored = read_index_card(place).extra.get(CALIBRATION)
    except (ValueError, OSError):
        return None
    return stored["settings"] if isinstance(stored, dict) and isinstance(stored.get("settings"), dict) else None


def calibrate_again(place: str, checkpoint: str | None, settings: Mapping[str, Any] | None) -> None:
    """Calibrate an index that has changed as it was calibrated before, and print what came of it.

    Args:
        settings: the `stored_settings` of before the change; None: it was not calibrated, and is not.
    """
    if settings is None:
        return
    try:
        found, _ = calibrate_index(place, checkpoint, CalibrationSettings(**settings))
    except (ValueError, OSError, TypeError) as error:
        if not is_address(place):
            (Path(place) / FIGURE).unlink(missing_ok=True)
        print(f"warning: its calibration holds no longer, and could not be made again: {error}")
    else:
        print(f"calibrated again: {', '.join(found)} queries")


def delete_products_of(place: str, products: str | Sequence[str]) -> IndexCard:
    """Delete products from an index, calibrate it again, and return its card.

    Args:
        products: ids, or the path of a table of them.
    """
    ids, calibrated_by = read_ids(products, "product_id"), stored_settings(place)
    card, num_deleted = delete_products(place, ids)
    print(f"deleted {num_deleted} of {len(ids)} products")
    print_card(place, card)
    calibrate_again(place, None, calibrated_by)
    return card
