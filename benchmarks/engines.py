"""Seconds and memory of a training step under DDP and FSDP2, for one process or many, on GPUs or CPUs.

torchrun --nproc-per-node 8 benchmarks/engines.py --encoder clip_vit_g14 --engine fsdp
torchrun --nproc-per-node 2 benchmarks/engines.py --encoder tiny --engine ddp --batch-size 16

Prints one line of JSON: seconds are the median of the timed steps; memory is the peak of a process, allocated on a GPU
or resident on a CPU, and of it the weights, gradients and optimizer state. Inputs are made up, weights random.

Started as one process, it measures both engines for several numbers of processes of this machine, which divide the
same batch among them, and can write a table:

python benchmarks/engines.py --processes 1 2 4 --rows 32 --rounds 2 --output results.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from machine import describe_machine
from record import add_output, table, write_record, write_tables
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from mim_lightning.config import build_matcher, compose
from mim_lightning.model.matcher import Matcher
from mim_lightning.model.sharding import local, shard_matcher
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
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="numbers of them, started as one")
    parser.add_argument("--rows", type=int, default=32, help="of the batch that they divide")
    parser.add_argument("--rounds", type=int, default=2)
    add_output(parser, tables=True)
    parser.add_argument("--words", nargs="*", default=[], help="further overrides of train, such as embed_dim=64")
    options = parser.parse_args()
    if options.tables:
        write_table(options.tables)
    elif "RANK" in os.environ:
        measure(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Measure both engines for each number of processes, in turns, and write the record and its table."""
    lines = []
    for _ in range(options.rounds):
        for num_processes in options.processes:
            for engine in ("ddp", "fsdp"):
                command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
                command += [f"--nproc-per-node={num_processes}", __file__, "--engine", engine]
                command += ["--encoder", options.encoder, "--steps", str(options.steps)]
                command += ["--batch-size", str(options.rows // num_processes), "--words", *options.words]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                lines.append(json.loads(done.stdout.splitlines()[-1]))
                print(done.stdout.splitlines()[-1], flush=True)
    record = {"rows": options.rows, "rounds": options.rounds, "words": options.words, "measured": lines}
    write_record(options.output, {**record, "machine": describe_machine(), "torch": torch.__version__})
    if options.output:
        write_table(options.output)


def write_table(path: Path) -> None:
    record = json.loads(path.read_text())
    by_kind: dict[tuple[str, int], list[dict]] = {}
    for line in record["measured"]:
        by_kind.setdefault((line["engine"], line["processes"]), []).append(line)
    rows = []
    for (engine, num_processes), lines in sorted(by_kind.items()):
        seconds = sorted(line["seconds"] for line in lines)
        largest = max(lines, key=lambda line: line["gib"])
        rows.append(
            [
                *(engine, num_processes, record["rows"] // num_processes, f"{statistics.median(seconds):.2f}"),
                *(f"{seconds[0]:.2f} to {seconds[-1]:.2f}", f"{1024 * largest['state_gib']:.0f}"),
                *(f"{1024 * (largest['gib'] - largest['start_gib']):.0f}", f"{1024 * largest['gib']:.0f}"),
            ]
        )
    columns = [
        "engine",
        "processes",
        "rows of each",
        "s a step",
        "range",
        "state, MiB",
        "above start, MiB",
        "peak, MiB",
    ]
    note = (
        f"{record['measured'][0]['parameters'] / 1e6:.1f} M parameters in float32, AdamW, {record['rows']} rows a "
        f"step, {record['rounds']} rounds; gloo processes of one machine: {record['machine']}; torch {record['torch']}"
    )
    write_tables(path.parent, table=table(columns, rows, note))


def measure(options: argparse.Namespace) -> None:
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    config = compose("train", [f"encoder={options.encoder}", "model=2tower", *options.words])
    matcher = build_matcher(config)
    num_parameters = sum(parameter.numel() for parameter in matcher.parameters())
    start = 0 if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
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
        state = held_bytes(optimizer)
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = torch.tensor(
        [statistics.median(seconds[2:]), float(peak), float(start), float(state)], dtype=torch.float64, device=device
    )
    dist.all_reduce(found, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        facts = {"engine": options.engine, "processes": dist.get_world_size(), "encoder": options.encoder}
        facts |= {"batch_size": options.batch_size, "device": torch.cuda.get_device_name() if on_gpu else "cpu"}
        facts |= {"parameters": num_parameters}
        names = ("gib", "start_gib", "state_gib")
        gib = {name: round(float(value) / 2**30, 4) for name, value in zip(names, found[1:], strict=True)}
        print(json.dumps({**facts, "seconds": round(float(found[0]), 4), **gib}))
    dist.barrier()  # a process that ends while others still receive aborts them
    dist.destroy_process_group()


def held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of weights, gradients and optimizer state that this process holds."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [*parameters, *(parameter.grad for parameter in parameters)]
    kept += [value for state in optimizer.state.values() for value in state.values()]
    return sum(local(tensor).nbytes for tensor in kept if isinstance(tensor, torch.Tensor))


if __name__ == "__main__":
    main()
