"""Checkpointed towers learn what others learn: weights, gradients and batch statistics, in one process or in DDP's."""

from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from mim_lightning.encoders import TimmImage, TinyText
from mim_lightning.model.activation_checkpointing import restore_statistics, start_checkpointing
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from tests.contracts.encoder import random_images
from tests.encoders.image_text_encoder import ImageTextEncoder


def make_matcher(is_checkpointed: bool) -> Matcher:
    torch.manual_seed(0)
    image = TimmImage("mobilenetv2_035", image_size=32, drop_path_rate=0.5)
    towers = {
        "query_image": Tower(image, 8, activation_checkpointing=is_checkpointed),
        "product_text": Tower(TinyText(8, 50, 32, 1), 8, activation_checkpointing=is_checkpointed),
    }
    matcher = Matcher(towers, {}, {})
    start_checkpointing(matcher)
    return matcher


@pytest.mark.parametrize("is_ddp", [False, True])
def test_gradients_and_statistics_are_equal(tmp_path: Path, is_ddp: bool) -> None:
    states = []
    if is_ddp:
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for is_checkpointed in (False, True):
            matcher = make_matcher(is_checkpointed)
            tower = matcher.tower("query_image")
            module = DistributedDataParallel(tower) if is_ddp else tower
            torch.manual_seed(1)
            for seed in (1, 2):
                vectors = module(random_images(4, (32, 32)) // seed)
                with restore_statistics(matcher):
                    (vectors[0] @ vectors[1]).backward()
            states.append({**tower.state_dict(), **{f"{n}.grad": p.grad for n, p in tower.named_parameters()}})
    finally:
        if is_ddp:
            distributed.destroy_process_group()
    plain, checkpointed = states
    assert all(torch.equal(value, checkpointed[name]) for name, value in plain.items())
    counts = [value for name, value in checkpointed.items() if "num_batches_tracked" in name]
    assert counts and all(count == 2 for count in counts)


def test_an_encoder_that_cannot_is_named() -> None:
    tower = Tower(ImageTextEncoder(), 8, activation_checkpointing=True)
    matcher = Matcher({"query": tower}, {}, {}, {"query": ("query_image", "query_text")})
    with pytest.raises(ValueError, match=r"model\.towers\.query\.activation_checkpointing: encoder ImageTextEncoder"):
        start_checkpointing(matcher)
    frozen = Tower(ImageTextEncoder(), 8, train="frozen", activation_checkpointing=True)
    start_checkpointing(Matcher({"query": frozen}, {}, {}, {"query": ("query_image", "query_text")}))
