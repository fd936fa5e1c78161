"""Many requests, one model: what they want encoded at the same time goes through the towers together.

A model comes in; threads of the service call `embed_parts` as if they had it to themselves. One
thread works; what arrives while it does makes up the next batch, so an idle service adds no wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mim_lightning.data.images.codec import EncodedImage
from mim_lightning.inference.image_inputs import ImageInputError
from mim_lightning.inference.query_product_fusion import rows_by_tower
from mim_lightning.search.service.pixel_budget import PixelBudget

NO_VECTORS = np.empty((0, 0), np.float32)


class Model(Protocol):
    """A loaded model; `prepare_images` raises ValueError for a picture that cannot be read."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def fusions(self) -> Mapping[str, Mapping[str, float]]: ...

    def prepare_images(self, images: Sequence[Any]) -> Tensor: ...

    def embed_prepared(self, prepared: Tensor) -> np.ndarray: ...

    def embed_texts(self, texts: Sequence[str], tower: str | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class _Wish:
    """Inputs of one call, and where its vectors go."""

    kind: str  # "images" or "texts"
    inputs: Any
    tower: str | None = None  # of texts
    answer: Future[np.ndarray] = field(default_factory=Future)


class BatchingEncoder:
    """Encodes for many threads at once.

    Args:
        model: used by one thread only.
        max_batch_size: inputs of one kind that go through the towers together.
        on_batch: told the size of every batch, for the service's metrics.
        budget: of the pixels that are decoded at once; None: no limit.
    """

    def __init__(
        self,
        model: Model,
        max_batch_size: int = 32,
        on_batch: Callable[[str, int], None] = lambda kind, size: None,
        budget: PixelBudget | None = None,
    ) -> None:
        self.fingerprint, self.fusions = model.fingerprint, model.fusions
        self._model, self._max, self._on_batch, self._budget = model, max_batch_size, on_batch, budget
        self._wishes: SimpleQueue[_Wish | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    def embed_parts(
        self, images: Sequence[Any], texts: Sequence[str], towers: Sequence[str | None] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors of a query's images (n, D) and texts (m, D); pictures are decoded on the caller's thread.

        Args:
            images, texts: the parts of a query.
            towers: of the texts; None, or none given: the one for short queries.

        Raises:
            ValueError: a picture cannot be read; the other callers' go on.
            RefusedError: too many pictures are decoded at once.
        """
        wishes = [_Wish("images", self._prepare(images))] if images else []
        by_tower = rows_by_tower(towers or [None] * len(texts))
        wishes += [_Wish("texts", [texts[row] for row in rows], tower) for tower, rows in by_tower.items()]
        if self._closing.is_set():
            raise RuntimeError("the encoder is closed")
        for wish in wishes:  # all of them before the first answer: a photo with words waits for one batch, not for two
            self._wishes.put(wish)
        vectors = [wish.answer.result() for wish in wishes]
        found = vectors.pop(0) if images else NO_VECTORS
        if not vectors:
            return found, NO_VECTORS
        order = [row for rows in by_tower.values() for row in rows]
        return found, np.concatenate(vectors)[np.argsort(order)]

    def _prepare(self, images: Sequence[Any]) -> Tensor:
        """Decode pictures one after the other: what stays of each is what the encoder takes."""
        budget = self._budget
        if budget is None:
            return self._model.prepare_images(images)
        rows = []
        for position, image in enumerate(images):
            try:
                with budget.hold(EncodedImage.of(image).work_pixels):
                    rows.append(self._model.prepare_images([image]))
            except ImageInputError as error:
                raise ImageInputError(position, error.reason) from error.__cause__
        return torch.cat(rows)

    def close(self) -> None:
        """Finish what was asked, then stop."""
        self._closing.set()
        self._wishes.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (wish := self._wishes.get()) is not None:
            wishes: list[_Wish | None] = [wish]
            while sum(len(w.inputs) for w in wishes if w) < self._max and not self._wishes.empty():
                wishes.append(self._wishes.get())
            for kind, tower in dict.fromkeys((w.kind, w.tower) for w in wishes if w):
                self._answer(kind, tower, [w for w in wishes if w and (w.kind, w.tower) == (kind, tower)])
            if None in wishes:
                return

    def _answer(self, kind: str, tower: str | None, wishes: list[_Wish]) -> None:
        try:
            vectors = self._encode(kind, tower, wishes)
        except Exception as error:  # whoever asked is told; the thread serves the next
            for wish in wishes:
                wish.answer.set_exception(error)
            return
        self._on_batch(kind, len(vectors))
        for wish, part in zip(wishes, np.split(vectors, np.cumsum([len(w.inputs) for w in wishes])[:-1]), strict=True):
            wish.answer.set_result(part)

    def _encode(self, kind: str, tower: str | None, wishes: list[_Wish]) -> np.ndarray:
        if kind == "texts":
            texts = [text for wish in wishes for text in wish.inputs]
            return self._model.embed_texts(texts, tower) if tower else self._model.embed_texts(texts)
        return self._model.embed_prepared(torch.cat([wish.inputs for wish in wishes]))
