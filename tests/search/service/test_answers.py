"""What a client wrote is quoted to it, and to whoever reads its log, in one harmless line."""

from __future__ import annotations

import json

import pytest

from mim_lightning.search.service.answers import MAX_LENGTH, error_answer


@pytest.mark.parametrize("word", ["a\r\nb", "\x1b[31m", "\u2028", "\u202egpj.exe", "half \ud83d", "x" * 1_000])
def test_an_error_is_one_harmless_line(word: str) -> None:
    line = json.loads(error_answer(422, f"key {word}: no such key").body)["error"]
    assert line.startswith("key ") and line.isprintable() and len(line) <= MAX_LENGTH
