"""One callable per tower of a loaded model, whatever runtime computes behind it; safe to call from many threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mim_lightning.model.matcher import Matcher
from mim_lightning.model.tower import Tower
from mim_lightning.types import TowerInput, TowerSpec, map_tensors


class TowerEncoder(Protocol):
    """Turns prepared inputs into embeddings."""

    @property
    def spec(self) -> TowerSpec: ...

    def __call__(self, inputs: TowerInput) -> Tensor:
        """Return (n, D) float32 vectors of unit length, on the CPU."""
        ...


@dataclass(frozen=True)
class TorchTower:
    """A tower on its device, computing in `dtype` where that is not float32."""

    tower: Tower
    spec: TowerSpec
    device: torch.device
    dtype: torch.dtype

    def __call__(self, inputs: TowerInput) -> Tensor:
        moved: TowerInput = map_tensors(inputs, lambda tensor: tensor.to(self.device))
        is_half = self.dtype != torch.float32
        # both contexts belong to the calling thread
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype if is_half else None, is_half):
            return self.tower(moved).float().cpu()


def torch_towers(matcher: Matcher, device: torch.device, dtype: torch.dtype) -> dict[str, TowerEncoder]:
    """Return the towers of a matcher by name, moved to the device and in evaluation mode."""
    matcher.requires_grad_(False).eval().to(device)
    return {name: TorchTower(matcher.tower(name), spec, device, dtype) for name, spec in matcher.input_specs().items()}
