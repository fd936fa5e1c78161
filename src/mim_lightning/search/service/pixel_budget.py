"""How many pixels all requests together may have decoded at once: memory stays flat, however many clients come.

A request says how much it is about to decode, waits its turn, and gives it back when its picture is small again.
One budget is shared by every engine, by routes and page.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from mim_lightning.search.service.limits import RefusedError

MAX_WAITING = 16  # requests: each holds a thread, and words alone shall find one
MAX_SECONDS = 20.0  # that one waits


class PixelBudget:
    """Hands out pixels, first come first served.

    Args:
        num_pixels: in work at once; a picture that has more by itself waits until it is alone.
    """

    def __init__(self, num_pixels: int) -> None:
        self.num_pixels = num_pixels
        self._in_work = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, num_pixels: int) -> Iterator[None]:
        """Have `num_pixels` in work; waits until there is room.

        Raises:
            RefusedError: too many wait already, or it took too long.
        """
        num_pixels = min(num_pixels, self.num_pixels)
        self._take(num_pixels)
        try:
            yield
        finally:
            with self._changed:
                self._in_work -= num_pixels
                self._changed.notify_all()

    def _take(self, num_pixels: int) -> None:
        turn = object()
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                raise self._refusal()
            self._waiting.append(turn)
            has_room = self._changed.wait_for(
                lambda: self._waiting[0] is turn and self._in_work + num_pixels <= self.num_pixels, MAX_SECONDS
            )
            self._waiting.remove(turn)
            self._in_work += num_pixels if has_room else 0
            self._changed.notify_all()
        if not has_room:
            raise self._refusal()

    def _refusal(self) -> RefusedError:
        return RefusedError(503, "too many large pictures at once; try again, or send smaller ones", retry_after=5)
