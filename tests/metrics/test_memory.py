"""What an evaluation states of its memory is held: what it keeps to the byte, and the resident size of the process."""

import sys
from pathlib import Path

import pytest
import torch

from mim_lightning.metrics import EmbeddingCollector
from mim_lightning.metrics.directions import GALLERY_COLUMNS, column_names, evaluate_countable
from mim_lightning.metrics.memory import EvaluationMemory
from mim_lightning.types import Direction
from tests.metrics.test_processes import FUSIONS

NUM_QUERIES, NUM_GALLERY, WIDTH, BATCH = 64, 40_000, 256, 1000
WORKING = 2**24


def resident(which: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def collect(side: str, num_rows: int, columns: tuple[str, ...], dtype: torch.dtype) -> EmbeddingCollector:
    towers = [f"{side}_image", f"{side}_text"]
    metric = EmbeddingCollector(towers, columns, num_rows, "cpu", dtype)
    for first in range(0, num_rows, BATCH):
        keys = torch.arange(first, min(first + BATCH, num_rows))
        vectors = {tower: torch.randn(len(keys), WIDTH) for tower in towers}
        ids = dict.fromkeys(columns, torch.full_like(keys, -1)) | {"product_keys": keys, "query_keys": keys}
        ids |= dict.fromkeys(("asked_keys", "asked_grades", "shown_keys"), keys[:, None] + 1)
        ids |= {name: torch.ones_like(keys) for name in columns if name.startswith("has_")}
        is_row = torch.ones(len(keys), dtype=torch.bool)
        metric.update(keys, vectors, dict.fromkeys(towers, is_row), ids, is_row)
    return metric


@pytest.mark.skipif(sys.platform != "linux", reason="the resident size is read from Linux's /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_is_as_stated(dtype: torch.dtype) -> None:
    columns = column_names(), GALLERY_COLUMNS
    stated = EvaluationMemory(
        num_queries=NUM_QUERIES,
        num_gallery=NUM_GALLERY,
        own_queries=NUM_QUERIES,
        own_gallery=NUM_GALLERY,
        query_towers=2,
        gallery_towers=2,
        width=WIDTH,
        value_bytes=dtype.itemsize,
        query_ids=1 + len(columns[0]),
        gallery_ids=1 + len(columns[1]),
        num_directions=2,
        working_bytes=WORKING * 3 // 2,
    )
    few = collect("query", NUM_QUERIES, columns[0], dtype).take_table(), collect("product", 500, columns[1], dtype)
    directions = {"towers": Direction("query_image", "product_image"), "fusions": Direction("query", "product")}
    evaluate_countable(directions, few[0], few[1].take_table(), FUSIONS, depth=100)  # what libraries allocate once
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident size starts again
    before = resident("VmRSS")
    queries = collect("query", NUM_QUERIES, columns[0], dtype).take_table()
    gallery = collect("product", NUM_GALLERY, columns[1], dtype).take_table()
    assert queries.num_bytes + gallery.num_bytes == stated.kept_bytes
    reports, _ = evaluate_countable(directions, queries, gallery, FUSIONS, depth=100, memory_bytes=WORKING)
    assert reports["fusions"].num_queries == NUM_QUERIES
    grown = resident("VmHWM") - before
    assert grown < stated.kept_bytes + stated.ranking_bytes  # less than it keeps, where earlier tests freed memory
    assert stated.kept_bytes < 1.05 * stated.payload_bytes
    kind = "float16" if dtype == torch.float16 else "float32"
    line = stated.describe("host memory")
    assert f"40,000 rows of the gallery's 40,000 and 64 queries of 64, 2 and 2 vectors of 256 {kind} each" in line
    assert line.endswith(f"ranking adds at most {stated.ranking_bytes / 1e6:,.1f} MB")
