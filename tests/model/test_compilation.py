"""Compiled and checkpointed training is the same training: the same run, weights, averages and results."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from mim_lightning.config import build_matcher, compose
from mim_lightning.model.compilation import compile_encoders
from mim_lightning.run import Run
from tests.flow.entry_points import timeless, weights
from tests.model.test_matcher import four_towers, make_batch
from tests.shop import small

SWITCHES = [
    "model.compile=eager",  # traced by the compiler, computed as ever: bit for bit the same
    "reuse_memory=false",
]
CHECKPOINTED = [f"model.towers.{name}.activation_checkpointing=true" for name in ("query_image", "product_text")]


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise ValueError("stopped")


@pytest.mark.slow
def test_a_run_goes_on_compiled_and_ends_as_it_would_have(shop: Path, fit: Callable[..., Run]) -> None:
    plain = fit("callbacks=ema")
    parts = ["callbacks=ema", f"paths.runs={shop}/switched", "callbacks.last.every_n_train_steps=1"]
    with pytest.raises(ValueError, match="stopped"):
        fit(*parts, *CHECKPOINTED, "callbacks.progress_bar={_target_: tests.model.test_compilation.StopAt, step: 5}")
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    switched = fit(*parts, *SWITCHES)
    assert counters["unique_graphs"] >= 2
    assert switched.run_id == plain.run_id and timeless(switched) == timeless(plain)
    for name in ("last", "best"):
        found, expected = weights(switched, name), weights(plain, name)
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_an_encoder_is_compiled_once_for_all_sizes_in_training_alone() -> None:
    matcher, batch = four_towers(), make_batch()
    expected = matcher(batch).vectors
    compile_encoders(matcher, "eager")
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    assert all(torch.equal(vectors, expected[name]) for name, vectors in matcher(batch).vectors.items())
    assert not counters
    tower, tokenize = matcher.train().tower("product_text"), matcher.tower("product_text").encoder.spec.tokenize
    for texts in (["red bag", "blue mug"], ["red bag"] * 3, ["a b c d e", "f", "g", "h"]):
        tower(tokenize(texts))
    assert counters["unique_graphs"] == 1
    assert deepcopy(matcher).state_dict().keys() == matcher.state_dict().keys() == four_towers().state_dict().keys()
    with pytest.raises(ValueError, match=r"model\.compile=inductr: give true, false or one of .*inductor"):
        compile_encoders(matcher, "inductr")
    matcher.tower("product_text").activation_checkpointing = True
    with pytest.raises(ValueError, match=r"model\.compile=eager: with model\.towers\.product_text\.activation_check"):
        compile_encoders(matcher, "eager")


@pytest.mark.slow
def test_the_default_backend_gives_gradients_equal_to_rounding(shop: Path) -> None:
    gradients = []
    for backend in (False, True):
        torch.manual_seed(0)
        matcher = build_matcher(compose("train", small(shop)))
        compile_encoders(matcher, backend)
        vectors = matcher(make_batch()).vectors
        (vectors["query_image"] * vectors["product_text"]).sum().backward()
        gradients.append({name: p.grad for name, p in matcher.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)
