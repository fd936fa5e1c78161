"""Boxes that a detector of torchvision suggests; its weights here are random, so only their form can be checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision is not installed")

from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from mim_lightning.config import compose
from mim_lightning.inference.detector import TorchvisionDetector
from mim_lightning.serve import serve

MODEL = "ssdlite320_mobilenet_v3_large"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    path = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save(network.state_dict(), path)
    return path


def test_boxes_are_fractions_of_the_image_and_best_first(weights: Path) -> None:
    detector = TorchvisionDetector(MODEL, weights, num_classes=2, max_boxes=3, min_score=0.1)
    found = detector.suggest(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))
    assert len(found) == 3 and [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        left, top, right, bottom = one.box
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1 and one.label is None
    assert not TorchvisionDetector(MODEL, weights, num_classes=2, min_score=1.0).suggest(
        np.zeros((60, 90, 3), np.uint8)
    )


def test_scores_that_are_no_numbers_suggest_nothing(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, nan = TorchvisionDetector(MODEL, weights, num_classes=2), float("nan")
    boxes = torch.tensor([[0.0, 0, 9, 9], [nan, 0, 9, 9], [0, 0, 5, 5]])
    found = {"boxes": boxes, "scores": torch.tensor([nan, 0.9, 0.5]), "labels": torch.ones(3).long()}
    monkeypatch.setattr(detector, "_network", lambda images: [found])
    assert [one.box for one in detector.suggest(np.zeros((10, 10, 3), np.uint8))] == [(0, 0, 0.5, 0.5)]


def test_what_is_missing_is_named(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^detector\.model=resnet18: choose one of .*fasterrcnn"):
        TorchvisionDetector("resnet18", weights)
    for missing in (None, tmp_path / "none.pth"):
        with pytest.raises(ValueError, match=rf"^detector\.weights={missing}: no such file; .*{MODEL}.*https://"):
            TorchvisionDetector(MODEL, missing)
    for options, message in (
        ({"num_classes": 1}, r"num_classes=1: give at least 2"),
        ({"max_boxes": 0}, r"max_boxes=0: give at least 1"),
        ({"min_score": float("nan")}, r"min_score=nan: give a number from 0 to 1"),
        ({"device": "gpu"}, r"device=gpu: cannot be used here .*; give auto, cpu or cuda"),
    ):
        with pytest.raises(ValueError, match=rf"^detector\.{message}"):
            TorchvisionDetector(MODEL, weights, **options)
    index = tmp_path / "index"
    index.mkdir()
    (index / "card.json").touch()
    with pytest.raises(ValueError, match=r"^detector=x: give a mapping or null"):
        serve(compose("serve", [f"index={index}", "detector=x"]))
    with pytest.raises(ValueError, match=rf"^{index}"):  # no index; no detector is no error
        serve(compose("serve", [f"index={index}", "detector=null"]))
    with pytest.raises(ValueError, match=f"no weights of {MODEL} with detector.num_classes=3"):
        TorchvisionDetector(MODEL, weights, num_classes=3)
