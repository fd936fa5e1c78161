"""The module's own business: towers that nothing teaches are frozen."""

from mim_lightning.lit.module import freeze_unused
from mim_lightning.losses.contrastive import info_nce
from mim_lightning.losses.objective import Objective, Pair
from mim_lightning.model.matcher import Matcher
from tests.model.test_matcher import image_tower, text_tower


def test_a_tower_without_pairs_is_frozen_and_one_reached_by_a_fusion_is_not() -> None:
    towers = {"query_image": image_tower(), "product_text": text_tower(), "query_text": text_tower()}
    matcher = Matcher(
        towers, {"product_image": "query_image"}, {"product": {"product_image": 1.0, "product_text": 1.0}}
    )
    objective = Objective({"a": Pair("query_image", "product")}, info_nce, matcher.names)
    assert freeze_unused(matcher, objective) == ("query_text",)
    assert not any(p.requires_grad for p in matcher.tower("query_text").parameters())
    assert all(p.requires_grad for p in matcher.tower("product_text").parameters())
