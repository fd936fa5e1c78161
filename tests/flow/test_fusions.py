"""A trained gate, and scores combined after training: evaluation, index and search by their entry points agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mim_lightning.analysis.record import read_record
from mim_lightning.build_index import build_index
from mim_lightning.config import compose
from mim_lightning.evaluate import evaluate
from mim_lightning.model.checkpoint import load_matcher, store_fusions
from mim_lightning.model.fusion import Fusion
from mim_lightning.run import identify
from mim_lightning.search.index.factory import open_index
from mim_lightning.search.query import SearchQuery
from mim_lightning.search.searcher import open_searcher
from mim_lightning.train import train
from tests.shop import small, write_shop

GATE = {"kind": "gate", "center": "running"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder / "shop", num_products=7)
    return folder


@pytest.fixture(scope="module")
def checkpoint(shop: Path) -> Path:
    kinds = [f"model.fusions.{side}.{key}={value}" for side in ("query", "product") for key, value in GATE.items()]
    config = compose("train", small(shop, "model=4tower", "trainer.max_epochs=3", "optim.lr=1e-2", *kinds))
    train(config)
    return identify(config)[0].last_checkpoint


def test_a_gate_and_means_are_trained_and_stored(checkpoint: Path) -> None:
    loaded = load_matcher(checkpoint)
    for fusion in loaded.matcher.fusions.values():
        assert fusion.describe() == {**fusion.weights, **GATE}
        assert int(fusion.num_mean_updates) == torch.load(checkpoint, weights_only=True)["global_step"]
        assert all(fusion.mean_of(part).any() for part in fusion)
        assert any(parameter.any() for name, parameter in fusion.named_parameters() if name.startswith("gate.2"))


def combined(checkpoint: Path) -> Path:
    """Store a product of scores on both sides, with the means that were learned."""
    loaded = load_matcher(checkpoint)
    changed = {}
    for name, fusion in loaded.matcher.fusions.items():
        options = {"kind": "score_product", "center": "measured", "floor": 2.0}
        changed[name] = Fusion(name, {**fusion.weights, **options}, fusion.width)
        changed[name].set_means({part: fusion.mean_of(part) for part in fusion})
    return store_fusions(checkpoint, changed, loaded.fingerprint)


@pytest.mark.parametrize("is_combined", [False, True])
def test_search_finds_what_evaluation_ranks(checkpoint: Path, shop: Path, is_combined: bool, tmp_path: Path) -> None:
    path = combined(checkpoint) if is_combined else checkpoint
    evaluate(compose("evaluate", [f"checkpoint={path}", f"output={tmp_path}/evaluation", "trainer=cpu"]))
    build_index(compose("build_index", [f"checkpoint={path}", f"output={tmp_path}/index", "trainer=cpu"]))
    index = open_index(tmp_path / "index")
    assert index.card.dimension == 16 * (2 if is_combined else 1)
    record = read_record(tmp_path / "evaluation").directions["composed_to_product"]
    searcher = open_searcher(str(tmp_path / "index"), device="cpu")
    for row, product_id in enumerate(record.unit_ids):
        photo = shop / "shop" / f"street{int(product_id)}-0.jpg"
        hits = searcher.search(SearchQuery(images=(photo,), text=record.texts[row], num_hits=7)).hits
        np.testing.assert_allclose([hit.score for hit in hits], record.hit_scores[row], atol=1e-3)
        assert hits[0].product_id == record.hit_ids[row][0]
