"""Recording impressions and clicks without failing a search.

While the event log fails (a full disk, a locked or removed file, a database that is down) responses have no impression
id, the log gets one line a minute, and one request every few seconds tries again: the others do not wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mim_lightning.search.service.prometheus import ServiceMetrics
from mim_lightning.search.service.request_limits import RefusedError

if TYPE_CHECKING:
    from mim_lightning.online.assignment import Experiment

RETRY_SECONDS = 5.0
LOG_SECONDS = 60.0
LOG = logging.getLogger(__name__)
T = TypeVar("T")


class EventLogError(Exception):
    """The event log fails, or failed a moment ago."""


class Recorder:
    """Records for one experiment; `clock` gives seconds."""

    def __init__(
        self, experiment: Experiment, metrics: ServiceMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._experiment, self._metrics, self._clock = experiment, metrics, clock
        self._lock = threading.Lock()
        self._is_failing, self._num_lost = False, 0
        self._retry_at = self._log_at = 0.0
        metrics.event_log_up.set(1)

    def record(self, arm: str, write: Callable[[], str]) -> str | None:
        """Record an impression of an arm by calling `write`, and return its id; None: it could not be recorded."""
        try:
            impression_id = self._try(write, OSError, ValueError)
        except EventLogError:
            self._metrics.lost_impressions.labels(arm).inc()
            return None
        self._metrics.impressions.labels(arm).inc()
        return impression_id

    def click(self, impression_id: str, product_id: str) -> bool:
        """Record a click; return False for one that was recorded before.

        Raises:
            RefusedError: no such impression, it did not show the product, or the event log fails.
        """
        try:
            is_first = self._try(lambda: self._experiment.click(impression_id, product_id), OSError)
        except EventLogError as error:
            self._metrics.lost_clicks.inc()
            raise RefusedError(503, "the event log fails; the click was not recorded", RETRY_SECONDS) from error
        except ValueError as error:
            raise RefusedError(404, str(error)) from error
        if is_first:
            self._metrics.clicks.inc()
        return is_first

    def _try(self, write: Callable[[], T], *failures: type[Exception]) -> T:
        """Write, unless that failed a moment ago.

        Raises:
            EventLogError: it did, or `write` raised one of `failures`.
        """
        with self._lock:
            if self._is_failing and self._clock() < self._retry_at:
                self._num_lost += 1
                raise EventLogError
            self._retry_at = self._clock() + RETRY_SECONDS  # while one request tries again, the others skip
        try:
            written = write()
        except failures as error:
            self._note_failure(error)
            raise EventLogError from error
        with self._lock:
            was_failing, num_lost = self._is_failing, self._num_lost
            self._is_failing, self._num_lost, self._log_at = False, 0, 0.0
        if was_failing:
            self._metrics.event_log_up.set(1)
            LOG.error("the event log records again; %d impressions and clicks were lost", num_lost)
        return written

    def _note_failure(self, error: Exception) -> None:
        with self._lock:
            now = self._clock()
            self._is_failing, self._retry_at = True, now + RETRY_SECONDS
            self._num_lost += 1
            is_logged = now >= self._log_at
            if is_logged:
                self._log_at = now + LOG_SECONDS
        self._metrics.event_log_up.set(0)
        if is_logged:
            LOG.error("%s; searches continue, but are not recorded", " ".join(str(error).split()))
