"""Invalid events are refused when they are created; a user's key is never stored."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from mim_lightning.online.events import Click, Impression, Shown, new_id
from tests.online.event_factory import impression


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"kind": "voice"}, "kind='voice': must be one of image, text, composed"),
        ({"products": "aba"}, "a product appears twice"),
        ({"latency_ms": -1.0}, "latency_ms=-1.0"),
        ({"latency_ms": math.nan}, "latency_ms=nan"),
        ({"experiment": ""}, "experiment: is empty"),
        ({"arm": "a\x00"}, "arm: contains a NUL"),
        ({"fingerprint": ""}, "fingerprint: is empty"),
        ({"impression_id": "1; DROP TABLE clicks"}, "must be one that the event log returned"),
        ({"impression_id": new_id().upper()}, "must be one that the event log returned"),
        ({"time": datetime(2026, 1, 1)}, "needs a time zone"),
    ],
)
def test_an_invalid_impression_is_refused(facts: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        impression(**facts)


@pytest.mark.parametrize("key", ["ann@shop.example", "127.0.0.1", "a" * 31, "A" * 32, "a" * 33, ""])
def test_a_user_key_is_not_accepted_as_hash(key: str) -> None:
    with pytest.raises(ValueError, match="user_hash: must come from hash_user") as caught:
        Impression("towers", "control", key, "image", [], 1.0, "f1")
    assert not key or key not in str(caught.value)


def test_invalid_products_and_clicks_are_refused() -> None:
    for make, expected in (
        (lambda: Shown("", 0.5), "product_id: is empty"),
        (lambda: Shown("a", math.inf), "score=inf"),
        (lambda: Click("no id", "a"), "must be one that the event log returned"),
        (lambda: Click(new_id(), "\x00"), "product_id: contains a NUL"),
        (lambda: Click(new_id(), "a", datetime(2026, 1, 1)), "needs a time zone"),
    ):
        with pytest.raises(ValueError, match=expected):
            make()


def test_an_event_has_a_unique_id_and_its_creation_time() -> None:
    before = datetime.now(UTC)
    one, two = impression(), impression()
    assert one.impression_id != two.impression_id
    assert before <= one.time <= two.time <= datetime.now(UTC)
