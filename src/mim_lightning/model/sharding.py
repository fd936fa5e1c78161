"""Sharding of a matcher by FSDP2: weights, gradients and optimizer state are divided among the processes.

Each block of an encoder is gathered for its own forward and backward pass, and freed again; what comes before and
behind the blocks is gathered with its tower. Tied towers share one tower, which is sharded once. Parameters of fusions
and scalars stay whole on every process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate

from mim_lightning.encoders.interface import Encoder
from mim_lightning.model.adapters import called_modules
from mim_lightning.model.matcher import Matcher


def shard_matcher(matcher: Matcher, mesh: DeviceMesh, gather_dtype: torch.dtype | None = None) -> None:
    """Shard the weights of all towers over a mesh, in place.

    Args:
        matcher: with the same weights on every process.
        mesh: of one dimension, all processes.
        gather_dtype: in which weights are gathered and computed with; None: their own. Gradients are summed in float32
            then.
    """
    reduce_dtype = None if gather_dtype is None else torch.float32
    policy = MixedPrecisionPolicy(gather_dtype, reduce_dtype, cast_forward_inputs=False)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "ignored_params": set(whole_parameters(matcher))}
    for name in matcher.towers:
        tower = matcher.tower(name)
        if getattr(tower.encoder, "length_buckets", 1) > 1:
            # every process has to call a block equally often
            tower.encoder.length_buckets = 1  # type: ignore[assignment]
        for unit in find_blocks(tower.encoder):
            fully_shard(tower.encoder.get_submodule(unit), **options)
        # every tower a root of its own, whose backward pass may lie within another one (`model.gradient_cache`); what
        # is outside of its blocks is freed after the forward pass too, which is not the default of a root
        fully_shard(tower, reshard_after_forward=True, **options)


def find_blocks(encoder: Encoder) -> list[str]:
    """Return the names of an encoder's modules that are its layers: blocks of a transformer, stages of a network."""
    _, *layers, _ = encoder.layers()
    sizes = {
        name: frozenset(f"{name}.{parameter}" for parameter, _ in module.named_parameters())
        for name, module in encoder.named_modules()
        if name
    }
    found: list[str] = []
    for layer in layers:
        wanted = set(layer)
        for name, parameters in sizes.items():  # from the outside to the inside
            if parameters and parameters <= wanted:
                found.append(name)
                wanted -= parameters
    # others lend their weights to a module around them, and would not be gathered
    called = called_modules(encoder)
    return [name for name in found if name in called]


def whole_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that every process keeps whole: of fusions, and single numbers."""
    fusions = module.fusions.values() if isinstance(module, Matcher) else ()
    of_fusions = {id(parameter) for fusion in fusions for parameter in fusion.parameters()}
    return [parameter for parameter in module.parameters() if id(parameter) in of_fusions or parameter.ndim == 0]


def is_sharded(module: nn.Module) -> bool:
    """Return whether `shard_matcher` has sharded a module."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def gather_weights(module: nn.Module) -> None:
    """Gather the weights of a module until `release_weights`: its forward passes need no other process meanwhile.

    Every process calls it; passes may then differ in number. Weights that change have to change before.
    """
    for part in _units(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def release_weights(module: nn.Module) -> None:
    """Free what `gather_weights` gathered; calls nothing of other processes."""
    for part in _units(module):
        part.reshard()
        part.set_reshard_after_forward(True, recurse=False)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Keep the weights of whole towers gathered, without gradients."""
    gather_weights(module)
    try:
        yield
    finally:
        release_weights(module)


def _units(module: nn.Module) -> list[FSDPModule]:
    units: list[FSDPModule] = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for unit in units:  # a tower before its blocks, which otherwise know their root only after its first pass
        unit._get_fsdp_state()._lazy_init()
    return units


def is_part(tensor: Tensor) -> bool:
    """Return whether each process has its part of a tensor, or a copy of it that is known to be one."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor, for which every process calls it; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, placed as another one is; as it is where that one is whole."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    mesh, (placement,) = like.device_mesh, like.placements
    part = tensor
    if not isinstance(placement, Replicate):
        parts = tensor.chunk(mesh.size(), 0)
        rank = mesh.get_local_rank()
        part = parts[rank] if rank < len(parts) else tensor[:0]
    return DTensor.from_local(
        part.to(like.device, copy=True),
        mesh,
        [placement],
        run_check=False,
        shape=tensor.shape,
        stride=tuple(tensor.contiguous().stride()),
    )


def shard_state_like(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return this process's part of a state dict, placed as the parameters of a module are."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {name: shard_like(value, parameters.get(name, value)) for name, value in state.items()}
