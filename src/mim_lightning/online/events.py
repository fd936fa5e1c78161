"""Events of an online experiment: an impression is one answer as a user saw it, a click is on one of its products.

There is no field for an address of a user, and `user_hash` accepts only a hash. What was asked is recorded on request
alone, as an `AskedQuery`.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

KINDS = ("image", "text", "composed")  # of a query
_USER_HASH = re.compile(r"[0-9a-f]{32}")


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    """Return a random id that cannot be guessed: only a client that received an answer can click on it."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Shown:
    """One product of an answer, with the score that ranked it."""

    product_id: str
    score: float

    def __post_init__(self) -> None:
        _validate_text("product_id", self.product_id)
        if not math.isfinite(self.score):
            raise ValueError(f"product '{self.product_id}': score={self.score}: must be a finite number")


@dataclass(frozen=True)
class AskedQuery:
    """What the query of an impression was, for training on clicks: equal ids are the same query.

    Without text and photo it is one that a row of queries cannot say.
    """

    query_id: str
    text: str | None = None
    photo: str | None = None  # path or URL of its photo, wherever that is stored

    def __post_init__(self) -> None:
        _validate_text("query_id", self.query_id)
        for name in ("text", "photo"):
            if (value := getattr(self, name)) is not None:
                _validate_text(name, value)


@dataclass(frozen=True)
class Impression:
    """One answer as a user saw it, best product first; positions count from 1. It may be empty."""

    experiment: str
    arm: str
    user_hash: str  # from `hash_user`
    kind: str  # of the query: one of KINDS
    shown: Sequence[Shown]
    latency_ms: float
    fingerprint: str  # of the model that answered
    asked: AskedQuery | None = None
    impression_id: str = field(default_factory=new_id)
    time: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        for name in ("experiment", "arm", "fingerprint"):
            _validate_text(name, getattr(self, name))
        if not _USER_HASH.fullmatch(self.user_hash):
            raise ValueError("user_hash: must come from hash_user; a user key is never stored")
        if self.kind not in KINDS:
            raise ValueError(f"kind='{self.kind}': must be one of {', '.join(KINDS)}")
        if not (math.isfinite(self.latency_ms) and self.latency_ms >= 0):
            raise ValueError(f"latency_ms={self.latency_ms}: must be 0 or more")
        if len({shown.product_id for shown in self.shown}) < len(self.shown):
            raise ValueError("shown: a product appears twice; an answer has one hit a product")
        _validate_id(self.impression_id)
        _validate_time(self.time)


@dataclass(frozen=True)
class Click:
    """A click on a product of an answer; its position is looked up in the recorded impression."""

    impression_id: str
    product_id: str
    time: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        _validate_id(self.impression_id)
        _validate_text("product_id", self.product_id)
        _validate_time(self.time)


def _validate_id(impression_id: str) -> None:
    try:
        is_canonical = str(uuid.UUID(impression_id)) == impression_id
    except ValueError:
        is_canonical = False
    if not is_canonical:
        raise ValueError(f"impression_id '{impression_id[:40]}': must be one that the event log returned")


def _validate_text(name: str, text: str) -> None:
    if not text or "\x00" in text:
        raise ValueError(f"{name}: " + ("contains a NUL character" if text else "is empty"))


def _validate_time(time: datetime) -> None:
    if time.tzinfo is None:
        raise ValueError(f"time={time}: needs a time zone, as in datetime.now(UTC)")
