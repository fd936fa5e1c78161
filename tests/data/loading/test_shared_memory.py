"""Memory that batches share with the workers is used again when it is free, and never before."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mim_lightning.data.images.buffer import PictureBuffer, picture_bytes
from mim_lightning.data.images.transforms import Augment
from mim_lightning.data.loading import shared_memory as slots_module
from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.data.loading.shared_memory import Slots, make_slots
from mim_lightning.data.sampling.shuffled import ShuffledOrder
from mim_lightning.types import Batch, ImageSpec, TextSpec
from tests.data.conftest import MakeSet, tokenise

SPECS = {
    "query_image": ImageSpec((8, 8)),
    "product_image": ImageSpec((16, 8)),
    "product_text": TextSpec(tokenise, 16),
    "query_text": TextSpec(tokenise, 16),
}
NUM_ROWS, BATCH_SIZE = 64, 4


@pytest.fixture(autouse=True)
def _no_garbage_collector() -> Iterator[None]:
    """What is free only after the garbage collector came is not free in time."""
    gc.disable()
    yield
    gc.enable()


def make_loader(make_set: MakeSet, num_workers: int) -> StreamLoader:
    shards = make_set(NUM_ROWS, 20)
    collate = Collate(SPECS, shards.max_relevant, Augment(brightness=0.3), seed=3)
    return StreamLoader(
        shards, collate, ShuffledOrder(tuple(shards.sizes), BATCH_SIZE, seed=3), num_workers=num_workers
    )


def tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.map(lambda tensor: found.append(tensor.clone()))
    return found


def assert_equal(batch: Batch, expected: list[Tensor]) -> None:
    for tensor, other in zip(tensors(batch), expected, strict=True):
        assert tensor.dtype == other.dtype and torch.equal(tensor, other)


@pytest.mark.parametrize("num_kept", [1, 3, NUM_ROWS])
def test_batches_are_those_without_workers_however_many_are_kept(make_set: MakeSet, num_kept: int) -> None:
    expected = [tensors(batch) for batch in make_loader(make_set, 0)]
    loader, kept = make_loader(make_set, 2), []
    for number, batch in enumerate(loader):
        kept.append(batch)
        for back, old in enumerate(reversed(kept)):
            assert_equal(old, expected[number - back])
        del kept[:-num_kept]
        batch = old = None  # type: ignore[assignment]
    assert number + 1 == len(expected)


def test_slots_are_used_again_as_soon_as_a_batch_is_let_go(make_set: MakeSet) -> None:
    loader = make_loader(make_set, 2)
    assert loader.slots is not None
    addresses = {batch.inputs["query_image"].data_ptr() for _ in range(2) for batch in loader}  # type: ignore[union-attr]
    slots = range(len(loader.slots._memory))
    assert addresses <= {loader.slots.buffer(slot).data_ptr() for slot in slots}
    assert sorted(loader.slots._free) == list(slots)


def test_a_pass_that_is_left_and_begun_anew_goes_on_with_what_comes_next(make_set: MakeSet) -> None:
    expected = [tensors(batch) for batch in make_loader(make_set, 0)]
    loader = make_loader(make_set, 2)
    for stop in (3, 7, len(expected)):
        for batch in loader:
            done = loader.consumed // BATCH_SIZE
            assert_equal(batch, expected[done - 1])
            if done == stop:
                break
    del batch
    assert loader.slots is not None and len(loader.slots._free) == len(loader.slots._memory)


def test_a_part_of_a_tensor_keeps_its_slot() -> None:
    slots = Slots(2, 100)
    slot = slots.take()
    assert slot == 1
    part = slots.open(slot)[10:20].view(2, 5)
    assert slots.take() == 0 and slots.take() is None
    del part
    assert slots.take() == 1


def test_pages_that_were_given_back_can_be_written_again() -> None:
    slots = Slots(1, 10_000)
    slots.buffer(0).fill_(7)
    slots.give_back()
    assert slots.buffer(0).max() == 0
    slots.buffer(0).fill_(8)
    assert slots.buffer(0).min() == 8


def test_slots_hold_the_largest_batch_and_are_made_only_where_they_can_be_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = make_slots(SPECS, 5, num_workers=2, num_ahead=2)
    assert slots is not None and len(slots._memory) == 7
    buffer = PictureBuffer(slots.buffer(0))
    start, stop = slots.buffer(0).data_ptr(), slots.buffer(0).data_ptr() + picture_bytes(SPECS.values(), 5)
    inside = [buffer.empty(5, 3, *spec.size) for spec in SPECS.values() if isinstance(spec, ImageSpec)]
    assert all(start <= tensor.data_ptr() < stop and tensor.data_ptr() % 64 == start % 64 for tensor in inside)
    assert not start <= buffer.empty(1).data_ptr() < stop, "what does not fit any more gets memory of its own"
    assert make_slots(SPECS, 5, num_workers=0, num_ahead=2) is None
    assert make_slots({"query_text": SPECS["query_text"]}, 5, num_workers=2, num_ahead=2) is None
    monkeypatch.setattr(slots_module.multiprocessing, "get_start_method", lambda **_: "spawn")
    assert make_slots(SPECS, 5, num_workers=2, num_ahead=2) is None


def test_moving_a_batch_leaves_nothing_behind(make_set: MakeSet) -> None:
    slots = Slots(1, 100)
    batch = next(iter(make_loader(make_set, 0)))
    batch.inputs["query_image"] = slots.open(0)
    slots._free.clear()
    moved = batch.to("cpu")
    del batch, moved
    assert slots._free == [0]
