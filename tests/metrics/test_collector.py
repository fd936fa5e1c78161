"""The collector and a shared evaluation: on one rank, and on two real gloo processes, one of which may have no rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from multiprocessing import set_forkserver_preload
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mim_lightning.metrics import (
    EmbeddingCollector,
    EmbeddingTable,
    Gallery,
    Queries,
    check_complete,
    evaluate_direction,
)
from mim_lightning.metrics.collector import gather_shares, share_of_rank
from mim_lightning.types import NO_KEY, RetrievalReport
from tests.metrics.test_ranking import keys_of, quantized

NAMES, COLUMNS = ("query_image", "query_text"), ("asked_keys", "category_keys")
NUM_ROWS = 22


def collector(**settings: bool) -> EmbeddingCollector:
    return EmbeddingCollector(NAMES, COLUMNS, **settings)


def rows_of(index: Sequence[int], num_relevant: int = 2) -> dict[str, Tensor | dict[str, Tensor]]:
    """Make a batch of the given rows of one fixed set; a negative number is a padded row."""
    idx = torch.tensor(index).abs()
    asked = keys_of(60, 40)[torch.stack([idx, idx + 7], dim=1)]
    return {
        "row_keys": 1000 - idx,
        "vectors": {"query_image": quantized(NUM_ROWS, 1)[idx], "query_text": quantized(NUM_ROWS, 2, dim=3)[idx]},
        "present": {"query_image": torch.ones_like(idx, dtype=torch.bool), "query_text": idx % 3 > 0},
        "columns": {"asked_keys": asked[:, :num_relevant], "category_keys": idx % 5},
        "valid": torch.tensor(index) >= 0,
    }


def assert_same(left: EmbeddingTable, right: EmbeddingTable) -> None:
    assert torch.equal(left.row_keys, right.row_keys)
    for part in ("vectors", "present", "columns"):
        ours, theirs = getattr(left, part), getattr(right, part)
        assert list(ours) == list(theirs)
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


def table_of(*batches: Sequence[int]) -> EmbeddingTable:
    metric = collector()
    for batch in batches:
        metric.update(**rows_of(batch))
    return metric.compute()


# of each query's gallery: a product that is not asked for (see `rows_of`), or none
LEFT_OUT = torch.where(torch.arange(NUM_ROWS) % 3 > 0, keys_of(60, 40)[torch.arange(NUM_ROWS)], NO_KEY)[:, None]


def report_of(table: EmbeddingTable, num_queries: int = NUM_ROWS, memory_bytes: int = 2**29) -> RetrievalReport:
    queries = Queries(
        table.vectors["query_image"],
        table.row_keys,
        table.columns["asked_keys"],
        table.columns["category_keys"],
        torch.arange(2 * len(table)).view(-1, 2) % 3 + 1,
        LEFT_OUT[: len(table)],
    )
    return evaluate_direction(
        "query_image_to_product",
        queries.take(slice(num_queries)),
        Gallery(quantized(60, 3), keys_of(60, 40), torch.arange(60) % 5 - 1),
        num_resamples=100,
        memory_bytes=memory_bytes,
    )


def assert_same_report(left: RetrievalReport, right: RetrievalReport) -> None:
    assert left.values == right.values
    assert repr(left.intervals) == repr(right.intervals), "equal, nan or not"
    assert left.num_queries == right.num_queries and left.num_unanswerable == right.num_unanswerable
    for name in left.scores:
        assert torch.equal(left.scores[name].nan_to_num(-1), right.scores[name].nan_to_num(-1)), name
    for part in ("ranks", "cluster_keys"):
        assert torch.equal(getattr(left, part), getattr(right, part)), part
    for part in ("query_keys", "product_keys", "scores", "is_relevant"):
        assert torch.equal(getattr(left.hits, part), getattr(right.hits, part)), part


def test_rows_are_unique_and_sorted_whatever_the_batches() -> None:
    table = table_of(range(NUM_ROWS))
    assert table.row_keys.tolist() == list(range(1000 - NUM_ROWS + 1, 1001))
    assert torch.equal(table.vectors["query_image"], quantized(NUM_ROWS, 1).flip(0))
    mixed = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    assert_same(table, table_of(mixed[:5], [-3, -4], mixed[5:], mixed[3:9]))


def test_padding_counts_nowhere() -> None:
    metric = collector()
    padded = rows_of([0, 1, -2])
    padded["vectors"]["query_image"][2] = torch.nan
    metric.update(**padded)
    assert_same(metric.compute(), table_of([0, 1]))


def test_one_row_keeps_its_shape() -> None:
    table = table_of([4])
    assert table.row_keys.shape == (1,) and table.columns["asked_keys"].shape == (1, 2)
    assert table.vectors["query_text"].shape == (1, 3)


def test_batches_may_differ_in_the_number_of_relevant_products() -> None:
    metric = collector()
    for batch, width in (([0, 1], 1), ([2], 0), ([3], 2)):
        metric.update(**rows_of(batch, width))
    asked = metric.compute().columns["asked_keys"].flip(0)
    full = rows_of([0, 1, 2, 3])["columns"]["asked_keys"]
    full[:2, 1], full[2] = NO_KEY, NO_KEY
    assert torch.equal(asked, full)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_most_complete_of_repeated_rows_is_kept_whatever_the_order(order: tuple[int, ...]) -> None:
    batch = rows_of([1, 1, 1])
    batch["present"]["query_text"] = torch.tensor([False, True, True])
    batch["vectors"]["query_text"] = torch.tensor([[0.0] * 3, [0.5] * 3, [0.25] * 3])
    metric = collector()
    metric.update(**{k: _pick(part, torch.tensor(order)) for k, part in batch.items()})
    assert metric.compute().vectors["query_text"].tolist() == [[0.25] * 3]


def _pick(part: Tensor | dict[str, Tensor], order: Tensor) -> Tensor | dict[str, Tensor]:
    return {n: p[order] for n, p in part.items()} if isinstance(part, dict) else part[order]


def test_vectors_of_another_width_are_not_padded() -> None:
    metric = collector()
    metric.update(**rows_of([0]))
    batch = rows_of([1])
    batch["vectors"]["query_text"] = torch.ones(1, 9)
    metric.update(**batch)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        metric.compute()


def test_reset_starts_a_new_pass() -> None:
    metric = collector()
    metric.update(**rows_of([0, 1]))
    metric.compute()
    metric.update(**rows_of([2]))
    assert len(metric.compute()) == 3
    metric.reset()
    assert len(metric.compute()) == 0
    metric.update(**rows_of([5]))
    assert metric.compute().row_keys.tolist() == [995]


def test_half_precision_is_kept_as_float32() -> None:
    metric = collector()
    batch = rows_of([0, 1])
    batch["vectors"] = {name: part.bfloat16() for name, part in batch["vectors"].items()}
    metric.update(**batch)
    assert_same(metric.compute(), table_of([0, 1]))


def test_a_partial_pass_is_refused_with_both_counts() -> None:
    table = table_of(range(7))
    check_complete(table, 7, "queries")
    with pytest.raises(ValueError, match="queries: 7 embedded, 9 expected"):
        check_complete(table, 9, "queries")


# Batches by rank: uneven with padding and a row on both ranks; one rank whose rows are all padding; one
# rank that never sees a batch; no rows anywhere.
CASES = {
    "uneven": ([range(9), [9, 10, -11]], [[*range(21, 10, -1), 3]]),
    "padded": ([range(NUM_ROWS)], [[-1, -2]]),
    "empty": ([], [range(12), range(12, NUM_ROWS)]),
    "nothing": ([], []),
}


NUM_QUERIES = (1, 2, 5, NUM_ROWS)  # one query leaves a rank without any


def _share_rank(rank: int, out: str) -> None:
    table = whole_table()
    for num_queries in NUM_QUERIES:
        for memory_bytes in (1, 2**29):
            report = report_of(table, num_queries, memory_bytes)
            torch.save(report, f"{out}/report-{num_queries}-{memory_bytes}-{rank}.pt")
    bad = whole_table()
    bad.vectors["query_image"][-1] = torch.nan  # of the smallest key: in the first rank's share, yet both must stop
    with pytest.raises(ValueError, match="1 of 22 query vectors are not finite"):
        report_of(bad)
    sizes = []
    for num_rows in range(6):
        rows = torch.arange(3 * num_rows).view(num_rows, 3)
        mine = share_of_rank(num_rows)
        gathered = gather_shares({"rows": rows[mine], "flags": rows[mine, 0] % 2 == 0}, num_rows)
        assert torch.equal(gathered["rows"], rows) and torch.equal(gathered["flags"], rows[:, 0] % 2 == 0)
        sizes.append(mine.stop - mine.start)
    torch.save(sizes, f"{out}/sizes-{rank}.pt")


def whole_table() -> EmbeddingTable:
    rows = rows_of(range(NUM_ROWS))
    return EmbeddingTable(rows["row_keys"], rows["vectors"], rows["present"], rows["columns"])


def _run_rank(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=120)  # for a rank that stopped alone
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=patience)
    for on_cpu in (False, True):
        for case, by_rank in CASES.items():
            metric = collector(compute_on_cpu=on_cpu)
            for num, batch in enumerate(by_rank[rank]):
                metric.update(**rows_of(batch, num_relevant=2 if num % 2 == 0 else 1))
            table = metric.compute()
            assert len(metric._rows("row_keys")) == sum(sum(n >= 0 for n in batch) for batch in by_rank[rank]), (
                "a rank must keep its own rows, and only those, after the gather"
            )
            torch.save(table, f"{out}/{case}-{on_cpu}-{rank}.pt")
    _share_rank(rank, out)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two_ranks")
    set_forkserver_preload(["torchmetrics", "faiss"])  # imported once, not once a rank: most of this test's time
    mp.start_processes(_run_rank, args=(str(path / "store"), str(path)), nprocs=2, start_method="forkserver")
    return path


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("case", ["uneven", "padded", "empty"])
def test_two_ranks_report_what_one_does(two_ranks: Path, case: str, on_cpu: bool) -> None:
    metric = collector()
    for by_rank in CASES[case]:
        for num, batch in enumerate(by_rank):
            metric.update(**rows_of(batch, num_relevant=2 if num % 2 == 0 else 1))
    expected = metric.compute()
    check_complete(expected, NUM_ROWS, case)
    for rank in range(2):
        table = torch.load(two_ranks / f"{case}-{on_cpu}-{rank}.pt", weights_only=False)
        assert_same(table, expected)


def test_two_ranks_without_rows_agree_on_an_empty_table(two_ranks: Path) -> None:
    for rank in range(2):
        table = torch.load(two_ranks / f"nothing-False-{rank}.pt", weights_only=False)
        with pytest.raises(ValueError, match="0 embedded"):
            check_complete(table, NUM_ROWS, "queries")


@pytest.mark.parametrize("memory_bytes", [1, 2**29])
@pytest.mark.parametrize("num_queries", NUM_QUERIES)
def test_two_ranks_split_the_queries_and_report_what_one_does(
    two_ranks: Path, num_queries: int, memory_bytes: int
) -> None:
    expected = report_of(whole_table(), num_queries)
    assert expected.num_queries == num_queries, "as many as meant are shared"
    for rank in range(2):
        report = torch.load(two_ranks / f"report-{num_queries}-{memory_bytes}-{rank}.pt", weights_only=False)
        assert_same_report(report, expected)


def test_no_rank_has_more_than_its_part(two_ranks: Path) -> None:
    sizes = [torch.load(two_ranks / f"sizes-{rank}.pt", weights_only=False) for rank in range(2)]
    for num_rows, by_rank in enumerate(zip(*sizes, strict=True)):
        assert sum(by_rank) == num_rows and max(by_rank) - min(by_rank) <= 1


def test_one_process_has_all_the_work() -> None:
    assert share_of_rank(7) == slice(0, 7)
    part = torch.arange(7)
    assert gather_shares({"part": part}, 7)["part"] is part
