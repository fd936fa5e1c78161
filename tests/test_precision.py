"""Inner products on a CPU: equal to the last bit, whatever else is multiplied."""

from collections.abc import Iterator

import pytest
import torch

from mim_lightning.precision import TILE_QUERIES, TILE_ROWS, inner_products

NUM_QUERIES, NUM_ROWS = 2 * TILE_QUERIES + 23, 2 * TILE_ROWS + 301


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dim", [1, 8, 256, 700, 1024])
@pytest.mark.usefixtures("threads")
def test_an_inner_product_depends_on_its_two_vectors_alone(dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    query, gallery = (torch.randn(rows, dim, generator=generator) for rows in (NUM_QUERIES, NUM_ROWS))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = inner_products(query, gallery)
    torch.set_num_threads(before)
    torch.testing.assert_close(whole, (query.double() @ gallery.double().T).float(), rtol=1e-5, atol=1e-4)
    for queries in (slice(1), slice(5, 12), slice(1, TILE_QUERIES + 2), slice(NUM_QUERIES)):
        for rows in (slice(7, 8), slice(3, 300), slice(1, TILE_ROWS + 4), slice(TILE_ROWS - 9, NUM_ROWS)):
            part = inner_products(query[queries], gallery[rows])
            assert torch.equal(part, whole[queries, rows]), (queries, rows)
    by_query, by_row = (torch.randperm(rows, generator=generator) for rows in (NUM_QUERIES, NUM_ROWS))
    assert torch.equal(inner_products(query[by_query], gallery[by_row]), whole[by_query][:, by_row])


def test_inner_products_of_no_rows_or_no_queries() -> None:
    some = torch.randn(3, 4)
    assert inner_products(some, some[:0]).shape == (3, 0) and inner_products(some[:0], some).shape == (0, 3)


def test_inner_products_keep_no_gradients() -> None:
    query = torch.randn(3, 4, requires_grad=True)
    assert not inner_products(query, query).requires_grad
