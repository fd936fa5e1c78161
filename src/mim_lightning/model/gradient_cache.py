"""Encoding in micro-batches that keeps no activations: each micro-batch is encoded again when its gradient arrives.

GradCache (Gao et al. 2021, arXiv 2101.06983): memory depends on the size of a micro-batch, the loss on the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mim_lightning.model.tower import Tower
from mim_lightning.types import TowerInput, map_tensors


def encode_cached(tower: Tower, parts: Sequence[TowerInput], micro_batch_size: int) -> list[Tensor]:
    """Return a tower's embeddings of each part, (n, D), with the activations of `micro_batch_size` inputs at a time.

    The gradient is that of encoding the same micro-batches with all activations kept: the second pass of a micro-batch
    draws the random numbers of its first, under the same autocast. Random numbers are drawn micro-batch by
    micro-batch, so dropout masks are those of `tower(inputs)` if one micro-batch holds all inputs, and other draws from
    the same distribution if not. Batch normalization in training mode uses the statistics of each micro-batch and
    updates its running statistics once for each, in the first pass; in eval mode it is exact. An encoder without
    trainable parameters encodes once.

    The weights of a sharded tower are gathered for every micro-batch: all processes then encode equally many, those
    with fewer inputs the first one again, without a gradient.

    Args:
        parts: inputs of the towers that share these weights. Each micro-batch has its proportion of every part.
    """
    encoder_trains = any(parameter.requires_grad for parameter in tower.encoder.parameters())
    if isinstance(tower, FSDPModule):
        return _encode_sharded(tower, parts, micro_batch_size, torch.is_grad_enabled() and encoder_trains)
    if not torch.is_grad_enabled() or not encoder_trains:
        batches = MicroBatches(tower.encoder, parts, micro_batch_size)
        with torch.no_grad():
            features = batches.join([tower.encode(batches.inputs(idx)) for idx in range(len(batches))])
        return [tower.project(feature) for feature in features]
    batches = MicroBatches(tower, parts, micro_batch_size)
    parameters = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    return list(_CachedPass.apply(batches, *parameters))


def _encode_sharded(tower: Tower, parts: Sequence[TowerInput], micro_batch_size: int, is_cached: bool) -> list[Tensor]:
    batches = MicroBatches(tower, parts, micro_batch_size)
    device = first_tensor(parts[0]).device
    num_passes = torch.tensor(len(batches), device=device)
    dist.all_reduce(num_passes, dist.ReduceOp.MAX)
    if is_cached:
        return list(
            _ShardedCachedPass.apply(batches, int(num_passes), torch.ones((), device=device, requires_grad=True))
        )
    embeddings = batches.join([tower(batches.inputs(idx)) for idx in range(len(batches))])
    with torch.no_grad():
        _encode_again(batches, int(num_passes) - len(batches))
    return embeddings


def _encode_parts(ctx: Any, batches: MicroBatches) -> list[Any]:
    """Encode each micro-batch without a graph, and keep in `ctx` what its backward pass repeats it with."""
    device = first_tensor(batches.parts[0]).device
    ctx.batches, ctx.conditions, ctx.states = batches, _Conditions(device), []
    outputs = []
    for idx in range(len(batches)):
        ctx.states.append(_RandomState.of(device))
        outputs.append(batches.module(batches.inputs(idx)))
    return outputs


def _encode_again(batches: MicroBatches, num_times: int) -> None:
    """Take part in the passes of other processes, without a gradient; random numbers and statistics stay."""
    state = _RandomState.of(first_tensor(batches.parts[0]).device)
    with keep_statistics(batches.module):
        for _ in range(num_times):
            output = batches.module(batches.inputs(0))
            if torch.is_grad_enabled():
                output.backward(torch.zeros_like(output))
    state.restore()


class MicroBatches:
    """The inputs of a module in micro-batches of equal size, the last one smaller.

    Args:
        parts: each tensor, or each set of tensors, has one row an input.
    """

    def __init__(self, module: nn.Module, parts: Sequence[TowerInput], size: int) -> None:
        self.module, self.parts = module, parts
        lengths = [len(first_tensor(part)) for part in parts]
        # by position within their parts: a micro-batch of one part alone would have the statistics of one domain
        positions = torch.cat([(torch.arange(length) + 0.5) / length for length in lengths])
        owners = torch.arange(len(parts)).repeat_interleave(torch.tensor(lengths))
        owners = owners[positions.argsort(stable=True)]
        self.counts = [owned.bincount(minlength=len(parts)).tolist() for owned in owners.split(size)]
        self.starts = [[0] * len(parts)]
        for counts in self.counts[:-1]:
            self.starts.append([start + count for start, count in zip(self.starts[-1], counts, strict=True)])

    def __len__(self) -> int:
        return len(self.counts)

    def inputs(self, idx: int) -> TowerInput:
        """Return the inputs of a micro-batch, part after part."""
        slices = [
            map_tensors(part, itemgetter(slice(start, start + count)))
            for part, start, count in zip(self.parts, self.starts[idx], self.counts[idx], strict=True)
            if count
        ]
        return slices[0] if len(slices) == 1 else torch.cat(slices)

    def join(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs of all micro-batches by part."""
        split = [output.split(counts) for output, counts in zip(outputs, self.counts, strict=True)]
        return [torch.cat(by_part) for by_part in zip(*split, strict=True)]

    def gradient(self, idx: int, gradients: Sequence[Tensor]) -> Tensor:
        """Return the rows of a micro-batch from the gradients by part."""
        return torch.cat(
            [
                gradient[start : start + count]
                for gradient, start, count in zip(gradients, self.starts[idx], self.counts[idx], strict=True)
            ]
        )


class _CachedPass(torch.autograd.Function):
    """Encodes without graph; its backward encodes again and returns the sum of the gradients of all micro-batches.

    One node for all of them: each parameter gets one gradient a step, which is when DDP may send it.
    """

    @staticmethod
    def forward(ctx: Any, batches: MicroBatches, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.parameters = parameters
        return tuple(batches.join(_encode_parts(ctx, batches)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        batches: MicroBatches = ctx.batches
        sums: list[Tensor | None] = [None] * len(ctx.parameters)
        after = _RandomState.of(ctx.conditions.device)
        with keep_statistics(batches.module), torch.enable_grad():
            for idx, state in enumerate(ctx.states):
                state.restore()
                with ctx.conditions.again():
                    output = batches.module(batches.inputs(idx))
                parts = torch.autograd.grad(output, ctx.parameters, batches.gradient(idx, gradients), allow_unused=True)
                del output  # its graph, before the next one is made
                for number, part in enumerate(parts):
                    total = sums[number]
                    # not in place: two parameters may share one gradient tensor
                    sums[number] = part if total is None else total if part is None else total + part
        after.restore()
        return None, *sums


class _ShardedCachedPass(torch.autograd.Function):
    """The same for a sharded tower, whose own backward pass adds to the gradients of its parts.

    Every micro-batch has a backward pass of its own within this one, after which its gradients are summed over
    processes and only this process's part of them is kept.
    """

    @staticmethod
    def forward(ctx: Any, batches: MicroBatches, num_passes: int, anchor: Tensor) -> tuple[Tensor, ...]:
        ctx.num_more = num_passes - len(batches)
        outputs = _encode_parts(ctx, batches)
        _encode_again(batches, ctx.num_more)
        return tuple(batches.join(outputs))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        batches: MicroBatches = ctx.batches
        after = _RandomState.of(ctx.conditions.device)
        with keep_statistics(batches.module), torch.enable_grad():
            for idx, state in enumerate(ctx.states):
                state.restore()
                with ctx.conditions.again():
                    output = batches.module(batches.inputs(idx))
                output.backward(batches.gradient(idx, gradients))
                del output  # its graph, before the next one is made
            with ctx.conditions.again():
                _encode_again(batches, ctx.num_more)
        after.restore()
        return None, None, None


class _Conditions:
    """What a forward pass depends on besides its inputs: autocast and the default type of floats."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.dtype = device, torch.get_default_dtype()
        self.autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in {"cpu", device.type}
        }
        self.is_cached = torch.is_autocast_cache_enabled()

    @contextmanager
    def again(self) -> Iterator[None]:
        former = torch.get_default_dtype()
        with ExitStack() as stack:
            for kind, (enabled, dtype) in self.autocast.items():
                stack.enter_context(torch.autocast(kind, dtype, enabled, self.is_cached))
            torch.set_default_dtype(self.dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(former)


@dataclass(frozen=True)
class _RandomState:
    """The random generators of the CPU and of one device."""

    device: torch.device
    cpu: Tensor
    own: Tensor | None

    @classmethod
    def of(cls, device: torch.device) -> _RandomState:
        own = None
        if device.type == "mps":
            own = torch.mps.get_rng_state()
        elif device.type != "cpu":
            own = torch.get_device_module(device).get_rng_state(device)
        return cls(device, torch.get_rng_state(), own)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.own is None:
            return
        if self.device.type == "mps":
            torch.mps.set_rng_state(self.own)
        else:
            torch.get_device_module(self.device).set_rng_state(self.own, self.device)


def updating_norms(module: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    """Return the normalizations whose running statistics a forward pass updates."""
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.training and part.track_running_stats
    ]


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Normalize by the statistics of the batch as in training, without updating the running ones."""
    norms = updating_norms(module)
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def first_tensor(value: TowerInput) -> Tensor:
    """Return the first tensor of nested inputs."""
    while not isinstance(value, Tensor):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value
