"""Many threads each get their own vectors, in few batches; an error in one call does not affect the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mim_lightning.search.service.batching import BatchingEncoder


class Model:
    fingerprint = "f00d"
    reads_together = False
    fusions: dict[str, dict[str, float]] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.hold.set()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def prepare_images(self, images: Sequence[Any]) -> Tensor:
        if "broken" in images:
            raise ValueError("image 0: not an image")
        return torch.tensor(images)

    def embed_prepared(self, prepared: Tensor) -> np.ndarray:
        self.entered.set()
        self.hold.wait()
        self.batches.append(len(prepared))
        if 666 in prepared:
            raise RuntimeError("out of memory")
        return torch.stack([prepared, -prepared], dim=1).float().numpy()

    def embed_texts(self, texts: Sequence[str], tower: str | None = None) -> np.ndarray:
        if tower == "query_none":
            raise ValueError("tower 'query_none': no text tower of this model")
        return np.array([[len(text), tower is not None] for text in texts], dtype=np.float32)


@pytest.fixture
def model() -> Model:
    return Model()


def images_of(encoder: BatchingEncoder, numbers: list[Any]) -> np.ndarray:
    return encoder.embed_parts(numbers, [])[0]


def test_every_call_gets_its_own_vectors(model: Model) -> None:
    encoder = BatchingEncoder(model, max_batch_size=8)
    with ThreadPoolExecutor(16) as pool:
        asked = [[number, number + 1000] for number in range(200)]
        texts = [["x" * number] * (number % 3) for number in range(200)]
        for numbers, words, parts in zip(asked, texts, pool.map(encoder.embed_parts, asked, texts), strict=True):
            assert parts[0][:, 0].tolist() == numbers
            assert [row[0] for row in parts[1]] == [len(text) for text in words]
    encoder.close()


def test_waiting_requests_are_encoded_together(model: Model) -> None:
    sizes: list[tuple[str, int]] = []
    encoder = BatchingEncoder(model, max_batch_size=4, on_batch=lambda kind, size: sizes.append((kind, size)))
    model.hold.clear()
    with ThreadPoolExecutor(11) as pool:
        first = pool.submit(images_of, encoder, [0])
        assert model.entered.wait(10)
        rest = [pool.submit(images_of, encoder, [number]) for number in range(1, 11)]
        while encoder._requests.qsize() < 10:
            time.sleep(0.001)
        model.hold.set()
        assert [int(f.result()[0, 0]) for f in (first, *rest)] == list(range(11))
    assert model.batches == [1, 4, 4, 2]
    assert sizes == [("images", size) for size in model.batches]
    encoder.close()


def test_an_image_with_text_waits_for_one_batch(model: Model) -> None:
    encoder = BatchingEncoder(model)
    model.hold.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(images_of, encoder, [0])
        assert model.entered.wait(10)
        both = pool.submit(encoder.embed_parts, [1], ["words"])
        while encoder._requests.qsize() < 2:  # neither part waits for the answer to the other
            time.sleep(0.001)
        model.hold.set()
        assert first.result()[0, 0] == 0
        assert [part[0, 0] for part in both.result()] == [1, 5]
    encoder.close()


def test_each_text_is_encoded_by_its_tower(model: Model) -> None:
    encoder = BatchingEncoder(model)
    texts, towers = ["a", "bb", "ccc"], ["query_category", None, "query_category"]
    assert encoder.embed_parts([], texts, towers)[1].tolist() == [[1, 1], [2, 0], [3, 1]]
    with pytest.raises(ValueError, match="query_none"):
        encoder.embed_parts([], texts, [None, "query_none", None])
    assert encoder.embed_parts([7], ["dddd"])[1].tolist() == [[4, 0]]
    encoder.close()


def test_errors_are_raised_in_the_calling_thread(model: Model) -> None:
    encoder = BatchingEncoder(model)
    with pytest.raises(ValueError, match="not an image"):
        images_of(encoder, ["broken"])
    with pytest.raises(RuntimeError, match="out of memory"):
        images_of(encoder, [666])
    assert images_of(encoder, [5])[0, 0] == 5
    encoder.close()
    with pytest.raises(RuntimeError, match="closed"):
        images_of(encoder, [5])
