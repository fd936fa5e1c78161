"""The rows that an evaluation embeds, and their batches."""

from __future__ import annotations

import numpy as np
import pytest

from mim_lightning.data.sampling.evaluated_rows import Draw, EvaluatedRows


def test_a_set_without_a_row_in_the_sample_has_no_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [(range(7), None), (range(9), np.array([1, 4, 8])), (range(9), np.empty(0, dtype=np.int64))]
    monkeypatch.setattr(EvaluatedRows, "parts", lambda _: sets)
    assert EvaluatedRows(list, 2).last_batches() == [6, 8, -1]


def test_one_process_draws_the_sample_of_a_gallery_and_the_others_are_given_it() -> None:
    drawn, asked = [np.array([1, 3])], []

    def ask_another(draw: Draw) -> list[np.ndarray]:
        asked.append(draw)
        return drawn

    rows = EvaluatedRows(lambda: pytest.fail("reads the sets"), 2)
    for num_distractors, expected in ((None, None), (3, drawn), (3, drawn), (None, None)):
        rows.sample_gallery(num_distractors, 0, ask_another)
        assert rows.gallery_numbers is expected
    assert len(asked) == 1, "drawn once"
