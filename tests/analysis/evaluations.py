"""Evaluation folders made by hand, as a run would leave them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mim_lightning.analysis.record import EvaluationRecord, read_record


@dataclass
class Row:
    """What one run answered one query; the right product is `unit_id`."""

    query_id: str
    unit_id: str
    rank: int  # 0: not found
    segments: Mapping[str, str] = field(default_factory=lambda: {"category": "all"})
    text: str = ""
    hit_ids: Sequence[str] | None = None  # None: made up from the rank
    scores: Mapping[str, float] | None = None  # None: hit@1 and mrr of the rank

    def hits(self) -> list[str]:
        made_up = [self.unit_id if place == self.rank else f"other{place}" for place in range(1, 6)]
        return list(self.hit_ids) if self.hit_ids is not None else made_up


def config(model: str = "2tower", seed: int = 1, fold: int | None = None, **more: Any) -> dict[str, Any]:
    """Return a resolved config with the keys in which runs differ; `more` by dotted key with __ for dots."""
    protocol = {"label": ""} if fold is None else {"num_folds": 3, "fold": fold, "label": f"-fold{fold}of3"}
    made: dict[str, Any] = {
        "seed": seed,
        "model": {"name": model},
        "loss": {"temperature": 0.1},
        "data": {"name": "shop", "seed": seed, "num_workers": 2, "protocol": protocol},
        "run": {"id": f"{model}-seed{seed}"},
        "paths": {"runs": f"/somewhere/{model}"},
        "trainer": {"devices": 1, "max_epochs": 3},
    }
    for key, value in more.items():
        *sections, last = key.split("__")
        part = made
        for section in sections:
            part = part.setdefault(section, {})
        part[last] = value
    return made


def write_evaluation(
    folder: Path,
    rows: Sequence[Row],
    config: Mapping[str, Any],
    direction: str = "image_to_image",
    num_products: int = 50,
    data_folder: str = "/gone",
) -> EvaluationRecord:
    """Write one direction (further ones join an existing folder) and read the whole back."""
    folder.mkdir(parents=True, exist_ok=True)
    facts_path = folder / "record.json"
    known = json.loads(facts_path.read_text())["directions"] if facts_path.is_file() else {}
    scores = [row.scores or {"hit@1": float(row.rank == 1), "mrr": 1 / row.rank if row.rank else 0.0} for row in rows]
    columns: dict[str, list[Any]] = {
        "query_id": [row.query_id for row in rows],
        "text": [row.text for row in rows],
        "unit_id": [row.unit_id for row in rows],
        "rank": [row.rank for row in rows],
        "hit_ids": [row.hits() for row in rows],
        "hit_scores": [[0.9 - 0.1 * place for place in range(len(row.hits()))] for row in rows],
        "hit_is_relevant": [[product == row.unit_id for product in row.hits()] for row in rows],
    }
    columns |= {f"score:{name}": [score[name] for score in scores] for name in scores[0]}
    columns |= {f"segment:{name}": [row.segments[name] for row in rows] for name in rows[0].segments}
    pq.write_table(pa.table(columns), folder / f"{direction}.parquet")
    run = {
        "run_id": config["run"]["id"],
        "config": config,
        "fingerprint": f"{config['run']['id']}-weights",
        "monitor": "val/image_to_image/hit@1",
        "data_folder": data_folder,
        "val_split": "val",
    }
    counts = {direction: {"num_unanswerable": 0, "num_products": num_products}}
    facts_path.write_text(json.dumps({"version": 1, "run": run, "directions": {**known, **counts}}))
    return read_record(folder)


def plain_rows(ranks: Sequence[int], prefix: str = "q", **more: Any) -> list[Row]:
    """Return a query of its own product for each rank."""
    return [Row(f"{prefix}{place:03d}", f"{prefix}p{place}", rank, **more) for place, rank in enumerate(ranks)]
