"""Batches the encoding of concurrent requests: one thread runs the model, many threads call `embed_parts`.

What arrives while the model runs makes up the next batch, so an idle service adds no wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mim_lightning.data.images.codec import EncodedImage
from mim_lightning.inference.image_inputs import BoxedImage, ImageInputError
from mim_lightning.inference.query_product_fusion import group_rows
from mim_lightning.model.fusion import Fusions
from mim_lightning.search.service.request_limits import PixelBudget

NO_VECTORS = np.empty((0, 0), np.float32)


class Model(Protocol):
    """A loaded model; `prepare_images` raises ImageInputError for an image that cannot be used."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def fusions(self) -> Fusions: ...

    @property
    def reads_together(self) -> bool: ...

    def prepare_images(self, images: Sequence[Any]) -> Tensor: ...

    def embed_prepared(
        self, prepared: Tensor, tower: str = ..., texts: Sequence[str | None] | None = None
    ) -> np.ndarray: ...

    def embed_texts(self, texts: Sequence[str], tower: str | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class _EncodeRequest:
    """The inputs of one call, and the future of its vectors."""

    kind: str  # "images" or "texts"
    inputs: Any
    tower: str | None = None  # of texts; None: the one for short queries
    text: str | None = None  # of images: embedded together with each
    vectors: Future[np.ndarray] = field(default_factory=Future)


class BatchingEncoder:
    """An encoder that many threads share.

    Args:
        model: used by one thread only.
        max_batch_size: inputs of all kinds that start a round; the last request may exceed it.
        on_batch: called with kind and size of every batch.
        budget: bounds the pixels that are decoded at once; None: no bound.
    """

    def __init__(
        self,
        model: Model,
        max_batch_size: int = 32,
        on_batch: Callable[[str, int], None] = lambda kind, size: None,
        budget: PixelBudget | None = None,
    ) -> None:
        self.fingerprint, self.fusions, self.reads_together = model.fingerprint, model.fusions, model.reads_together
        self._model, self._max, self._on_batch, self._budget = model, max_batch_size, on_batch, budget
        self._requests: SimpleQueue[_EncodeRequest | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    def embed_parts(
        self,
        images: Sequence[Any],
        texts: Sequence[str],
        towers: Sequence[str | None] = (),
        image_text: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors of a query's images (n, D) and texts (m, D); images are decoded on the calling thread.

        Args:
            images, texts: the parts of a query.
            towers: of the texts; None, or none given: the one for short queries.
            image_text: a text that is embedded together with each image, if the model `reads_together`.

        Raises:
            ImageInputError: an image cannot be used; other calls are not affected.
            RefusedError: too many images are decoded at once.
        """
        requests = [_EncodeRequest("images", self._prepare(images), text=image_text)] if images else []
        by_tower = group_rows(towers or [None] * len(texts))
        requests += [_EncodeRequest("texts", [texts[row] for row in rows], tower) for tower, rows in by_tower.items()]
        if self._closing.is_set():
            raise RuntimeError("the encoder is closed")
        for request in requests:  # all of them before the first result: an image and a text wait for one batch
            self._requests.put(request)
        vectors = [request.vectors.result() for request in requests]
        image_vectors = vectors.pop(0) if images else NO_VECTORS
        if not vectors:
            return image_vectors, NO_VECTORS
        order = [row for rows in by_tower.values() for row in rows]
        return image_vectors, np.concatenate(vectors)[np.argsort(order)]

    def _prepare(self, images: Sequence[Any]) -> Tensor:
        """Decode images one after the other, and keep the encoder's input of each."""
        if self._budget is None:
            return self._model.prepare_images(images)
        rows = []
        for position, image in enumerate(images):
            try:
                boxed = image if isinstance(image, BoxedImage) else EncodedImage.of(image)
                with self._budget.reserve(boxed.work_pixels):
                    rows.append(self._model.prepare_images([image]))
            except ImageInputError as error:
                raise ImageInputError(position, error.reason) from error.__cause__
        return torch.cat(rows)

    def close(self) -> None:
        """Encode what was requested, then stop."""
        self._closing.set()
        self._requests.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            requests: list[_EncodeRequest | None] = [request]
            while sum(len(r.inputs) for r in requests if r) < self._max and not self._requests.empty():
                requests.append(self._requests.get())
            for kind, tower in dict.fromkeys((r.kind, r.tower) for r in requests if r):
                self._encode(kind, tower, [r for r in requests if r and (r.kind, r.tower) == (kind, tower)])
            if None in requests:
                return

    def _encode(self, kind: str, tower: str | None, batch: list[_EncodeRequest]) -> None:
        try:
            if kind == "texts":
                vectors = self._model.embed_texts([text for request in batch for text in request.inputs], tower)
            else:
                images, texts = torch.cat([r.inputs for r in batch]), [r.text for r in batch for _ in r.inputs]
                is_plain, model = all(text is None for text in texts), self._model
                vectors = model.embed_prepared(images) if is_plain else model.embed_prepared(images, texts=texts)
        except Exception as error:  # raised in the calling threads; this one goes on
            for request in batch:
                request.vectors.set_exception(error)
            return
        self._on_batch(kind, len(vectors))
        ends = np.cumsum([len(request.inputs) for request in batch])
        for request, part in zip(batch, np.split(vectors, ends[:-1]), strict=True):
            request.vectors.set_result(part)
