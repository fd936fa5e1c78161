"""No test of the encoders reaches the hub: a file that is not on the machine is an error at once."""

from __future__ import annotations

import os

import pytest

# Before any vendor is imported here: huggingface_hub reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

# The contract's asserts should show their values like those of a test file.
pytest.register_assert_rewrite("tests.contracts.encoder")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set offline mode also where another test has imported huggingface_hub before: it would retry for minutes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
