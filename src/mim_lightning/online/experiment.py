"""A running experiment: who sees which arm, and the log of what they saw and clicked.

The serve door makes one from its config, the service asks it for arms and tells it what happened. A user's key goes
no further than here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mim_lightning.online.arms import Arm, assign, hash_user
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.events import Click, Impression, Shown


@dataclass(frozen=True)
class Experiment:
    """An experiment of some name between arms; `salt` is `read_salt()`."""

    name: str
    arms: Mapping[str, Arm]
    salt: str
    log: EventLog

    def arm_of(self, user_key: str) -> str:
        """Return the arm that a user sees, the same on every visit."""
        return assign(user_key, self.arms, self.name, self.salt).name

    def record(
        self,
        user_key: str,
        arm: str,
        kind: str,
        shown: Sequence[tuple[str, float]],
        latency_ms: float,
        fingerprint: str,
    ) -> str:
        """Record an answer: product ids with their scores, best first. Return the impression's id, for its clicks."""
        products = [Shown(product_id, score) for product_id, score in shown]
        user_hash = hash_user(user_key, self.salt)
        impression = Impression(self.name, arm, user_hash, kind, products, latency_ms, fingerprint)
        return self.log.record_impression(impression)

    def click(self, impression_id: str, product_id: str) -> bool:
        """Record a click; see `EventLog.record_click`."""
        return self.log.record_click(Click(impression_id, product_id))
