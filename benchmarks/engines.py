"""Seconds and memory of a training step under DDP and FSDP2, for one process or many, on GPUs or CPUs.

torchrun --nproc-per-node 8 benchmarks/engines.py --encoder clip_vit_g14 --engine fsdp
torchrun --nproc-per-node 2 benchmarks/engines.py --encoder tiny --engine ddp --batch-size 16

Prints one line of JSON: seconds are the median of the timed steps; memory is the peak of a process, allocated on a GPU
or resident on a CPU. Inputs are made up, weights random.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from mim_lightning.config import build_matcher, compose
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.sharding import shard_matcher
from mim_lightning.types import ImageSpec, map_tensors


class Pass(torch.nn.Module):
    """Encodes every tower's inputs: what a step computes besides its loss."""

    def __init__(self, matcher: Matcher) -> None:
        super().__init__()
        self.matcher = matcher

    def forward(self, inputs: dict[str, object]) -> torch.Tensor:
        vectors = [self.matcher.tower(name)(value) for name, value in inputs.items()]  # type: ignore[arg-type]
        return torch.stack([vector_BD.square().mean(0)[0] for vector_BD in vectors]).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("ddp", "fsdp"), default="fsdp")
    parser.add_argument("--encoder", default="clip_vit_b32")
    parser.add_argument("--batch-size", type=int, default=64, help="rows of a process")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("words", nargs="*", help="further overrides of train, such as embed_dim=64")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    config = compose("train", [f"encoder={options.encoder}", "model=2tower", *options.words])
    matcher = build_matcher(config)
    if options.engine == "fsdp":
        shard_matcher(matcher, init_device_mesh(device.type, (dist.get_world_size(),)))
        model: torch.nn.Module = Pass(matcher.to(device))
    else:
        model = DistributedDataParallel(Pass(matcher.to(device)), device_ids=[device.index] if on_gpu else None)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad and p.numel()], lr=1e-5)
    inputs = {}
    for name, spec in matcher.input_specs().items():
        assert not isinstance(spec, dict)
        made = (
            torch.randint(0, 256, (options.batch_size, 3, *spec.size), dtype=torch.uint8)
            if isinstance(spec, ImageSpec)
            else spec.tokenize(["a red shoe with white laces"] * options.batch_size)
        )
        inputs[name] = map_tensors(made, lambda tensor: tensor.to(device))
    seconds = []
    for _ in range(options.steps + 2):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss = model(inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = torch.tensor([statistics.median(seconds[2:]), float(peak)], dtype=torch.float64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        facts = {"engine": options.engine, "processes": dist.get_world_size(), "encoder": options.encoder}
        facts |= {"batch_size": options.batch_size, "device": torch.cuda.get_device_name() if on_gpu else "cpu"}
        print(json.dumps({**facts, "seconds": round(float(found[0]), 4), "gib": round(float(found[1]) / 2**30, 3)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
