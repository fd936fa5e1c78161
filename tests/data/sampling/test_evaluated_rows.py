"""The rows that an evaluation embeds, and their batches."""

from __future__ import annotations

import numpy as np
import pytest

from mim_lightning.data.sampling.evaluated_rows import EvaluatedRows


def test_a_set_without_a_row_in_the_sample_has_no_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [(range(7), None), (range(9), np.array([1, 4, 8])), (range(9), np.empty(0, dtype=np.int64))]
    monkeypatch.setattr(EvaluatedRows, "parts", lambda _: sets)
    assert EvaluatedRows(list, 2).last_batches() == [6, 8, -1]
