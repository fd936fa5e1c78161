"""An embedding pass hands on every shard once, whole, with the vectors that the matcher gives."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mim_lightning.analysis.html.validation_page import write_validation_report
from mim_lightning.config import build, build_matcher, compose
from mim_lightning.data.loading.collate import Collate
from mim_lightning.data.preparation.preparation import prepare_data
from mim_lightning.data_config import build_preparation
from mim_lightning.lit.datamodule import MatchDataModule
from mim_lightning.lit.embed_catalog import embed_catalog
from mim_lightning.lit.module import MatchModule
from mim_lightning.model.matcher import Matcher
from tests.shop import small


@pytest.fixture
def parts(shop: Path) -> tuple[Matcher, MatchDataModule, dict]:
    config = compose("train", small(shop, "data.shards.samples_per_shard=3", "data.eval_batch_size=2"))
    prepare_data(build_preparation(config["data"]), write_validation_report)
    matcher = build_matcher(config).eval()
    return matcher, build(config["data"], specs=matcher.input_specs()), config


def run(parts: tuple[Matcher, MatchDataModule, dict], shard_idxs: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
    matcher, datamodule, config = parts
    options = {**config["trainer"], "precision": "32-true"}
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(shard_idx: int, vectors_ND: Tensor, present_N: Tensor, facts: Iterable[dict]) -> None:
        assert shard_idx not in kept and len([*facts]) == len(vectors_ND)
        kept[shard_idx] = vectors_ND, present_N

    embed_catalog(build(options, logger=False), MatchModule(matcher), datamodule, "product", shard_idxs, keep)
    return kept


def test_every_shard_is_whole(parts: tuple[Matcher, MatchDataModule, dict]) -> None:
    matcher, datamodule, _ = parts
    kept = run(parts, [0, 1, 2])
    shards = datamodule.opened.catalog
    assert sorted(kept) == [0, 1, 2] and [len(kept[idx][0]) for idx in range(3)] == shards.sizes
    specs = {name: spec for name, spec in matcher.input_specs().items() if name.startswith("product")}
    with torch.inference_mode():
        wanted = matcher(Collate(specs)(shards.read(range(len(shards)))))
    torch.testing.assert_close(torch.cat([kept[idx][0] for idx in range(3)]), wanted.vectors["product"])
    assert torch.cat([kept[idx][1] for idx in range(3)]).all()


def test_only_what_is_missing_is_embedded(parts: tuple[Matcher, MatchDataModule, dict]) -> None:
    everything = run(parts, [0, 1, 2])
    again = run(parts, [1])
    assert list(again) == [1]
    torch.testing.assert_close(again[1][0], everything[1][0])
    assert run(parts, []) == {}
