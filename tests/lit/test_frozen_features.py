"""Features of a frozen encoder are kept apart by what else they depend on, and found where former versions put them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mim_lightning.encoders import TinyText
from mim_lightning.lit.frozen_features import _Pass
from mim_lightning.model.fingerprint import encoder_fingerprint


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


def test_the_folder_of_a_former_version_goes_on(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(precision="32-true", strategy=SimpleNamespace(root_device=torch.device("cpu")))
    encoder = TinyText(8)
    task = _Pass(trainer, None, "query_text", ["query_text"], encoder)  # type: ignore[arg-type]
    current = task._folder(tmp_path)
    assert current.name.startswith("xxh3-")
    (tmp_path / "0123456789abcdef").mkdir()
    assert task._folder(tmp_path) == current  # of another encoder
    former = tmp_path / encoder_fingerprint(encoder, task._conditions(), like="0123456789abcdef")
    assert len(former.name) == 16
    former.mkdir()
    assert task._folder(tmp_path) == former
