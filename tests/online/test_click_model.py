"""The click model's rates are those of its clicks, and a planted lift is the one asked for."""

import numpy as np
import pytest

from mim_lightning.online.click_model import ClickModel, plant_lift
from mim_lightning.online.simulator import RELEVANCE

MODEL = ClickModel()


def test_rates_are_those_of_clicks_that_are_drawn() -> None:
    rng = np.random.default_rng(0)
    for level, eagerness in enumerate(MODEL.eagerness):
        is_relevant = rng.random((20_000, 10)) < np.asarray(RELEVANCE)
        chances = MODEL.click_chances(is_relevant, np.full(20_000, eagerness))
        drawn = (rng.random(chances.shape) < chances).any(axis=1).mean()
        rate = MODEL.click_rates(RELEVANCE)[level]
        assert drawn == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 20_000))


def test_a_rate_by_hand() -> None:
    model = ClickModel((1.0, 0.5), relevant_liking=0.5, other_liking=0.0, eagerness=(0.5, 1.0))
    assert model.click_rates((1.0, 0.4)) == pytest.approx([1 - 0.75 * 0.95, 1 - 0.5 * 0.9])
    assert model.click_rate((1.0, 0.4)) == pytest.approx((0.2875 + 0.55) / 2)


@pytest.mark.parametrize("lift", [0.0495, -0.2, 0.0])
def test_a_planted_lift_is_the_one_asked_for(lift: float) -> None:
    planted = plant_lift(MODEL, RELEVANCE, lift)
    assert MODEL.click_rate(planted) / MODEL.click_rate(RELEVANCE) - 1 == pytest.approx(lift, abs=1e-9)
    assert all(0 <= share <= 1 for share in planted)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"lift=3.0: no ranking reaches it"):
        plant_lift(MODEL, RELEVANCE, 3.0)
    with pytest.raises(ValueError, match="relevance: needs 10 chances"):
        MODEL.click_rate((0.5, 0.5))
    with pytest.raises(ValueError, match="click model: liking"):
        ClickModel(relevant_liking=0.9)
    with pytest.raises(ValueError, match="click model: examination"):
        ClickModel(examination=(1.2,))
    with pytest.raises(ValueError, match="queries_per_user"):
        ClickModel(queries_per_user=0.5)
