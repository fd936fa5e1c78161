"""The module's own business: towers that nothing teaches are frozen, gradients of fused optimizers clipped."""

from functools import partial
from types import SimpleNamespace

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.optim.lr_scheduler import LambdaLR

from mim_lightning.lit.module import MatchModule, freeze_unused
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


def test_gradients_are_clipped_for_a_fused_optimizer_in_mixed_precision() -> None:
    matcher = Matcher({"query_image": image_tower(), "product_text": text_tower()}, {}, {})
    objective = Objective({"a": Pair("query_image", "product_text")}, info_nce, matcher.names)
    fused = partial(torch.optim.AdamW, fused=True)
    module = MatchModule(matcher, objective, fused, schedule=lambda optimizer, _: LambdaLR(optimizer, float))
    module.trainer = SimpleNamespace(estimated_stepping_batches=1)  # type: ignore[assignment]
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index]
    with torch.no_grad():
        for parameter in matcher.parameters():
            parameter.grad = torch.full_like(parameter, 10.0)
    plugin = MixedPrecision("bf16-mixed", "cpu")
    plugin.clip_gradients(optimizer, 1.0)  # raises for what would unscale gradients itself
    squares = sum(parameter.grad.square().sum() for parameter in matcher.parameters())
    assert 0.99 < squares < 1.01
