"""A shop, and Ray's steps without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from mim_lightning.data.preparation import ray_engine
from mim_lightning.data.preparation.ray_tables import FileCount, ShopTables, catalog_rows, join_rows
from mim_lightning.data.preparation.ray_tasks import ShardJob, join_part
from tests.data.preparation.ray_shop import write_shop


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shop(tmp_path)


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the same steps here, one after the other: what is grouped by Ray is grouped by hand."""

    def count(tables: ShopTables, train_split: str) -> list[FileCount]:
        rows = [ray_engine._count_one(file, tables, train_split) for file in tables.files()]
        return ray_engine._parse_counts(rows)

    def written(
        tables: ShopTables, job: ShardJob, finished: frozenset[int], num_parts: int
    ) -> Iterator[dict[str, Any]]:
        grouped = []
        for file in tables.files():
            words = file["table"], file["file"], job.layout
            grouped += join_rows(tables, *words, num_parts, job.train_split)
        joined = [join_part(part, finished) for part in groups(pyarrow.concat_tables(grouped), "part")]
        for file in tables.files():
            if file["table"] == "products":
                joined += catalog_rows(tables, file["file"], job.layout, finished)
        for shard in groups(pyarrow.concat_tables(joined), "shard"):
            yield {name: values[0] for name, values in ray_engine.write_group(shard, job).items()}

    monkeypatch.setattr(ray_engine, "ray_cluster", lambda settings: nullcontext())
    monkeypatch.setattr(ray_engine, "_count", count)
    monkeypatch.setattr(ray_engine, "_write_shards", written)


def groups(table: Any, column: str) -> list[Any]:
    values = table[column].to_pylist()
    return [table.filter(pyarrow.array([other == value for other in values])) for value in dict.fromkeys(values)]
