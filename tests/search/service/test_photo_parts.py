"""Parts of photos within the limits of a service: what a detector gets, and how many requests wait for it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from mim_lightning.inference.detector import MAX_SIDE, SuggestedBox
from mim_lightning.search.service import request_limits
from mim_lightning.search.service.photo_parts import PhotoParts
from mim_lightning.search.service.request_limits import Limits, PixelBudget, RefusedError
from tests.search.service.color_shop import square


class NestedDetector:
    """Has a second request come while it looks at a photo."""

    def suggest(self, pixels: np.ndarray) -> list[SuggestedBox]:
        self.shape = pixels.shape
        with pytest.raises(RefusedError, match="too many photos wait for the detector") as refused:
            self.parts.suggest(square("red"))
        assert refused.value.status == 503
        return []


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_detector_gets_one_small_photo_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_limits, "MAX_WAIT_SECONDS", 0.01)
    detector = NestedDetector()
    detector.parts = PhotoParts(Limits(), PixelBudget(10_000_000), detector)
    for _ in range(2):  # a refused request leaves its place
        assert detector.parts.suggest(square("blue", kind, 1000)) == []
    assert detector.shape == (MAX_SIDE, MAX_SIDE, 3)
