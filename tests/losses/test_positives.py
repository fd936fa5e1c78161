"""Positives found by sorted keys against comparisons of all keys."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mim_lightning.losses.positives import ProductMatches, share_product

NONE = -1


def compare_all(left, right, left_grades, right_grades):
    """Return the weight of each pair of rows, -1 where they share no product."""
    weights = torch.full((len(left), len(right)), -1.0)
    for row, keys in enumerate(left.tolist()):
        for column, others in enumerate(right.tolist()):
            for r, key in enumerate(keys):
                for s, other in enumerate(others):
                    if key == other and key >= 0:
                        weight = left_grades[row, r] * right_grades[column, s]
                        weights[row, column] = max(weights[row, column], weight)
    return weights


@pytest.mark.parametrize(("num_left", "num_right"), [(1, 1), (3, 1), (1, 3), (3, 2)])
def test_tiles_hold_each_positive_once_with_its_largest_weight(num_left: int, num_right: int) -> None:
    torch.manual_seed(num_left)
    left, right = torch.randint(NONE, 12, (13, num_left)), torch.randint(NONE, 12, (11, num_right))
    left_grades, right_grades = torch.rand(left.shape), torch.rand(right.shape)
    expected = compare_all(left, right, left_grades, right_grades)
    matches = ProductMatches(left, right, left_grades, right_grades, width=4)
    found = torch.full_like(expected, -1.0)
    for start in (0, 5, 10):
        for tile_idx in range(3):
            rows, columns, weights = matches.tile(slice(start, start + 5), tile_idx)
            places = rows + start, columns + 4 * tile_idx
            assert (found[places] == -1).all() and len(rows) == len(
                {*zip(rows.tolist(), columns.tolist(), strict=True)}
            )
            found[places] = weights
    torch.testing.assert_close(found, expected)
    assert torch.equal(share_product(left, right), expected >= 0)


class LargestResult(TorchFunctionMode):
    """Notes the entries of the largest tensor that an operation returns, and how many operations there are."""

    entries = num_operations = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.num_operations += 1
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_many_products_a_row_are_not_compared_one_by_one() -> None:
    keys = torch.randint(100_000, (512, 20))
    with LargestResult() as seen:
        ProductMatches(keys, keys, width=128).tile(slice(0, 128), 1)
        assert seen.entries < 2 * keys.numel(), "a table of all rows and columns"
        assert share_product(keys, keys).diagonal().all()
    assert seen.num_operations < 100, "20 x 20 comparisons"
