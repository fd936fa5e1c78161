"""Together requests never have more pixels in work than the budget; whoever cannot wait is told."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mim_lightning.data.images.codec import EncodedImage
from mim_lightning.search.service import pixel_budget as module
from mim_lightning.search.service.limits import RefusedError
from mim_lightning.search.service.pixel_budget import PixelBudget
from tests.data.conftest import encoded, picture


def test_never_more_than_the_budget_and_everyone_gets_a_turn() -> None:
    budget, lock = PixelBudget(100), threading.Lock()
    in_work, most, done = 0, 0, 0

    def work(num_pixels: int) -> None:
        nonlocal in_work, most, done
        with budget.hold(num_pixels):
            with lock:
                in_work += min(num_pixels, 100)
                most = max(most, in_work)
            threading.Event().wait(0.002)
            with lock:
                in_work, done = in_work - min(num_pixels, 100), done + 1

    with ThreadPoolExecutor(8) as pool:
        for thread in [pool.submit(work, size) for size in (60, 30, 500, 10, 40, 99, 1, 70) * 5]:
            thread.result()
    assert done == 40 and 60 < most <= 100


def test_an_error_gives_the_pixels_back() -> None:
    budget = PixelBudget(10)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.hold(10):
            raise ZeroDivisionError
    with budget.hold(10):
        pass


def test_whoever_cannot_wait_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 0.01)
    budget = PixelBudget(10)
    with budget.hold(6):
        with pytest.raises(RefusedError) as caught, budget.hold(6):
            pass
        assert (caught.value.status, caught.value.retry_after) == (503, 5)
        monkeypatch.setattr(module, "MAX_WAITING", 0)
        with pytest.raises(RefusedError), budget.hold(1):
            pass


def test_a_picture_whose_kind_costs_more_than_the_budget_is_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 0.01)
    data = encoded(picture(1), "JPEG2000")
    budget = PixelBudget(24 * 32)  # as many as the picture has
    with budget.hold(EncodedImage.of(data).work_pixels), pytest.raises(RefusedError), budget.hold(1):
        pass
