"""The strategy that shards a model over processes by FSDP2: `trainer=fsdp`.

Weights, gradients, optimizer state and averaged weights are divided among all processes, so models fit that one device
cannot hold. Results are those of DDP up to the order of sums, and each resumes the checkpoints of the other, on any
number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from mim_lightning.artifact_paths import is_sharded_checkpoint
from mim_lightning.io.atomic import atomic_write_folder
from mim_lightning.lit.trainer import ask_first
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.sharded_checkpoint import read_sharded, write_sharded
from mim_lightning.model.sharding import (
    gather_weights,
    is_sharded,
    release_weights,
    shard_like,
    shard_matcher,
    shard_state_like,
    whole,
)

SHARDED, WHOLE = "sharded", "whole"
GATHER_DTYPES = {None: None, "bfloat16": torch.bfloat16}
LIVE = "current_model_state"  # of a checkpoint with averaged weights
STATES = ("state_dict", LIVE)  # of a checkpoint: weights by name
OPTIMIZERS = "optimizer_states"


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all processes, with checkpoints that any strategy can resume.

    Args:
        checkpoints: "sharded": a folder, to which each process writes its part; "whole": one file.
        gather_dtype: "bfloat16" halves what blocks take and what processes send each other, and rounds the weights that
            a pass computes with; None: weights as they are, with the results of DDP.
        process_group_backend: None: that of the device.
        timeout: seconds after which a collective, or the wait for the first process, is given up.
    """

    def __init__(
        self,
        checkpoints: str = SHARDED,
        gather_dtype: str | None = None,
        process_group_backend: str | None = None,
        timeout: float | timedelta = default_pg_timeout,
    ) -> None:
        if checkpoints not in (SHARDED, WHOLE):
            raise ValueError(f"trainer.strategy.checkpoints={checkpoints}: give {SHARDED} or {WHOLE}")
        if gather_dtype not in GATHER_DTYPES:
            raise ValueError(f"trainer.strategy.gather_dtype={gather_dtype}: give bfloat16 or null")
        if not isinstance(timeout, timedelta):
            if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
                raise ValueError(f"trainer.strategy.timeout={timeout}: give seconds, above 0")
            timeout = timedelta(seconds=timeout)
        super().__init__(
            save_distributed_checkpoint=checkpoints == SHARDED,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._gather_dtype = GATHER_DTYPES[gather_dtype]
        self._replicas: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by id of the whole parameter

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._setup_distributed()
        if self._device_mesh is None:
            self._device_mesh = init_device_mesh(
                self.root_device.type, (self.world_size,), mesh_dim_names=("data_parallel",)
            )

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def shard(self, module: LightningModule) -> None:
        """Shard the matcher of a module that is to be trained, once; evaluation alone keeps whole weights."""
        if module.trainer.state.fn != TrainerFn.FITTING or is_sharded(module):
            return
        assert isinstance(module.matcher, Matcher)
        self.precision_plugin.convert_module(module)
        for name in module.matcher.towers:
            if (buckets := getattr(module.matcher.tower(name).encoder, "length_buckets", 1)) > 1:
                rank_zero_info(
                    f"trainer=fsdp: tower '{name}' encodes texts in one bucket, not length_buckets={buckets}"
                )
        shard_matcher(module.matcher, self.device_mesh, self._gather_dtype)

    def gather_weights(self) -> None:
        """Have every process hold whole weights, for passes that differ between processes."""
        assert self.lightning_module is not None
        gather_weights(self.lightning_module)

    def release_weights(self) -> None:
        """Free what `gather_weights` gathered."""
        assert self.lightning_module is not None
        release_weights(self.lightning_module)

    def replica(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return what the optimizer gets for a parameter: itself, or for a whole one the same as a replicated DTensor.

        An optimizer, and the norm of gradients, take no mixture of both kinds.
        """
        if isinstance(parameter, DTensor):
            return parameter
        if id(parameter) not in self._replicas:
            twin = DTensor.from_local(parameter.detach(), self.device_mesh, [Replicate()], run_check=False)
            self._replicas[id(parameter)] = parameter, nn.Parameter(twin)
        return self._replicas[id(parameter)][1]

    def synchronize_gradients(self) -> None:
        """Average the gradients of whole parameters over all processes, and hand them to the optimizer's replicas."""
        owned = [pair for pair in self._replicas.values() if pair[0].grad is not None]
        if not owned:
            return
        gradients = [parameter.grad for parameter, _ in owned]
        flat = torch.cat([gradient.flatten() for gradient in gradients])  # type: ignore[union-attr]
        dist.all_reduce(flat)
        flat /= self.world_size
        for (parameter, twin), part in zip(owned, flat.split([p.numel() for p, _ in owned]), strict=True):
            mean = DTensor.from_local(part.view_as(parameter), self.device_mesh, [Replicate()], run_check=False)
            twin.grad = mean if twin.grad is None else twin.grad + mean
            parameter.grad = None

    def synchronize_statistics(self) -> None:
        """Give every process the running batch statistics of the first, as DDP does before a forward pass."""
        assert self.lightning_module is not None
        norms = [part for part in self.lightning_module.modules() if isinstance(part, _BatchNorm) and part.training]
        groups: dict[torch.dtype, list[Tensor]] = {}
        for norm in norms:
            for buffer in norm.buffers(recurse=False):
                groups.setdefault(buffer.dtype, []).append(buffer)
        for buffers in groups.values() if self.world_size > 1 else ():
            flat = torch.cat([buffer.flatten() for buffer in buffers])
            dist.broadcast(flat, 0)
            parts = flat.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [p.view_as(b) for p, b in zip(parts, buffers, strict=True)])

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(self.broadcast(filepath))
        if not self._save_distributed_checkpoint:
            content = self._collect(checkpoint)
            ask_first(self, lambda: self.checkpoint_io.save_checkpoint(content, path, storage_options))
            return
        with ExitStack() as stack:  # of the first process: an error of it is raised by all, which would wait for it
            folder = ask_first(self, lambda: stack.enter_context(atomic_write_folder(path)))
            try:
                write_sharded(checkpoint, folder)
            except OSError as error:  # names the folder that is removed
                raise OSError(error.errno, error.strerror, str(path)) from error
            ask_first(self, stack.close)

    def _collect(self, value: Any) -> Any:
        """Return nested containers with whole tensors on the CPU, on the first process; the others take part."""
        if isinstance(value, DTensor):
            found = whole(value.detach())
            return found.cpu() if self.is_global_zero else None
        if isinstance(value, Mapping):
            return type(value)((key, self._collect(part)) for key, part in value.items())  # type: ignore[call-arg]
        return type(value)(map(self._collect, value)) if type(value) in (list, tuple) else value

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        module = self.lightning_module
        assert module is not None
        if not is_sharded(module):
            return self.checkpoint_io.load_checkpoint(path, map_location="cpu", weights_only=weights_only)
        unused: tuple[str, ...] = ()
        if module.trainer.state.fn != TrainerFn.FITTING:  # evaluation after training, whose state is still there
            unused = (OPTIMIZERS, LIVE)
            module.zero_grad(set_to_none=True)
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
        if is_sharded_checkpoint(path):
            by_name = dict(module.named_parameters(remove_duplicate=False))
            return read_sharded(path, partial(self._place, by_name), unused)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content = {key: value for key, value in content.items() if key not in unused}
        for key in STATES:
            if key in content:
                content[key] = shard_state_like(content[key], module)
        for states, parameters in zip(content.get(OPTIMIZERS, ()), self._optimized(), strict=False):
            for idx, state in states["state"].items():
                states["state"][idx] = {
                    name: shard_like(value, parameters[idx]) if isinstance(value, Tensor) else value
                    for name, value in state.items()
                }
        return content

    def _place(
        self, parameters: Mapping[str, Tensor], name: str, shape: torch.Size, dtype: torch.dtype
    ) -> Tensor | None:
        """Return the tensor to read into: this process's part of one that belongs to a sharded parameter."""
        section, _, rest = name.partition("/")
        like: Tensor | None = None
        if section in STATES:
            like = parameters.get(rest)
        elif section == OPTIMIZERS:
            number, _, idx, _ = rest.split("/", 3)
            optimized = self._optimized()
            like = optimized[int(number)][int(idx)] if int(number) < len(optimized) else None
        if not isinstance(like, DTensor) or like.shape != shape:
            return None
        return torch.empty_like(like, dtype=dtype, requires_grad=False)

    def _optimized(self) -> list[list[nn.Parameter]]:
        return [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in self.optimizers]

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        ParallelStrategy.load_optimizer_state_dict(self, checkpoint)


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FullySharded, description="FSDP2, sharded over all processes")
