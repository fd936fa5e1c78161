"""Collectives of an evaluation: each is called by every process, in the same order; one process alone does no exchange.

Results are on the device of what was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def any_of_ranks(flags: Tensor) -> Tensor:
    """Return where any process has True; shapes are equal."""
    return max_of_ranks(flags.to(torch.uint8)).bool()


def max_of_ranks(values: Tensor) -> Tensor:
    """Return the largest value of all processes, element by element."""
    return _reduced(values, dist.ReduceOp.MAX)


def sum_of_ranks(*counts: int) -> list[int]:
    """Return the sum of each count over processes."""
    return _reduced(torch.tensor(counts), dist.ReduceOp.SUM).tolist()


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if world()[1] == 1:
        return values
    exchanged = values.to(_exchange_device(), copy=True)
    dist.all_reduce(exchanged, operation)
    return exchanged.to(values.device)


def gather_rows(part: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Return the rows of all processes, in the order of ranks; `sizes` are theirs, if known."""
    rank, world_size = world()
    if world_size == 1:
        return part
    if sizes is None:
        lengths = torch.zeros(world_size, dtype=torch.int64)
        lengths[rank] = len(part)
        sizes = max_of_ranks(lengths).tolist()
    filled = part.new_zeros((max(sizes), *part.shape[1:]), device=_exchange_device())
    filled[: len(part)] = part.to(filled.device)
    gathered = [torch.empty_like(filled) for _ in sizes]
    dist.all_gather(gathered, filled)
    return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)]).to(part.device)


def send_rows(part: Tensor, sizes: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Send the first `sizes[0]` rows to rank 0, the next to rank 1, and so on.

    Returns:
        The rows that came here, in the order of ranks, and how many came from each.
    """
    if world()[1] == 1:
        return part, list(sizes)
    device = _exchange_device()
    given = torch.tensor(sizes, device=device)
    taken = torch.empty_like(given)
    dist.all_to_all_single(taken, given)
    received = part.new_empty((int(taken.sum()), *part.shape[1:]), device=device)
    dist.all_to_all_single(received, part.to(device).contiguous(), taken.tolist(), list(sizes))
    return received.to(part.device), taken.tolist()


def count_distinct(keys: Tensor) -> int:
    """Return how many distinct keys (n,), 0 or more, all processes have together."""
    keys = keys.unique()
    if world()[1] > 1:
        keys = send_rows(*_by_owner(keys)[:2])[0].unique()
    return sum_of_ranks(len(keys))[0]


def find_repeated(keys: Tensor) -> Tensor:
    """Return which of the keys (n,), 0 or more, occur more than once among those of all processes."""
    if world()[1] == 1:
        is_ascending = bool((keys.diff() > 0).all())
        return torch.zeros_like(keys, dtype=torch.bool) if is_ascending else _occur_twice(keys)
    sorted_keys, sizes, order = _by_owner(keys)
    received, came = send_rows(sorted_keys, sizes)
    answers, _ = send_rows(_occur_twice(received), came)
    return torch.empty_like(answers).index_copy_(0, order, answers)


def _by_owner(keys: Tensor) -> tuple[Tensor, list[int], Tensor]:
    """Return the keys ordered by the rank that compares them, how many each compares, and their former positions."""
    world_size = world()[1]
    owners, order = (keys % world_size).sort(stable=True)
    return keys[order], owners.bincount(minlength=world_size).tolist(), order


def _occur_twice(keys: Tensor) -> Tensor:
    _, idx, counts = keys.unique(return_inverse=True, return_counts=True)
    return counts[idx] > 1


def share_of_rank(num_rows: int) -> slice:
    """Return which of `num_rows` rows this rank works on: contiguous, may be none; `num_rows` is equal on all ranks."""
    return slice(*bounds(num_rows)[world()[0]])


def bounds(num_rows: int) -> list[tuple[int, int]]:
    """Return the shares of all ranks, as (start, stop)."""
    world_size = world()[1]
    return [(num_rows * rank // world_size, num_rows * (rank + 1) // world_size) for rank in range(world_size)]


def gather_shares(parts: Mapping[str, Tensor], sizes: Sequence[int]) -> dict[str, Tensor]:
    """Return the rows of blocks of these sizes, in order, on every rank; `parts` has this rank's share of each block.

    Every rank must call it, with the same names, dtypes and widths; a rank may have no rows.
    """
    if world()[1] == 1:
        return dict(parts)
    starts, by_rank = accumulate(sizes, initial=0), zip(*map(bounds, sizes), strict=True)
    places = [torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    shares = [torch.cat([rows[slice(*part)] for rows, part in zip(places, parts, strict=True)]) for parts in by_rank]
    order = torch.cat(shares).argsort()
    gathered = {name: gather_rows(part, [len(share) for share in shares]) for name, part in parts.items()}
    return {name: rows[order.to(rows.device)] for name, rows in gathered.items()}


def _exchange_device() -> torch.device:
    # NCCL does not exchange host memory, gloo no GPU memory
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
