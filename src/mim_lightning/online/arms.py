"""Named arms of an online experiment, and which of them a user sees.

A user key and the arms come in, one arm goes out, the same one on every visit; the service calls it for each search.
Of a user nothing leaves this file but a salted hash.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SALT_VARIABLE, SALT_FILE_VARIABLE = "MIM_USER_SALT", "MIM_USER_SALT_FILE"
MIN_SALT = 16  # characters: a shorter one could be found by trying, and with it the user keys


@dataclass(frozen=True)
class Arm:
    """One of the variants that an experiment compares.

    `share` is relative to those of the other arms, 0 for an arm that takes no users; `settings` is what the service
    makes the arm of (index, fusion weights ...) and is read by nobody here.
    """

    name: str
    share: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("arm: needs a name")
        if not (math.isfinite(self.share) and self.share >= 0):
            raise ValueError(f"arm '{self.name}': share={self.share}: must be 0 or more")


def build_arms(config: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Arm]:
    """Return arms by name from a config such as {a: {share: 1, index: ...}}; all but `share` becomes `settings`.

    An entry that is null was switched off.

    Raises:
        ValueError: no arm that takes users, or a share that is no share.
    """
    arms = {}
    for name, entry in config.items():
        if entry is not None:
            settings = {key: value for key, value in entry.items() if key != "share"}
            arms[name] = Arm(name, _number(name, entry.get("share", 1.0)), settings)
    check_arms(arms)
    return arms


def check_arms(arms: Mapping[str, Arm]) -> None:
    """Raise ValueError unless some arm takes users and each stands under its own name."""
    for name, arm in arms.items():
        if name != arm.name:
            raise ValueError(f"arm '{arm.name}': stands under the name '{name}'")
    if not any(arm.share > 0 for arm in arms.values()):
        raise ValueError("arms: " + ("none has a share above 0" if arms else "there are none; give at least one"))


def assign(user_key: str, arms: Mapping[str, Arm], experiment: str, salt: str) -> Arm:
    """Return the arm that a user sees, by hash alone: nothing is stored and every process says the same.

    Each arm draws a waiting time -ln(u) / share from the hash of user, experiment and arm; the shortest wins. So arms
    are chosen in proportion to their shares, their order does not matter, and a change moves as few users as can be.

    What changes assignments: another salt or experiment name (all users are drawn anew, independently of before);
    a new name of an arm; an arm added or a share raised (users move to that arm, from all others alike, and from no
    arm to a third); an arm removed or a share lowered (its users move to the others). Changed shares in a running
    experiment mix users of before and after: start a new experiment instead. `settings` change nothing.

    Args:
        user_key: what the service knows a user by; "a" and "A" are two users.
        arms: by name.
        experiment: its name.
        salt: `read_salt()`.

    Raises:
        ValueError: no arm takes users, an empty key or experiment, a short salt.

    Source: rendezvous hashing (Thaler and Ravishankar 1998) with weights (Schindelhauer and Schomaker 2005).
    """
    check_arms(arms)
    if not experiment:
        raise ValueError("experiment: needs a name")
    _check_user_key(user_key)

    def waiting_time(name: str) -> float:
        number = int.from_bytes(_digest(salt, b"arm", 8, user_key, experiment, name), "big")
        uniform = ((number >> 12) + 0.5) / 2**52  # above 0 and below 1, exactly
        return -math.log(uniform) / arms[name].share

    return arms[min(sorted(name for name, arm in arms.items() if arm.share > 0), key=waiting_time)]


def hash_user(user_key: str, salt: str) -> str:
    """Return the 32 hexadecimal characters that stand for a user: the only thing ever stored of one.

    Keyed blake2b: without the salt it can be neither computed nor reversed by trying keys. Whoever loses the salt can
    no longer tell which rows are whose; whoever changes it makes a new user of everyone, which a running experiment
    does not survive.

    Raises:
        ValueError: an empty key, a short salt.
    """
    _check_user_key(user_key)
    return _digest(salt, b"user", 16, user_key).hex()


def read_salt() -> str:
    """Return the salt from MIM_USER_SALT, or from the file that MIM_USER_SALT_FILE names; it is never stored.

    Raises:
        ValueError: neither is set, the file cannot be read, or the salt is short.
    """
    salt, path = os.environ.get(SALT_VARIABLE), os.environ.get(SALT_FILE_VARIABLE)
    if salt is None and path is None:
        raise ValueError(
            f"{SALT_VARIABLE}: is not set; give {MIN_SALT} or more random characters (openssl rand -hex 32), there or "
            f"in a file that {SALT_FILE_VARIABLE} names"
        )
    if salt is None:
        assert path is not None
        try:
            salt = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{SALT_FILE_VARIABLE}={path}: cannot be read: {error}") from error
    _check_salt(salt)
    return salt


def _digest(salt: str, purpose: bytes, size: int, *parts: str) -> bytes:
    _check_salt(salt)
    key = hashlib.blake2b(salt.encode()).digest()  # a key may have 64 bytes, a salt any number
    hashed = hashlib.blake2b(key=key, digest_size=size, person=purpose)
    for part in parts:
        encoded = part.encode(errors="surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "big") + encoded)  # or ("ab", "c") were ("a", "bc")
    return hashed.digest()


def _check_salt(salt: str) -> None:
    if len(salt) < MIN_SALT:
        raise ValueError(f"salt: has {len(salt)} characters; needs {MIN_SALT} or more")


def _check_user_key(user_key: str) -> None:
    if not user_key:
        raise ValueError("user key: is empty")


def _number(name: str, share: Any) -> float:
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise ValueError(f"arm '{name}': share={share}: must be a number")
    return float(share)
