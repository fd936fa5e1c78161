"""rank_gallery against a full sort in plain Python, with ties, several images a product and small memory.

Vectors are quantised, so that every score is exact in float32 and ties are real.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mim_lightning.metrics import rank_gallery, ranking, row_vectors
from mim_lightning.metrics.ranking import GalleryBlocks
from mim_lightning.metrics.row_vectors import RowVectors
from mim_lightning.types import NO_KEY, hash_id


def naive_ranking(
    query_QD: Tensor, gallery_ND: Tensor, product_keys: Tensor, depth: int
) -> list[list[tuple[int, float]]]:
    """Sort every product of every query by (best score descending, key ascending)."""
    ranked = []
    for query in query_QD.double().tolist():
        best: dict[int, float] = {}
        for row, key in zip(gallery_ND.double().tolist(), product_keys.tolist(), strict=True):
            score = sum(a * b for a, b in zip(query, row, strict=True))
            best[key] = max(score, best.get(key, score))
        ranked.append(sorted(best.items(), key=lambda hit: (-hit[1], hit[0]))[:depth])
    return ranked


def quantized(rows: int, seed: int, levels: int = 2, dim: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels, levels + 1, (rows, dim), generator=generator) / 4


def keys_of(rows: int, products: int, seed: int = 0) -> Tensor:
    """Give each of the products at least one of the rows, in random order."""
    generator = torch.Generator().manual_seed(seed)
    product = torch.randint(products, (rows,), generator=generator)
    product[torch.randperm(rows, generator=generator)[:products]] = torch.arange(products)
    return torch.tensor([hash_id(f"product {p}") for p in product.tolist()])


def as_lists(ranked: tuple[Tensor, Tensor]) -> list[list[tuple[int, float]]]:
    keys, scores = ranked
    return [list(zip(k, s, strict=True)) for k, s in zip(keys.tolist(), scores.tolist(), strict=True)]


@pytest.mark.parametrize("products", [60, 37, 5, 1])
@pytest.mark.parametrize("depth", [1, 4, 30, 1000])
@pytest.mark.parametrize("levels", [1, 50])
def test_agrees_with_full_sort(products: int, depth: int, levels: int) -> None:
    query, gallery, keys = quantized(23, 1, levels), quantized(60, 2, levels), keys_of(60, products)
    ranked = rank_gallery(query, gallery, keys, depth)
    assert ranked[0].shape == (23, min(depth, products))
    assert as_lists(ranked) == naive_ranking(query, gallery, keys, depth)


@pytest.mark.parametrize("products", [37, 3, 1])
@pytest.mark.parametrize("depth", [1, 4, 36, 1000])
@pytest.mark.parametrize("levels", [1, 50])
@pytest.mark.parametrize("memory_bytes", [1, 2**29])
def test_products_left_out_of_a_query_are_not_in_its_gallery(
    products: int, depth: int, levels: int, memory_bytes: int
) -> None:
    query, gallery, keys = quantized(23, 1, levels), quantized(60, 2, levels), keys_of(60, products)
    pool = torch.cat([keys.unique(), torch.tensor([NO_KEY, NO_KEY, 12345])])  # no key, and a key of no row
    left_out = pool[torch.randint(len(pool), (23, 3), generator=torch.Generator().manual_seed(3))]
    left_out[:, 1] = left_out[:, 0]
    ranked = as_lists(rank_gallery(query, gallery, keys, depth, memory_bytes, left_out))
    for row, hits in enumerate(ranked):
        is_left = ~torch.isin(keys, left_out[row])
        expected = naive_ranking(query[row : row + 1], gallery[is_left], keys[is_left], depth)[0]
        assert hits[: len(expected)] == expected
        assert hits[len(expected) :] == [(NO_KEY, -torch.inf)] * (min(depth, products) - len(expected))


@pytest.mark.parametrize("queries_per_chunk", [1, 7, 10_000])
def test_memory_bound_changes_nothing(queries_per_chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery, keys = quantized(23, 1), quantized(60, 2), keys_of(60, 37)
    sizes: list[int] = []
    rank_chunk = ranking._rank_chunk
    monkeypatch.setattr(
        ranking, "_rank_chunk", lambda chunk, *rest: sizes.append(len(chunk)) or rank_chunk(chunk, *rest)
    )
    per_query = 2 * ranking._FETCH_BYTES * (6 + 1 + 6 * 60 // 37)
    ranked = rank_gallery(query, gallery, keys, 6, memory_bytes=per_query * queries_per_chunk)
    assert len(sizes) == -(-23 // queries_per_chunk) and max(sizes) - min(sizes) <= 1
    assert as_lists(ranked) == naive_ranking(query, gallery, keys, 6)


def test_order_of_gallery_rows_does_not_matter() -> None:
    query, gallery, keys = quantized(9, 1), quantized(60, 2), keys_of(60, 37)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    first, second = (rank_gallery(query, gallery[o], keys[o], 8) for o in (torch.arange(60), order))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


NEAR_ROWS = 3000


def near_equal(dim: int) -> tuple[Tensor, Tensor]:
    """Return queries, and gallery vectors of which many differ in the last bits, so that scores differ by rounding."""
    generator = torch.Generator().manual_seed(dim)
    query, few = (torch.nn.functional.normalize(torch.randn(70, dim, generator=generator), dim=1) for _ in range(2))
    noise = torch.randint(-1, 2, (NEAR_ROWS, dim), generator=generator) * 2.0**-24
    return query, few[torch.arange(NEAR_ROWS) % 5] * (1 + noise)


@pytest.mark.parametrize("dim", [8, 256])
@pytest.mark.parametrize("products", [NEAR_ROWS, 700])
@pytest.mark.parametrize("depth", [5, 1200])
def test_near_equal_scores_rank_alike_in_any_parts(dim: int, products: int, depth: int) -> None:
    query, gallery = near_equal(dim)
    keys = torch.arange(NEAR_ROWS) * 7919 % products
    assert all(len(scores.unique()) > 8 for scores in query @ gallery.T), "of 5 products they would be 5"
    expected = rank_gallery(query, gallery, keys, depth)
    for memory_bytes in (1, 2**20):  # blocks of the gallery in parts, and few queries at once
        asked = slice(60, 64) if memory_bytes == 1 else slice(None)
        for part, whole in zip(rank_gallery(query[asked], gallery, keys, depth, memory_bytes), expected, strict=True):
            assert torch.equal(part, whole[asked])
    order = torch.randperm(NEAR_ROWS, generator=torch.Generator().manual_seed(1))
    halves = [rank_gallery(query, gallery[rows], keys[rows], depth) for rows in (order[:1111], order[1111:])]
    products_QM, scores_QM = (torch.cat(parts, dim=1) for parts in zip(*halves, strict=True))
    for part, whole in zip(ranking.merge_rankings(products_QM, scores_QM, depth), expected, strict=True):
        assert torch.equal(part[:, : whole.shape[1]], whole)


def test_two_images_of_a_product_are_one_hit_with_its_best_score() -> None:
    gallery = torch.tensor([[0.25, 0.0], [1.0, 0.0], [0.5, 0.0]])
    keys, scores = rank_gallery(torch.tensor([[1.0, 0.0]]), gallery, torch.tensor([7, 7, 3]), depth=5)
    assert keys.tolist() == [[7, 3]] and scores.tolist() == [[1.0, 0.5]]


def test_many_images_of_one_product_do_not_crowd_out_others() -> None:
    gallery = torch.cat([torch.ones(500, 1), torch.tensor([[0.5], [0.25]])])
    keys, _ = rank_gallery(torch.ones(3, 1), gallery, torch.tensor([9] * 500 + [2, 1]), depth=3)
    assert keys.tolist() == [[9, 2, 1]] * 3


def test_equal_scores_are_ordered_by_key_at_the_cutoff_too() -> None:
    keys = torch.tensor([50, 40, 30, 20, 10])
    ranked, _ = rank_gallery(torch.ones(2, 3), torch.ones(5, 3), keys, depth=2)
    assert ranked.tolist() == [[10, 20]] * 2


@pytest.fixture
def fetches_nothing_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first fetch leave every query to be ranked in full."""

    def all_alike(query_QD: Tensor, _: Tensor, num_rows: int, __: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(query_QD), num_rows), torch.zeros(len(query_QD), num_rows).long()

    monkeypatch.setattr(ranking, "fetch_rows", all_alike)


@pytest.mark.parametrize("products", [60, 37])
@pytest.mark.parametrize("memory_bytes", [1, 10_000, 2**29])
@pytest.mark.usefixtures("fetches_nothing_certain")
def test_ranking_in_full_agrees_with_full_sort(products: int, memory_bytes: int) -> None:
    query, keys = torch.cat([quantized(23, 1, 50), -torch.ones(1, 4)]), keys_of(60, products)
    gallery = quantized(60, 2, 50).abs() + 1  # the last query has negative scores only
    ranked = rank_gallery(query, gallery, keys, 6, memory_bytes)
    assert as_lists(ranked) == naive_ranking(query, gallery, keys, 6)


@pytest.mark.usefixtures("fetches_nothing_certain")
def test_ignores_a_trainers_fast_matmul_and_autocast() -> None:
    query, gallery, keys = torch.randn(5, 64), torch.randn(40, 64), keys_of(40, 40)
    expected = rank_gallery(query, gallery, keys, 10)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            ranked = rank_gallery(query, gallery, keys, 10)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(ranked[0], expected[0]) and torch.equal(ranked[1], expected[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("depth", [4, 1000])
def test_gpu_agrees_with_full_sort(depth: int) -> None:
    query, gallery, keys = quantized(23, 1), quantized(60, 2), keys_of(60, 37)
    ranked = rank_gallery(query.cuda(), gallery.cuda(), keys.cuda(), depth)
    assert as_lists(ranked) == naive_ranking(query, gallery, keys, depth)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["query", "gallery"])
def test_refuses_values_that_are_not_finite(bad: float, side: str) -> None:
    vectors = {"query": torch.ones(3, 2), "gallery": torch.ones(4, 2)}
    vectors[side][1, 0] = bad
    with pytest.raises(ValueError, match=f"1 of . {side} vectors are not finite"):
        rank_gallery(vectors["query"], vectors["gallery"], torch.arange(4), 2)


def test_huge_values_are_finite() -> None:
    ranked = rank_gallery(torch.full((1, 4), 1e-9), torch.full((2, 4), 3e38), torch.tensor([2, 1]), 2)
    assert ranked[0].tolist() == [[1, 2]]


def test_refuses_what_does_not_fit() -> None:
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match="do not fit"):
        rank_gallery(one, torch.ones(4, 3), torch.arange(4), 2)
    with pytest.raises(ValueError, match="do not fit"):
        rank_gallery(one, torch.ones(4, 2), torch.arange(3), 2)
    with pytest.raises(ValueError, match="a gallery"):
        rank_gallery(one, torch.ones(0, 2), torch.arange(0), 2)
    with pytest.raises(ValueError, match="depth"):
        rank_gallery(one, one, torch.arange(1), 0)
    with pytest.raises(ValueError, match="no product key"):
        rank_gallery(one, one, torch.tensor([NO_KEY]), 1)


@pytest.mark.parametrize("products", [60, 37, 1])
@pytest.mark.parametrize("depth", [1, 4, 30, 1000])
@pytest.mark.parametrize("levels", [1, 50])
@pytest.mark.parametrize("leaves_out", [False, True])
def test_blocks_are_ranked_as_the_whole(
    products: int, depth: int, levels: int, leaves_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_vectors, "BLOCK_ROWS", 7)
    query, gallery, keys = quantized(23, 1, levels), quantized(60, 2, levels), keys_of(60, products)
    left_out = keys[torch.arange(46).view(23, 2) % 60] if leaves_out else None
    half = RowVectors.of(gallery.half())  # exact for these values; converted when it is read, so in blocks
    assert len(half.blocks(1)) == 9 and len(RowVectors.of(gallery).blocks(1)) == 1
    ranked = GalleryBlocks(half, keys, products == 60, block_bytes=1).rank(query, depth, 2**20, left_out)
    expected = rank_gallery(query, gallery, keys, depth, left_out_keys_QR=left_out)
    missing = expected[0].shape[1] - ranked[0].shape[1]
    assert missing <= 0
    for part, whole in zip(ranked, expected, strict=True):
        assert torch.equal(part[:, : whole.shape[1]], whole)
    assert (ranked[0][:, expected[0].shape[1] :] == NO_KEY).all()
