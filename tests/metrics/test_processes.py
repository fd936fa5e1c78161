"""Evaluation on two and on four real gloo processes against one: each has a part of the rows, maybe none."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mim_lightning.metrics import EmbeddingTable, Gallery, Queries, check_complete, evaluate_direction, row_vectors
from mim_lightning.metrics.collectives import (
    count_distinct,
    find_repeated,
    gather_shares,
    send_rows,
    share_of_rank,
    world,
)
from mim_lightning.metrics.directions import evaluate_countable
from mim_lightning.metrics.fusion_parts import find_weak_fusions
from mim_lightning.types import NO_KEY, Direction, RetrievalReport
from tests.flow.entry_points import start
from tests.metrics.test_collector import NUM_ROWS, assert_same, collector, rows_of
from tests.metrics.test_ranking import keys_of, quantized

WORLD_SIZES = (4, 2)

# --- a set with everything that an evaluation knows ---------------------------------------------------

FUSIONS: dict[str, dict[str, Any]] = {
    "query": {"query_image": 1.0, "query_text": 2.0},
    "product": {"product_image": 1.0, "product_text": 0.5},
    "scored_query": {"query_image": 1.0, "query_text": 1.0, "kind": "standardized_sum"},
    "scored_product": {"product_image": 1.0, "product_text": 1.0, "kind": "standardized_sum"},
}
DIRECTIONS = {
    "image_to_image": Direction("query_image", "product_image"),
    "image_to_target": Direction("query_image", "product_image", "target"),
    "text_to_text": Direction("query_text", "product_text"),
    "composed": Direction("query", "product"),
    "composed_without_reference": Direction("query", "product_image", leave_out="reference"),
    "scored": Direction("scored_query", "scored_product", requires=()),
    "no_text": Direction("query_image", "product", excludes=("query_text",)),
    "impossible": Direction("query_text", "product_text", requires=(), excludes=("query_text",)),
}
NUM_QUERIES, NUM_GALLERY, NUM_PRODUCTS = 60, 150, 70


def tables() -> tuple[EmbeddingTable, EmbeddingTable]:
    """Make queries and gallery: ties by image, products of several images, missing texts, categories and grades."""
    generator = torch.Generator().manual_seed(7)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    products = keys_of(NUM_GALLERY, NUM_PRODUCTS)
    pool = torch.cat([products.unique(), torch.arange(8), torch.full((8,), NO_KEY)])
    targets, references = pool[draw(0, len(pool), NUM_QUERIES, 3)], pool[draw(0, len(pool), NUM_QUERIES, 1)]
    has_text, has_title = draw(0, 4, NUM_QUERIES) > 0, draw(0, 4, NUM_GALLERY) > 0
    images = torch.arange(NUM_GALLERY) + 1000
    taken = torch.where(draw(0, 6, NUM_QUERIES) > 0, draw(0, 20, NUM_QUERIES), images[draw(0, 150, NUM_QUERIES)])
    # the images alone find more than with the texts, which are random
    answers = torch.isin(products, targets[:, 0]).nonzero().flatten()
    answer_of = {key: row for row, key in zip(answers.tolist(), products[answers].tolist(), strict=True)}
    shots = quantized(NUM_GALLERY, 3, dim=8)
    taken_of = torch.tensor([answer_of.get(key, 0) for key in targets[:, 0].tolist()])
    queries = EmbeddingTable(
        torch.arange(NUM_QUERIES) * 3,
        {"query_image": shots[taken_of], "query_text": _unit(NUM_QUERIES, 2) * has_text[:, None]},
        {"query_image": torch.ones(NUM_QUERIES, dtype=torch.bool), "query_text": has_text},
        {
            "query_keys": torch.arange(NUM_QUERIES) * 3,
            "product_keys": torch.full((NUM_QUERIES,), NO_KEY),
            "asked_keys": targets,
            "asked_grades": draw(0, 4, NUM_QUERIES, 3) * (targets != NO_KEY),
            "shown_keys": references,
            "category_keys": draw(-1, 3, NUM_QUERIES),
            "has_query_image": torch.ones(NUM_QUERIES, dtype=torch.int64),
            "has_query_text": has_text.long(),
            "picture_keys": taken,
        },
    )
    gallery = EmbeddingTable(
        torch.arange(NUM_GALLERY) * 2,
        {"product_image": shots, "product_text": _unit(NUM_GALLERY, 4) * has_title[:, None]},
        {"product_image": torch.ones(NUM_GALLERY, dtype=torch.bool), "product_text": has_title},
        {"product_keys": products, "category_keys": products % 4 - 1, "picture_keys": images},
    )
    return queries, gallery


def _unit(rows: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def evaluated(
    queries: EmbeddingTable, gallery: EmbeddingTable, memory_bytes: int = 2**29
) -> tuple[dict[str, RetrievalReport], dict[str, str], list[str]]:
    options: dict[str, Any] = {"depth": 30, "num_resamples": 50, "memory_bytes": memory_bytes}
    reports, empty = evaluate_countable(DIRECTIONS, queries, gallery, FUSIONS, **options)
    weak = find_weak_fusions(DIRECTIONS, reports, queries, gallery, FUSIONS, {}, "hit@10", **options)
    return reports, empty, [found.describe("hit@10") for found in weak]


# --- a direction whose scores are exact ---------------------------------------------------------------

# of each query's gallery: a product that is not asked for (see `rows_of`), or none
LEFT_OUT = torch.where(torch.arange(NUM_ROWS) % 3 > 0, keys_of(60, 40)[torch.arange(NUM_ROWS)], NO_KEY)[:, None]
GALLERY = Gallery(quantized(60, 3), keys_of(60, 40), torch.arange(60) % 5 - 1)
COUNTS = (1, 2, 5, NUM_ROWS)  # of queries: one query leaves a rank without any


def report_of(gallery: Gallery, num_queries: int = NUM_ROWS, memory_bytes: int = 2**29) -> RetrievalReport:
    rows = rows_of(range(NUM_ROWS))
    queries = Queries(
        rows["vectors"]["query_image"],
        rows["row_keys"],
        rows["columns"]["asked_keys"],
        rows["columns"]["category_keys"],
        torch.arange(2 * NUM_ROWS).view(-1, 2) % 3 + 1,
        LEFT_OUT,
    )
    return evaluate_direction(
        "photo", queries.take(slice(num_queries)), gallery, num_resamples=100, memory_bytes=memory_bytes
    )


def part_of(gallery: Gallery, mine: Tensor) -> Gallery:
    return Gallery(gallery.vectors[mine], gallery.product_keys[mine], gallery.category_keys[mine])


def assert_same_report(left: RetrievalReport, right: RetrievalReport, is_exact: bool = True) -> None:
    assert left.values == right.values
    assert repr(left.intervals) == repr(right.intervals), "equal, nan or not"
    assert (left.num_queries, left.num_unanswerable) == (right.num_queries, right.num_unanswerable)
    assert (left.num_products, left.counts) == (right.num_products, right.counts)
    assert list(left.scores) == list(right.scores)
    for name in left.scores:
        assert torch.equal(left.scores[name].nan_to_num(-1), right.scores[name].nan_to_num(-1)), name
    for part in ("ranks", "cluster_keys"):
        assert torch.equal(getattr(left, part), getattr(right, part)), part
    for part in ("query_keys", "product_keys", "is_relevant"):
        assert torch.equal(getattr(left.hits, part), getattr(right.hits, part)), part
    if is_exact:
        assert torch.equal(left.hits.scores, right.hits.scores)
    torch.testing.assert_close(left.hits.scores, right.hits.scores, rtol=0, atol=1e-6)


# --- the processes ------------------------------------------------------------------------------------

# Batches by rank: uneven with padding and a row on two ranks; one rank whose rows are all padding; one
# rank that never sees a batch; no rows anywhere. Further ranks have none.
CASES: dict[str, list[list[Any]]] = {
    "uneven": [[range(9), [9, 10, -11]], [[*range(21, 10, -1), 3]]],
    "padded": [[range(NUM_ROWS)], [[-1, -2]]],
    "empty": [[], [range(12), range(12, NUM_ROWS)]],
    "nothing": [[], []],
}


def _run_rank(rank: int, out: str) -> None:
    torch.set_num_threads(1)
    for world_size in WORLD_SIZES:
        if rank >= world_size:
            return
        patience = timedelta(seconds=120)  # for a rank that stopped alone
        store = f"file://{out}/store-{world_size}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=patience)
        torch.save(_results(), f"{out}/{world_size}-{rank}.pt")
        dist.destroy_process_group()


def _results() -> dict[str, Any]:
    rank, world_size = world()
    return {
        "tables": {case: _collected(by_rank) for case, by_rank in CASES.items()},
        "shares": _exchanged(),
        "direction": {
            (num, memory): report_of(part_of(GALLERY, torch.arange(60) % world_size == rank), num, memory)
            for num in COUNTS
            for memory in (1, 2**29)
        },
        "errors": _errors(),
        "evaluated": [evaluated(*_parts("lopsided")), _evaluated_in_blocks(*_parts("even"))],
        "gathered": _parts("even")[1].gather(),
    }


def _evaluated_in_blocks(queries: EmbeddingTable, gallery: EmbeddingTable) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_vectors, "BLOCK_ROWS", 8)
        return evaluated(queries, gallery, memory_bytes=40_000)


def _collected(by_rank: list[list[Any]]) -> tuple[EmbeddingTable | None, int, str]:
    metric, rank = collector(num_rows=3), world()[0]
    for num, batch in enumerate(by_rank[rank] if rank < len(by_rank) else []):
        metric.update(**rows_of(batch, num_relevant=2 if num % 2 == 0 else 1))
    table = metric.take_table()
    try:
        check_complete(table, NUM_ROWS, "rows")
    except ValueError as error:
        return table.gather(), len(table), str(error)
    return table.gather(), len(table), ""


def _exchanged() -> list[int]:
    rank, world_size = world()
    sizes = []
    for num_rows in range(6):
        rows = torch.arange(3 * num_rows).view(num_rows, 3)
        mine = share_of_rank(num_rows)
        gathered = gather_shares({"rows": rows[mine], "flags": rows[mine, 0] % 2 == 0}, [num_rows])
        assert torch.equal(gathered["rows"], rows) and torch.equal(gathered["flags"], rows[:, 0] % 2 == 0)
        sizes.append(mine.stop - mine.start)
        received, came = send_rows(rows + 100 * rank, [num_rows] + [0] * (world_size - 1))
        assert came == [num_rows * (rank == 0)] * world_size
        assert torch.equal(received, torch.cat([rows + 100 * r for r in range(world_size)]) if rank == 0 else rows[:0])
    blocks = [torch.arange(5), torch.arange(5, 6), torch.arange(6, 13)]
    mine = torch.cat([block[share_of_rank(len(block))] for block in blocks])
    assert gather_shares({"rows": mine}, [5, 1, 7])["rows"].tolist() == list(range(13))
    keys = torch.tensor([[5, 1, 9], [2, 5, 11], [4, 4, 30], [5, 6, 7]][rank])
    repeated = {4: [[5], [5], [4, 4], [5]], 2: [[5], [5]]}[world_size][rank]
    assert keys[find_repeated(keys)].tolist() == repeated
    assert count_distinct(keys) == {4: 9, 2: 5}[world_size]
    return sizes


def _errors() -> list[str]:
    """Return the errors of vectors and keys that one rank alone has: all must stop, or the others would wait."""
    rank, world_size = world()
    mine = part_of(GALLERY, torch.arange(60) % world_size == rank)
    vectors, keys = mine.vectors.clone(), mine.product_keys.clone()
    vectors[:1] = torch.nan if rank == 1 else vectors[:1]
    keys[:1] = NO_KEY if rank == 1 else keys[:1]
    errors = []
    for bad in (
        Gallery(vectors, mine.product_keys, mine.category_keys),
        Gallery(mine.vectors, keys, mine.category_keys),
    ):
        with pytest.raises(ValueError) as raised:
            report_of(bad)
        errors.append(str(raised.value))
    return errors


def _parts(case: str) -> tuple[EmbeddingTable, EmbeddingTable]:
    """Return this rank's rows: in turn, or most on one rank, with none of one side on another."""
    rank, world_size = world()
    queries, gallery = tables()
    if case == "even":
        owner_Q, owner_N = torch.arange(NUM_QUERIES) % world_size, torch.arange(NUM_GALLERY) // 5 % world_size
    else:
        owner_Q, owner_N = torch.full((NUM_QUERIES,), world_size - 1), torch.full((NUM_GALLERY,), 0)
        owner_N[:7] = 1
    return queries.take(owner_Q == rank), gallery.take(owner_N == rank)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    path = tmp_path_factory.mktemp("processes")
    finished = start(str(path), module=__name__)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return {
        size: [torch.load(path / f"{size}-{rank}.pt", weights_only=False) for rank in range(size)]
        for size in WORLD_SIZES
    }


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("case", ["uneven", "padded", "empty"])
def test_rows_of_all_ranks_are_those_of_one_each_once(results: Any, case: str, world_size: int) -> None:
    metric = collector()
    for by_rank in CASES[case]:
        for num, batch in enumerate(by_rank):
            metric.update(**rows_of(batch, num_relevant=2 if num % 2 == 0 else 1))
    found = [rank["tables"][case] for rank in results[world_size]]
    assert_same(found[0][0], metric.take_table())
    assert [table for table, _, _ in found[1:]] == [None] * (world_size - 1)
    assert sum(num_rows for _, num_rows, _ in found) == NUM_ROWS
    assert {error for _, _, error in found} == {""}


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_without_rows_agree_that_nothing_was_embedded(results: Any, world_size: int) -> None:
    assert {rank["tables"]["nothing"][2] for rank in results[world_size]} == {
        f"rows: 0 embedded, {NUM_ROWS} expected; no numbers are published from a partial pass"
    }


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_parts_of_the_gallery_are_ranked_as_the_whole(results: Any, world_size: int) -> None:
    for num in COUNTS:
        expected = report_of(GALLERY, num)
        assert expected.num_queries == num, "as many as meant are shared"
        for rank in results[world_size]:
            for memory in (1, 2**29):
                assert_same_report(rank["direction"][num, memory], expected)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_all_directions_are_evaluated_as_by_one_process(results: Any, world_size: int) -> None:
    reports, empty, weak = evaluated(*tables())
    assert {*reports, *empty} == {*DIRECTIONS} and list(empty) == ["impossible"] and weak
    assert reports["image_to_image"].counts.num_in_gallery and reports["composed"].counts.num_other_kind
    in_blocks = _evaluated_in_blocks(*tables())  # of one process
    for rank in [{"evaluated": [in_blocks]}, *results[world_size]]:
        for theirs in rank["evaluated"]:
            assert theirs[1:] == (empty, weak)
            for name, report in reports.items():
                assert_same_report(theirs[0][name], report, is_exact=name != "scored")


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_what_one_rank_cannot_rank_stops_all(results: Any, world_size: int) -> None:
    for rank in results[world_size]:
        assert rank["errors"] == ["1 of 60 gallery vectors are not finite", "a gallery row has no product key"]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_work_is_divided_and_tables_are_gathered(results: Any, world_size: int) -> None:
    for num_rows, by_rank in enumerate(zip(*(rank["shares"] for rank in results[world_size]), strict=True)):
        assert sum(by_rank) == num_rows and max(by_rank) - min(by_rank) <= 1
    first, *others = (rank["gathered"] for rank in results[world_size])
    assert_same(first, tables()[1])
    assert others == [None] * (world_size - 1)


def test_one_process_has_all_the_work() -> None:
    part = torch.arange(7)
    assert share_of_rank(7) == slice(0, 7) and gather_shares({"part": part}, [7])["part"] is part
    assert send_rows(part, [7])[0] is part and not find_repeated(part).any() and count_distinct(part % 3) == 3


if __name__ == "__main__":  # in a process that has imported everything
    mp.start_processes(_run_rank, args=(sys.argv[1],), nprocs=max(WORLD_SIZES), start_method="fork")
