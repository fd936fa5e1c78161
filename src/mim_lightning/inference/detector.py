"""Boxes that an object detector suggests for a photo, so that a shopper chooses a part of it.

A suggestion is what the detector was trained to find: with weights of COCO 80 kinds of things, few of them products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch

from mim_lightning.data.images.boxes import Box
from mim_lightning.inference.loading import choose_device

MAX_SIDE = 800  # pixels of the longer side that a detector is given
SAME = 0.6  # intersection over union of two boxes of one thing
MIN_SIDE = 0.05  # of a box, as a fraction of the image


@dataclass(frozen=True)
class SuggestedBox:
    """A box, how sure the detector is, and what it takes the thing for, if it knows."""

    box: Box
    score: float
    label: str | None = None


class Detector(Protocol):
    """What suggests boxes, best first, for RGB pixels (H, W, 3) uint8; threads may share it."""

    def suggest(self, pixels: np.ndarray) -> list[SuggestedBox]: ...


class TorchvisionDetector:
    """A detector of `torchvision.models.detection`, with weights from a local file.

    Args:
        model: its name, such as `fasterrcnn_mobilenet_v3_large_320_fpn`.
        weights: file of a state dict, as torchvision publishes them.
        num_classes: of the weights, the background included.
        max_boxes: that are suggested.
        min_score: of a box that is suggested.
        device: where the model runs.

    Raises:
        ValueError: torchvision is missing, no such model, the weights are missing or of another model, or a number or
            the device cannot be used.
    """

    def __init__(
        self,
        model: str,
        weights: str | Path | None,
        num_classes: int = 91,
        max_boxes: int = 6,
        min_score: float = 0.3,
        device: str = "cpu",
    ) -> None:
        try:
            from torchvision.models import detection, get_model, get_model_weights, list_models
        except ImportError as error:
            raise ValueError(f"detector: needs torchvision ({error}); pip install torchvision") from error
        if num_classes < 2:
            raise ValueError(f"detector.num_classes={num_classes}: give at least 2, the background and a kind of thing")
        if max_boxes < 1:
            raise ValueError(f"detector.max_boxes={max_boxes}: give at least 1")
        if not 0 <= min_score <= 1:
            raise ValueError(f"detector.min_score={min_score}: give a number from 0 to 1")
        try:
            chosen_device = choose_device(device)
        except ValueError as error:
            raise ValueError(f"detector.{error}") from error
        names = list_models(module=detection)
        if model not in names:
            raise ValueError(f"detector.model={model}: choose one of {', '.join(names)}")
        published: Any = get_model_weights(model).DEFAULT
        if weights is None or not Path(weights).is_file():
            raise ValueError(
                f"detector.weights={weights}: no such file; give weights of {model}, such as those of {published.url}"
            )
        network = get_model(model, weights=None, weights_backbone=None, num_classes=num_classes)
        try:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:  # of the unpickler, or of tensors that do not fit
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"detector.weights={weights}: no weights of {model} with detector.num_classes={num_classes} ({reason})"
            ) from error
        labels = published.meta["categories"]
        self._labels: Sequence[str] = labels if len(labels) == num_classes else ()
        self._network, self._device = network.eval().to(chosen_device), chosen_device
        self._max_boxes, self._min_score, self._lock = max_boxes, min_score, Lock()

    def suggest(self, pixels: np.ndarray) -> list[SuggestedBox]:
        """Return boxes, best first; of several boxes of one thing the best, none that is nearly the whole image."""
        from torchvision.ops import nms

        height, width = pixels.shape[:2]
        image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).to(self._device).float() / 255
        with self._lock, torch.inference_mode():
            (found,) = self._network([image])
        boxes_N4, scores_N, labels_N = (found[name].float().cpu() for name in ("boxes", "scores", "labels"))
        is_finite_N = boxes_N4.isfinite().all(1) & scores_N.isfinite()  # else a box is of nothing
        boxes_N4, scores_N, labels_N = (found_N[is_finite_N] for found_N in (boxes_N4, scores_N, labels_N))
        suggested = []
        for row in nms(boxes_N4, scores_N, SAME).tolist():
            fractions = boxes_N4[row] / torch.tensor([width, height, width, height])
            left, top, right, bottom = fractions.clamp(0, 1).tolist()
            label, score = int(labels_N[row]), float(scores_N[row])
            if score < self._min_score or min(right - left, bottom - top) < MIN_SIDE:
                continue
            if (right - left) * (bottom - top) > 1 - MIN_SIDE:
                continue
            name = self._labels[label] if label < len(self._labels) else None
            suggested.append(SuggestedBox((left, top, right, bottom), score, name))
        return suggested[: self._max_boxes]
