"""Assignment of users to the arms of an online experiment, and the experiment that a service runs.

A user is assigned by hash, to the same arm on every visit. Only a salted hash of a user key leaves this module.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mim_lightning.online.events import AskedQuery, Click, Impression, Shown

if TYPE_CHECKING:
    from mim_lightning.online.event_log import EventLog

SALT_VARIABLE, SALT_FILE_VARIABLE = "MIM_USER_SALT", "MIM_USER_SALT_FILE"
MIN_SALT_LENGTH = 16  # characters: a shorter salt can be found by brute force, and user keys with it


@dataclass(frozen=True)
class Arm:
    """One of the variants that an experiment compares.

    `traffic_fraction` is relative to those of the other arms, of any sum; 0 for an arm that gets no users.
    """

    name: str
    traffic_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("arm: needs a name")
        if isinstance(self.traffic_fraction, bool) or not isinstance(self.traffic_fraction, int | float):
            raise ValueError(f"arm '{self.name}': traffic_fraction={self.traffic_fraction}: must be a number")
        if not (math.isfinite(self.traffic_fraction) and self.traffic_fraction >= 0):
            raise ValueError(f"arm '{self.name}': traffic_fraction={self.traffic_fraction}: must be 0 or more")


def validate_arms(arms: Mapping[str, Arm]) -> None:
    """Raise ValueError unless at least one arm gets users and each arm is listed under its own name."""
    for name, arm in arms.items():
        if name != arm.name:
            raise ValueError(f"arm '{arm.name}': is listed under the name '{name}'")
    if not any(arm.traffic_fraction > 0 for arm in arms.values()):
        raise ValueError(
            "arms: " + ("none has a traffic_fraction above 0" if arms else "there are none; give at least one")
        )


def assign(user_key: str, arms: Mapping[str, Arm], experiment: str, salt: str) -> Arm:
    """Return the arm of a user, by hash alone: nothing is stored, and every process returns the same arm.

    Each arm draws a waiting time -ln(u) / traffic_fraction from the hash of user, experiment and arm; the shortest
    wins. So arms are chosen in proportion to their traffic fractions, their order does not matter, and a change moves
    as few users as possible.

    What changes assignments: another salt or experiment name (all users are assigned again, independently); another
    name of an arm; an added arm or a larger fraction (users move to that arm, from all others alike); a removed arm
    or a smaller fraction (its users move to the others). Changing fractions in a running experiment mixes users of
    before and after: start a new experiment instead.

    Args:
        user_key: what the service identifies a user by; case-sensitive.
        arms: by name.
        experiment: name of the experiment.
        salt: from `read_salt()`.

    Raises:
        ValueError: no arm gets users, the key or experiment is empty, or the salt is too short.

    Source: rendezvous hashing (Thaler and Ravishankar 1998) with weights (Schindelhauer and Schomaker 2005).
    """
    validate_arms(arms)
    if not experiment:
        raise ValueError("experiment: needs a name")
    _validate_user_key(user_key)

    def waiting_time(name: str) -> float:
        number = int.from_bytes(_digest(salt, b"arm", 8, user_key, experiment, name), "big")
        uniform = ((number >> 12) + 0.5) / 2**52  # above 0 and below 1, exactly
        return -math.log(uniform) / arms[name].traffic_fraction

    return arms[min(sorted(name for name, arm in arms.items() if arm.traffic_fraction > 0), key=waiting_time)]


def hash_user(user_key: str, salt: str) -> str:
    """Return the 32 hexadecimal characters that identify a user: all that is ever stored of one.

    Keyed blake2b: without the salt the hash can neither be computed nor reversed by trying keys. If the salt is lost,
    rows can no longer be matched to users; another salt makes every user a new one, which a running experiment does
    not survive.

    Raises:
        ValueError: the key is empty or the salt is too short.
    """
    _validate_user_key(user_key)
    return _digest(salt, b"user", 16, user_key).hex()


def read_salt() -> str:
    """Return the salt from MIM_USER_SALT, or from the file named by MIM_USER_SALT_FILE; it is never stored.

    Raises:
        ValueError: neither is set, the file cannot be read, or the salt is too short.
    """
    salt, path = os.environ.get(SALT_VARIABLE), os.environ.get(SALT_FILE_VARIABLE)
    if salt is None and path is None:
        raise ValueError(
            f"{SALT_VARIABLE}: is not set; give {MIN_SALT_LENGTH} or more random characters (openssl rand -hex 32), "
            f"there or in a file that {SALT_FILE_VARIABLE} names"
        )
    if salt is None:
        assert path is not None
        try:
            salt = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{SALT_FILE_VARIABLE}={path}: cannot be read: {error}") from error
    _validate_salt(salt)
    return salt


@dataclass(frozen=True)
class Experiment:
    """A running experiment: assigns users to arms, and records what they saw and clicked.

    `salt` comes from `read_salt()`. What users ask is recorded with `records_queries` alone.
    """

    name: str
    arms: Mapping[str, Arm]
    salt: str
    log: EventLog
    records_queries: bool = False

    def arm_of(self, user_key: str) -> str:
        """Return the name of a user's arm, the same on every visit."""
        return assign(user_key, self.arms, self.name, self.salt).name

    def record(
        self,
        user_key: str,
        arm: str,
        kind: str,
        shown: Sequence[tuple[str, float]],
        latency_ms: float,
        fingerprint: str,
        asked: AskedQuery | None = None,
    ) -> str:
        """Record an answer: product ids with their scores, best first. Return the impression's id, for its clicks."""
        products = [Shown(product_id, score) for product_id, score in shown]
        user_hash = hash_user(user_key, self.salt)
        impression = Impression(self.name, arm, user_hash, kind, products, latency_ms, fingerprint, asked)
        return self.log.record_impression(impression)

    def asked(self, parts: Sequence[str], query_id: str | None, text: str | None, photo: str | None) -> AskedQuery:
        """Return what is recorded of a query.

        Args:
            parts: all that makes the query; without a `query_id` their salted hash is one, so that who has the log
                cannot try photos or texts.
        """
        return AskedQuery(query_id or _digest(self.salt, b"query", 16, *parts).hex(), text, photo)

    def click(self, impression_id: str, product_id: str) -> bool:
        """Record a click; see `EventLog.record_click`."""
        return self.log.record_click(Click(impression_id, product_id))


def _digest(salt: str, purpose: bytes, size: int, *parts: str) -> bytes:
    _validate_salt(salt)
    key = hashlib.blake2b(salt.encode()).digest()  # a key has 64 bytes at most, a salt any number
    digest = hashlib.blake2b(key=key, digest_size=size, person=purpose)
    for part in parts:
        encoded = part.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)  # the length separates ("ab", "c") from ("a", "bc")
    return digest.digest()


def _validate_salt(salt: str) -> None:
    if len(salt) < MIN_SALT_LENGTH:
        raise ValueError(f"salt: has {len(salt)} characters; needs {MIN_SALT_LENGTH} or more")


def _validate_user_key(user_key: str) -> None:
    if not user_key:
        raise ValueError("user key: is empty")
