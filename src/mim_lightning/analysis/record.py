"""The record of an evaluation on disk: scores, ranks and hits of every query in every direction.

Ids are the strings of the tables, so that records of runs on different machines can be paired by query.

    <run>/evaluation/record.json            facts of the run, and counts by direction; written last
    <run>/evaluation/<direction>.parquet    one row an answerable query
    <run>/evaluation/embeddings.safetensors by tower, see `embeddings`
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mim_lightning.artifact_paths import RECORD_FACTS, find_record
from mim_lightning.data.shards.lookup import QueryFacts, product_ids_of
from mim_lightning.data.shards.shard_set import ShardSet
from mim_lightning.io.atomic import atomic_write_folder
from mim_lightning.io.damaged_file import errors_as_damaged_file
from mim_lightning.io.file_name import validate_file_name
from mim_lightning.metric_names import MetricKey, parse_key
from mim_lightning.stored_config import data_versions_of, validate_config, with_data_versions
from mim_lightning.types import NO_KEY, RetrievalReport

AGAIN = "evaluate the checkpoint again"
VERSION = 1
SCORE, SEGMENT = "score:", "segment:"  # prefixes of column names
_TEXT = pa.string()
_TYPES = {  # of the columns of a direction; those of a segment are text
    **dict.fromkeys(("query_id", "text", "unit_id"), _TEXT),
    "hit_ids": pa.list_(_TEXT),
    "hit_scores": pa.list_(pa.float64()),
    "hit_is_relevant": pa.list_(pa.bool_()),
}


@dataclass(frozen=True)
class DirectionRecord:
    """One direction of one evaluation; row q of every column belongs to the same query."""

    direction: str
    query_ids: list[str]
    texts: list[str]  # of the query, "" without one
    unit_ids: list[str]  # a relevant product: the cluster that intervals resample
    segments: dict[str, list[str]]  # segment name -> label of each query
    scores: dict[str, np.ndarray]  # metric -> (Q,) float64, nan where the metric is undefined for a query
    ranks: np.ndarray  # (Q,) int64, of the first relevant product, 1 for the top; 0: rank > depth
    hit_ids: list[list[str]]  # product ids, best first
    hit_scores: list[list[float]]
    hit_is_relevant: list[list[bool]]
    num_unanswerable: int
    num_products: int
    counting: Mapping[str, Any] | None = None  # which queries count, see `Direction.describe`; None: an older record


@dataclass(frozen=True)
class RunFacts:
    """The run of an evaluation, and where the images of its queries and products are stored."""

    run_id: str
    config: dict[str, Any]  # resolved
    fingerprint: str
    monitor: str  # "val/<direction>/<metric>"
    data_folder: str  # prepared shards
    val_split: str

    @property
    def monitored(self) -> MetricKey:
        """The direction and the metric of `monitor`."""
        return parse_key(self.monitor)

    def reading(self, versions: Mapping[str, int]) -> RunFacts:
        """Return the facts of a run that read these versions of its data."""
        return replace(self, config=with_data_versions(self.config, versions))

    def data_version(self, name: str) -> int:
        """Return the version of the data that was read: of `main`, `distractors` or a part of a mixture."""
        return data_versions_of(self.config).get(name, 1)


@dataclass(frozen=True)
class EvaluationRecord:
    """All directions of one evaluation."""

    folder: Path
    facts: RunFacts
    directions: dict[str, DirectionRecord]
    gallery: str = ""  # changes with the products that were ranked; "" in records of an older version


def read_record(folder: Path) -> EvaluationRecord:
    """Read the record of a run's folder, or of an evaluation folder itself.

    Raises:
        ValueError: it is missing or damaged; says how to make one.
    """
    found = find_record(folder)
    with errors_as_damaged_file(found / RECORD_FACTS, AGAIN):
        content = json.loads((found / RECORD_FACTS).read_text())
        if content["version"] != VERSION:
            raise ValueError(f"record format {content['version']}, this code reads {VERSION}")
        config = validate_config(content["run"]["config"], found / RECORD_FACTS, is_built=False)
        run, gallery = RunFacts(**{**content["run"], "config": config}), content.get("gallery", "")
        _validate_facts(run, content["directions"])
        directions = {
            validate_file_name(name, "directions"): _read_direction(found, name, counts)
            for name, counts in content["directions"].items()
        }
    return EvaluationRecord(found, run, directions, gallery)


def _validate_facts(run: RunFacts, directions: Any) -> None:
    """Raise ValueError for a value of another kind: the record may come from somewhere else."""
    for name, value in vars(run).items():
        if name != "config" and not isinstance(value, str):
            raise ValueError(f"run.{name} is {value!r}, not a text")
    if "/" not in run.monitor:
        raise ValueError(f"the run's monitor is {run.monitor!r}; it names a direction and a metric")
    data = run.config.get("data", {})
    splits = (data.get("splits") or {}) if isinstance(data, dict) else None
    if not isinstance(splits, dict):
        raise ValueError("the data in the run's config hold no keys")
    for name, value in (("seed", run.config.get("seed", 0)), ("data.splits.fold", splits.get("fold", 0))):
        if type(value) is not int:
            raise ValueError(f"run.config.{name} is {value!r}, not a whole number")
    for name, counts in directions.items():
        for key in ("num_unanswerable", "num_products"):
            if type(counts.get(key)) is not int or counts[key] < 0:
                raise ValueError(f"directions.{name}.{key} is {counts.get(key)!r}, not a count")
        if not isinstance(counts.get("counting"), dict | None):
            raise ValueError(f"directions.{name}.counting holds no keys")


def write_record(
    folder: Path,
    run: RunFacts,
    reports: Mapping[str, RetrievalReport],
    queries: Mapping[int, QueryFacts],
    products: Sequence[ShardSet],
    counting: Mapping[str, Mapping[str, Any]] | None = None,
    ranked: Sequence[np.ndarray] | None = None,
) -> None:
    """Write the record of one evaluation into `folder`, completely or not at all; an earlier one is replaced.

    Args:
        folder: of the record itself.
        run: that was evaluated.
        reports: by direction.
        queries: facts of each query, by query key.
        products: that were ranked, or a part of them was; the ids of hits are read from them.
        counting: by direction, which queries it counts.
        ranked: the samples of each set of products that were ranked; None: all.
    """
    keys = np.concatenate([report.hits.product_keys.numpy().ravel() for report in reports.values()])
    units = np.concatenate([report.cluster_keys.numpy() for report in reports.values()])
    product_ids = product_ids_of(products, np.concatenate([keys, units]))
    counts: dict[str, dict[str, Any]] = {}
    shutil.rmtree(folder.with_name(f".{folder.name}.partial"), ignore_errors=True)  # left by an older version
    with atomic_write_folder(folder) as partial:
        for name, report in reports.items():
            pq.write_table(_table(report, queries, product_ids), partial / f"{name}.parquet")
            counts[name] = {"num_unanswerable": report.num_unanswerable, "num_products": report.num_products}
            if report.counts is not None:
                counts[name] |= report.counts.as_counts()
            if counting is not None:
                counts[name]["counting"] = counting[name]
        content = {"version": VERSION, "run": vars(run), "gallery": _digest(products, ranked), "directions": counts}
        (partial / RECORD_FACTS).write_text(json.dumps(content, indent=2))


def _digest(products: Sequence[ShardSet], ranked: Sequence[np.ndarray] | None) -> str:
    """Return a hash of the ids of the products that were ranked, independent of their order."""
    parts = [np.asarray(part.keys) for part in products]
    if ranked is not None:
        parts = [part[numbers] for part, numbers in zip(parts, ranked, strict=True)]
    keys = np.unique(np.concatenate(parts))
    return hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest()


def _table(report: RetrievalReport, queries: Mapping[int, QueryFacts], product_ids: Mapping[int, str]) -> pa.Table:
    hits = report.hits
    facts = [queries[key] for key in hits.query_keys.tolist()]
    lengths = (hits.product_keys != NO_KEY).sum(dim=1).tolist()

    def lists(part: Any) -> list[list[Any]]:
        return [row[:length] for row, length in zip(part.tolist(), lengths, strict=True)]

    columns: dict[str, Sequence[Any]] = {
        "query_id": [fact.query_id for fact in facts],
        "text": [fact.text for fact in facts],
        "unit_id": [product_ids[key] for key in report.cluster_keys.tolist()],
        "rank": report.ranks.tolist(),
        "hit_ids": [[product_ids[key] for key in row] for row in lists(hits.product_keys)],
        "hit_scores": lists(hits.scores),
        "hit_is_relevant": lists(hits.is_relevant),
    }
    columns |= {f"{SCORE}{name}": values.tolist() for name, values in report.scores.items()}
    for name in facts[0].segments if facts else ():
        columns[f"{SEGMENT}{name}"] = [fact.segments[name] for fact in facts]
    return pa.table(columns)


def _read_direction(folder: Path, name: str, counts: Mapping[str, Any]) -> DirectionRecord:
    path = folder / f"{name}.parquet"
    with errors_as_damaged_file(path, AGAIN):
        for key in ("num_unanswerable", "num_products"):
            if not isinstance(counts[key], int):
                raise TypeError(f"{key} is {counts[key]!r}")
        with pq.ParquetFile(path) as file:  # `read_table` takes a folder "seed=1" for a column, and waits for threads
            return _direction_of(_typed_columns(file.read(use_threads=False)), name, counts)


def _typed_columns(table: pa.Table) -> dict[str, list[Any]]:
    """Return the columns by name, cast to the types that are used: the record may come from somewhere else."""
    columns = {}
    for name in table.column_names:
        wanted = _TEXT if name.startswith(SEGMENT) else _TYPES.get(name)
        if wanted is not None and table[name].null_count:
            raise ValueError(f"column '{name}' lacks values")
        columns[name] = (table[name] if wanted is None else table[name].cast(wanted)).to_pylist()
    return columns


def _direction_of(columns: Mapping[str, list[Any]], name: str, counts: Mapping[str, Any]) -> DirectionRecord:
    def starting(prefix: str) -> dict[str, list[Any]]:
        return {key.removeprefix(prefix): values for key, values in columns.items() if key.startswith(prefix)}

    ids, ranks = columns["query_id"], np.array(columns["rank"], dtype=np.int64)
    if len(set(ids)) < len(ids) or (ranks < 0).any():
        raise ValueError("a query is there twice, or a rank is negative")
    hits = [list(map(len, columns[name])) for name in ("hit_ids", "hit_scores", "hit_is_relevant")]
    if hits[0] != hits[1] or hits[0] != hits[2]:
        raise ValueError("a query has hits without a score")
    return DirectionRecord(
        direction=name,
        query_ids=ids,
        texts=columns["text"],
        unit_ids=columns["unit_id"],
        segments=starting(SEGMENT),
        scores={metric: np.array(values, dtype=np.float64) for metric, values in starting(SCORE).items()},
        ranks=ranks,
        hit_ids=columns["hit_ids"],
        hit_scores=columns["hit_scores"],
        hit_is_relevant=columns["hit_is_relevant"],
        num_unanswerable=counts["num_unanswerable"],
        num_products=counts["num_products"],
        counting=counts.get("counting"),
    )
