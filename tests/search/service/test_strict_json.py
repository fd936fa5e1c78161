"""JSON of clients is parsed or refused, in time that grows with its size."""

from __future__ import annotations

import json
import time

import pytest

from mim_lightning.search.service.request_limits import RefusedError
from mim_lightning.search.service.strict_json import read_object


def test_a_duplicate_key_among_thousands_is_found_quickly() -> None:
    body = json.dumps({f"{number:x}": 1 for number in range(40_000)})
    started = time.perf_counter()
    with pytest.raises(RefusedError, match="duplicate key '9c3f'"):
        read_object("body", f'{body[:-1]}, "9c3f": 1}}')
    assert time.perf_counter() - started < 5  # each compared with each other took 15 s
