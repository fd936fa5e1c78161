"""Recording for an experiment, of a kind that never fails a search.

What was shown and clicked goes to the experiment's event log. While that fails (a full disk, a locked or removed
file, a server that is gone) answers have no impression id, one line in a minute says so, and one request every few
seconds tries again: the others do not wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from mim_lightning.search.service.limits import RefusedError
from mim_lightning.search.service.telemetry import Telemetry

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
        self, experiment: Experiment, telemetry: Telemetry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._experiment, self._telemetry, self._clock = experiment, telemetry, clock
        self._turn = threading.Lock()
        self._is_failing, self._num_lost = False, 0
        self._retry_at = self._log_at = 0.0
        telemetry.event_log_up.set(1)

    def record(
        self,
        user_key: str,
        arm: str,
        kind: str,
        shown: Sequence[tuple[str, float]],
        latency_ms: float,
        fingerprint: str,
    ) -> str | None:
        """Record an answer, see `Experiment.record`; None: it could not be."""
        try:
            recorded = self._try(
                lambda: self._experiment.record(user_key, arm, kind, shown, latency_ms, fingerprint),
                OSError,
                ValueError,
            )
        except EventLogError:
            self._telemetry.lost_impressions.labels(arm).inc()
            return None
        self._telemetry.impressions.labels(arm).inc()
        return recorded

    def click(self, impression_id: str, product_id: str) -> bool:
        """Record a click; return False for one that was recorded before.

        Raises:
            RefusedError: no such impression, or it did not show the product; or the event log fails.
        """
        try:
            is_first = self._try(lambda: self._experiment.click(impression_id, product_id), OSError)
        except EventLogError as error:
            self._telemetry.lost_clicks.inc()
            raise RefusedError(503, "the event log fails; nothing is recorded now", RETRY_SECONDS) from error
        except ValueError as error:
            raise RefusedError(404, str(error)) from error
        if is_first:
            self._telemetry.clicks.inc()
        return is_first

    def _try(self, write: Callable[[], T], *faults: type[Exception]) -> T:
        """Write, unless it failed a moment ago.

        Raises:
            EventLogError: it did, or one of `faults` came of it now.
        """
        with self._turn:
            if self._is_failing and self._clock() < self._retry_at:
                self._num_lost += 1
                raise EventLogError
            self._retry_at = self._clock() + RETRY_SECONDS  # while one tries again, the others go on
        try:
            written = write()
        except faults as error:
            self._note_fault(error)
            raise EventLogError from error
        self._note_success()
        return written

    def _note_fault(self, error: Exception) -> None:
        with self._turn:
            now = self._clock()
            self._is_failing, self._retry_at = True, now + RETRY_SECONDS
            self._num_lost += 1
            is_told, self._log_at = now < self._log_at, max(self._log_at, now)
            if not is_told:
                self._log_at = now + LOG_SECONDS
        self._telemetry.event_log_up.set(0)
        if not is_told:
            LOG.error("%s; searches go on, and are not recorded", " ".join(str(error).split()))

    def _note_success(self) -> None:
        with self._turn:
            was_failing, num_lost = self._is_failing, self._num_lost
            self._is_failing, self._num_lost, self._log_at = False, 0, 0.0
        if was_failing:
            self._telemetry.event_log_up.set(1)
            LOG.error("the event log records again; %d impressions and clicks were lost", num_lost)
