"""Memory that batches share with the workers is used again when it is free, and never before."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mim_lightning.data.images.buffer import ImageBuffer, image_bytes
from mim_lightning.data.images.transforms import Augment
from mim_lightning.data.loading import batch_memory
from mim_lightning.data.loading.batch_memory import SharedBatchBuffers, make_buffers
from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.loading.loader import StreamLoader
from mim_lightning.data.sampling.shuffled import ShuffledOrder
from mim_lightning.types import Batch, ImageSpec, TextSpec
from tests.data.conftest import MakeSet, tokenize

SPECS = {
    "query_image": ImageSpec((8, 8)),
    "product_image": ImageSpec((16, 8)),
    "product_text": TextSpec(tokenize, 16),
    "query_text": TextSpec(tokenize, 16),
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


def test_buffers_are_reused_once_a_batch_is_gone(make_set: MakeSet) -> None:
    loader = make_loader(make_set, 2)
    assert loader.buffers is not None
    addresses = {batch.inputs["query_image"].data_ptr() for _ in range(2) for batch in loader}  # type: ignore[union-attr]
    buffers = range(len(loader.buffers._memory))
    assert addresses <= {loader.buffers.to_write(buffer_idx).data_ptr() for buffer_idx in buffers}
    assert sorted(loader.buffers._free) == list(buffers)


def test_an_abandoned_iteration_restarts_with_the_next_batch(make_set: MakeSet) -> None:
    expected = [tensors(batch) for batch in make_loader(make_set, 0)]
    loader = make_loader(make_set, 2)
    for stop in (3, 7, len(expected)):
        for batch in loader:
            done = loader.consumed // BATCH_SIZE
            assert_equal(batch, expected[done - 1])
            if done == stop:
                break
    del batch
    assert loader.buffers is not None and len(loader.buffers._free) == len(loader.buffers._memory)


def test_a_slice_of_a_tensor_keeps_its_buffer() -> None:
    buffers = SharedBatchBuffers(2, 100)
    buffer_idx = buffers.acquire()
    assert buffer_idx == 1
    part = buffers.attach(buffer_idx)[10:20].view(2, 5)
    assert buffers.acquire() == 0 and buffers.acquire() is None
    del part
    assert buffers.acquire() == 1


def test_released_memory_pages_can_be_written_again() -> None:
    buffers = SharedBatchBuffers(1, 10_000)
    buffers.to_write(0).fill_(7)
    buffers.release()
    assert buffers.to_write(0).max() == 0
    buffers.to_write(0).fill_(8)
    assert buffers.to_write(0).min() == 8


def test_buffers_fit_the_largest_batch_and_are_made_only_if_they_can_be_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffers = make_buffers(SPECS, 5, num_workers=2, prefetch_factor=2)
    assert buffers is not None and len(buffers._memory) == 7
    buffer = ImageBuffer(buffers.to_write(0))
    start, stop = buffers.to_write(0).data_ptr(), buffers.to_write(0).data_ptr() + image_bytes(SPECS.values(), 5)
    inside = [buffer.empty(5, 3, *spec.size) for spec in SPECS.values() if isinstance(spec, ImageSpec)]
    assert all(start <= tensor.data_ptr() < stop and tensor.data_ptr() % 64 == start % 64 for tensor in inside)
    assert not start <= buffer.empty(1).data_ptr() < stop, "what does not fit any more gets memory of its own"
    with_references = make_buffers(SPECS, 5, num_workers=2, prefetch_factor=2, num_references=5)
    of_products = [spec for name, spec in SPECS.items() if name == "product_image"]
    assert of_products and with_references is not None
    difference = len(with_references.to_write(0)) - len(buffers.to_write(0))
    assert difference == image_bytes(of_products, 10) - image_bytes(of_products, 5)
    assert make_buffers(SPECS, 5, num_workers=0, prefetch_factor=2) is None
    assert make_buffers({"query_text": SPECS["query_text"]}, 5, num_workers=2, prefetch_factor=2) is None
    monkeypatch.setattr(batch_memory.multiprocessing, "get_start_method", lambda **_: "spawn")
    assert make_buffers(SPECS, 5, num_workers=2, prefetch_factor=2) is None


def test_moving_a_batch_leaves_nothing_behind(make_set: MakeSet) -> None:
    buffers = SharedBatchBuffers(1, 100)
    batch = next(iter(make_loader(make_set, 0)))
    batch.inputs["query_image"] = buffers.attach(0)
    buffers._free.clear()
    moved = batch.to("cpu")
    del batch, moved
    assert buffers._free == [0]
