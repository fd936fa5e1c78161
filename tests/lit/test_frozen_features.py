"""Features of a frozen encoder are kept apart by what else they depend on."""

from types import SimpleNamespace
from typing import Any

import torch

from mim_lightning.lit.frozen_features import _Pass


def test_features_of_another_matmul_precision_are_others() -> None:
    trainer: Any = SimpleNamespace(
        precision="32-true", strategy=SimpleNamespace(root_device=torch.device("cpu")), datamodule=None
    )
    task = _Pass(trainer, trainer.datamodule, "query_image", ["query_image"], torch.nn.Identity())  # type: ignore[arg-type]
    before, conditions = torch.get_float32_matmul_precision(), task._conditions()
    try:
        torch.set_float32_matmul_precision("medium")
        assert task._conditions() != conditions
    finally:
        torch.set_float32_matmul_precision(before)
