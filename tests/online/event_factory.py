"""Impressions made in one line."""

from __future__ import annotations

from typing import Any

from mim_lightning.online.assignment import hash_user
from mim_lightning.online.events import Impression, Shown

SALT = "a salt for the tests"


def impression(user: str = "ann", arm: str = "control", products: str = "abc", **rest: Any) -> Impression:
    """Return an impression of a user; each letter of `products` is one, the first on top."""
    shown = [Shown(name, 1 - position / 10) for position, name in enumerate(products)]
    facts = {"experiment": "towers", "kind": "image", "latency_ms": 12.5, "fingerprint": "f1"} | rest
    return Impression(arm=arm, user_hash=hash_user(user, SALT), shown=shown, **facts)
