"""A query's vector is the weighted sum of its parts, and the parts' contributions add up to the score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mim_lightning.search.query import MAX_WEIGHT, SearchQuery, combine, drop_null_weights, mean_direction


def unit(seed: int, dimension: int = 8) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=dimension).astype(np.float32)
    return vector / np.linalg.norm(vector)


def test_the_sum_is_weighted_and_what_is_not_wanted_is_subtracted() -> None:
    image, text, not_text = unit(0), unit(1), unit(2)
    query = combine(
        {"image": image, "text": text, "not_text": not_text}, {"image": 1.0, "text": 0.5, "not_text": 0.25, "like": 9}
    )
    total = image + 0.5 * text - 0.25 * not_text
    np.testing.assert_allclose(query.vector, total / np.linalg.norm(total), rtol=1e-5)
    assert np.linalg.norm(query.vector) == pytest.approx(1, abs=1e-5)


def test_contributions_add_up_to_the_score() -> None:
    query = combine({"image": unit(0), "not_text": unit(1)}, {"image": 1.0, "not_text": 0.5})
    product = unit(3)
    parts = query.contributions(product)
    assert sum(parts.values()) == pytest.approx(float(query.vector @ product), abs=1e-6)
    assert parts["not_text"] == pytest.approx(-0.5 * float(unit(1) @ product) / query.length, abs=1e-6)


def test_one_part_alone_is_itself_whatever_its_weight() -> None:
    np.testing.assert_allclose(combine({"text": unit(4)}, {"text": 0.3}).vector, unit(4), rtol=1e-5)


@pytest.mark.parametrize(
    ("parts", "weights"),
    [({"image": unit(0)}, {"image": 0.0}), ({"text": unit(1), "not_text": unit(1)}, {"text": 1.0, "not_text": 1.0})],
)
def test_nothing_left_is_an_error(parts: dict[str, np.ndarray], weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="cancel out"):
        combine(parts, weights)


def test_mean_direction_of_several_images() -> None:
    vectors = np.stack([unit(0), unit(1)])
    mean = vectors.mean(0)
    np.testing.assert_allclose(mean_direction(vectors), mean / np.linalg.norm(mean), rtol=1e-6)


def test_the_largest_weights_leave_the_direction() -> None:
    largest = combine({"image": unit(0), "text": unit(1)}, {"image": MAX_WEIGHT, "text": MAX_WEIGHT})
    np.testing.assert_allclose(
        largest.vector, combine({"image": unit(0), "text": unit(1)}, {"image": 1, "text": 1}).vector, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the query is empty"),
        ({"text": "mug", "fields": {"text": "cup"}}, "fields.text: is a part of every query; give text="),
        ({"not_text": "leather"}, "the query is empty"),
        ({"text": "mug", "num_hits": 0}, "k=0: must be at least 1"),
        ({"text": "mug", "box": (0, 0, 1, 1)}, "box: is a part of an image; give image= too"),
        ({"images": (b"",), "box": (0, 0.5, 1, 0.5)}, "box=0,0.5,1,0.5: give left, top, right and bottom"),
        ({"text": "mug", "weights": {"picture": 1.0}}, "weights.picture: no such part; there are image, text"),
        ({"text": "mug", "weights": {"text": -1.0}}, "weights.text=-1.0: must be between 0"),
        ({"text": "mug", "weights": {"text": float("nan")}}, "weights.text=nan"),
        ({"text": "mug", "weights": {"text": 1e19}}, "weights.text=1e.19: must be between 0 and 1,000,000"),
    ],
)
def test_a_faulty_query_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchQuery(**given)


def test_weights_that_are_null_are_the_models() -> None:
    assert drop_null_weights({"image": None, "text": 2.0, "like": 0}) == {"text": 2.0, "like": 0}
