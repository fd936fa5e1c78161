"""Measure the tiled losses against a naive form with whole matrices: seconds, memory, errors.

The naive form is written here from the definition: a matrix of logits a pair, its transpose for the other direction, a
mask of positives from comparisons of product ids. Memory is that of a process of its own a measurement: the largest
resident size beyond inputs and gradients on a CPU, the largest allocated on a GPU. Times take turns in one process.

    python benchmarks/loss.py --output experiments/loss_memory/results.json
    python benchmarks/loss.py --device cuda --output gpu.json     # adds one pair of 65,536 rows in bfloat16
    python benchmarks/loss.py --tables experiments/loss_memory/results.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from statistics import median
from typing import Any

import machine
import torch
from record import add_output, read_record, table, write_record, write_tables
from torch import Tensor
from torch.nn import functional as F

from mim_lightning.losses.contrastive import info_nce, sigmoid
from mim_lightning.losses.pair_tiles import Side
from mim_lightning.losses.positives import share_product
from mim_lightning.losses.tiled import tiled_losses

LOSSES = {"info_nce": info_nce, "sigmoid": sigmoid}
SIX = tuple(combinations(range(4), 2))  # all pairs of four towers
MIB = 2**20


def main() -> None:
    sizes = read_sizes()
    if sizes.tables:
        write_tables(sizes.tables.parent, **dict(tables_of(read_record(sizes.tables))))
        return
    results: dict[str, Any] = {"facts": facts(sizes)}
    for name, measure in (
        ("times", measure_times),
        ("memory", measure_memory),
        ("errors", measure_errors),
        ("matches", measure_matches),
        ("one_pair", measure_one_pair),
    ):
        if name in sizes.parts and (name != "one_pair" or sizes.device == "cuda"):
            results[name] = []
            for row in measure(sizes):
                results[name].append(row)
                print(name, row, flush=True)
    write_record(sizes.output, read_record(sizes.output) | results)


def read_sizes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["times", "memory", "errors", "matches", "one_pair"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to measure")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, nargs="*", default=[2048, 4096, 6144], help="rows against the naive form")
    parser.add_argument("--dim", type=int, default=256, help="dimension against the naive form")
    parser.add_argument(
        "--large", type=int, nargs=2, default=[32_768, 512], help="rows, dimension of tiles alone; 0: none"
    )
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, taking turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add_output(parser, "JSON file, whose other parts are kept", tables=True)
    return parser.parse_args()


def facts(sizes: argparse.Namespace) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if sizes.device == "cuda" else f"{machine.cpu()}, {os.cpu_count()} cores"
    load = os.getloadavg()[0]
    return {
        "device": device,
        "threads": sizes.threads,
        "load": round(load, 1),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "date": datetime.now(UTC).date().isoformat(),
    }


# --- the two sides ------------------------------------------------------------------------------------


def make_inputs(rows: int, dim: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Return vectors of four towers, and a product id a row: every second row repeats one."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(rows * 3 // 4, (rows,), generator=generator)
    vectors = [F.normalize(torch.randn(rows, dim, generator=generator), dim=1) for _ in range(4)]
    return [part.to(device, dtype).requires_grad_() for part in vectors], keys


def naive(loss: str, vectors: list[Tensor], keys: Tensor, scale: Tensor, pairs: Any) -> Tensor:
    positives_GG = keys[:, None] == keys
    total = scale.new_zeros(())
    for left, right in pairs:
        logits_GG = vectors[left] @ vectors[right].T * scale
        for each_GG in (logits_GG, logits_GG.T):
            if loss == "info_nce":
                negatives_G1 = each_GG.masked_fill(positives_GG, -torch.inf).logsumexp(1, keepdim=True)
                terms_GG = F.softplus(negatives_G1 - each_GG).masked_fill(~positives_GG, 0.0)
                total = total + (terms_GG.sum(1) / positives_GG.sum(1)).mean() / 2
            else:
                total = total + F.softplus(torch.where(positives_GG, -each_GG, each_GG)).sum(1).mean() / 2
    return total


def tiled(loss: str, vectors: list[Tensor], keys: Tensor, scale: Tensor, pairs: Any, tile: int | None = None) -> Tensor:
    sides = [Side(part, keys.cpu()[:, None]) for part in vectors]
    both = [(sides[left], sides[right]) for left, right in pairs]
    return tiled_losses(LOSSES[loss], both, [1.0] * len(both), scale.expand(len(both)), tile=tile).loss


FORMS: dict[str, Callable[..., Tensor]] = {"tiled": tiled, "naive": naive}


def step(form: str, loss: str, vectors: list[Tensor], keys: Tensor, scale: Tensor, pairs: Any) -> None:
    for part in vectors:
        part.grad = None
    FORMS[form](loss, vectors, keys, scale, pairs).backward()


# --- measurements -------------------------------------------------------------------------------------


def measure_times(sizes: argparse.Namespace) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(sizes.threads)
    for rows in sizes.rows:
        vectors, keys = make_inputs(rows, sizes.dim, sizes.device)
        keys, scale = keys.to(sizes.device), torch.tensor(14.0, device=sizes.device, requires_grad=True)
        for loss in sizes.losses:
            seconds: dict[str, list[tuple[float, float]]] = {form: [] for form in FORMS}
            for _ in range(sizes.repeats):
                for form, found in seconds.items():
                    found.append(timed(partial(step, form, loss, vectors, keys, scale, SIX), sizes.device))
            ratios = [
                tuple(ours / theirs for ours, theirs in zip(one, other, strict=True))
                for one, other in zip(seconds["tiled"], seconds["naive"], strict=True)
            ]
            yield {
                "loss": loss,
                "rows": rows,
                "dim": sizes.dim,
                "pairs": len(SIX),
                **{form: [median(part) for part in zip(*found, strict=True)] for form, found in seconds.items()},
                "ratio": [median(part) for part in zip(*ratios, strict=True)],
                "ratios": [ratio[0] for ratio in ratios],
            }


def timed(function: Callable[[], Any], device: str) -> tuple[float, float]:
    """Return wall and CPU seconds, the second of all threads."""
    if device == "cuda":
        torch.cuda.synchronize()
    clock, busy = time.perf_counter(), time.process_time()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - busy


def measure_memory(sizes: argparse.Namespace) -> Iterator[dict[str, Any]]:
    cases = [(form, rows, sizes.dim) for rows in sizes.rows for form in FORMS]
    if sizes.large[0]:
        cases.append(("tiled", *sizes.large))
    for loss in sizes.losses:
        for form, rows, dim in cases:
            arguments = (form, loss, rows, dim, sizes.device, sizes.threads)
            grown, seconds = in_new_process(peak_of_step, *arguments)
            yield {"loss": loss, "form": form, "rows": rows, "dim": dim, "bytes": grown, "seconds": seconds}


def peak_of_step(form: str, loss: str, rows: int, dim: int, device: str, threads: int) -> tuple[int, float]:
    """Return by how many bytes a step grows memory beyond its inputs and their gradients, and its wall seconds."""
    torch.set_num_threads(threads)
    scale = torch.tensor(14.0, device=device, requires_grad=True)
    few, few_keys = make_inputs(64, dim, device)
    step(form, loss, few, few_keys.to(device), scale, SIX)  # threads and libraries start
    vectors, keys = make_inputs(rows, dim, device)
    keys = keys.to(device)
    for part in vectors:
        part.grad = torch.ones_like(part)  # touched, so that they count as there before
    del few
    before = reset_peak(device)
    gradients = [part.grad for part in vectors]
    for part in vectors:
        part.grad = None
    clock = time.perf_counter()
    FORMS[form](loss, vectors, keys, scale, SIX).backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - clock
    held = sum(part.numel() * part.element_size() for part in gradients if part is not None)
    # the gradients of the step come on top of those held here
    return peak_bytes(device) - before - held, seconds


def reset_peak(device: str) -> int:
    """Let the peak start anew; return the bytes in use."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    machine.reset_peak()
    return peak_bytes(device)


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return machine.memory_bytes("VmHWM")


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    # "spawn": a forked process starts with the peak of its parent
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure_errors(sizes: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield errors of both forms in float32 against the naive form in float64."""
    rows = sizes.rows[0]
    for loss in sizes.losses:
        for scale in (14.0, 100.0):
            errors = {}
            for form, dtype in (("exact", torch.float64), ("tiled", torch.float32), ("naive", torch.float32)):
                vectors, keys = make_inputs(rows, sizes.dim, sizes.device)
                vectors = [part.detach().to(dtype).requires_grad_() for part in vectors]
                factor = torch.tensor(scale, device=sizes.device, dtype=dtype, requires_grad=True)
                value = (tiled if form == "tiled" else naive)(loss, vectors, keys.to(sizes.device), factor, SIX)
                found = [value.detach(), *torch.autograd.grad(value, [*vectors, factor])]
                if form == "exact":
                    exact = found
                else:
                    errors[form] = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
            value, vectors_, of_scale = (
                {form: pick(found) for form, found in errors.items()}
                for pick in (lambda e: e[0], lambda e: max(e[1:5]), lambda e: e[5])
            )
            yield {
                "loss": loss,
                "scale": scale,
                "rows": rows,
                "value": value,
                "vectors": vectors_,
                "of_scale": of_scale,
            }


def measure_matches(sizes: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield seconds for the positives of 1,024 rows with 20 products each, by sorted keys and by comparisons."""
    torch.set_num_threads(sizes.threads)
    rows = 1024
    for num_keys in (1, 20):
        keys = torch.randint(8 * rows, (rows, num_keys), generator=torch.Generator().manual_seed(0))

        def compare(keys: Tensor = keys) -> Tensor:
            shared = torch.zeros(rows, rows, dtype=torch.bool)
            for left in keys.unbind(1):
                for right in keys.unbind(1):
                    shared |= (left[:, None] == right) & (left >= 0)[:, None]
            return shared

        assert torch.equal(share_product(keys, keys), compare())
        seconds = {"sorted": [], "compared": []}
        for _ in range(sizes.repeats):
            for name, function in (("sorted", partial(share_product, keys, keys)), ("compared", compare)):
                seconds[name].append(timed(function, "cpu")[0])
        yield {"rows": rows, "keys": num_keys, **{name: median(found) for name, found in seconds.items()}}


def measure_one_pair(sizes: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield siglip-kernel's setting: one pair of 65,536 rows in bfloat16; its own README says 48.8 ms and 1.4 GB."""
    rows = 65_536
    for dim in (512, 768):
        for loss in sizes.losses:
            for precision in ("highest", "high"):  # what a trainer has set must not change the loss
                torch.set_float32_matmul_precision(precision)
                vectors, keys = make_inputs(rows, dim, "cuda", torch.bfloat16)
                scale = torch.tensor(10.0, device="cuda", requires_grad=True)
                run = partial(step, "tiled", loss, vectors[:2], keys, scale, ((0, 1),))
                run()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                seconds = [timed(run, "cuda")[0] for _ in range(5)]
                peak = torch.cuda.max_memory_allocated() - before
                yield {
                    "loss": loss,
                    "rows": rows,
                    "dim": dim,
                    "precision": precision,
                    "seconds": median(seconds),
                    "bytes": peak,
                }
    torch.set_float32_matmul_precision("highest")


# --- tables -------------------------------------------------------------------------------------------


def tables_of(results: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    f = results["facts"]
    measured = (
        f"{f['device']}, threads: {f['threads']}, load {f['load']} from other work; torch {f['torch']}, "
        f"Python {f['python']}, {f['date']}"
    )
    for name, make in (
        ("times", time_table),
        ("memory", memory_table),
        ("errors", error_table),
        ("matches", match_table),
    ):
        if name in results:
            yield name, make(results[name], measured)


def time_table(found: list[dict[str, Any]], note: str) -> list[str]:
    rows = []
    for r in found:
        span = f"{r['ratio'][0]:.2f} ({min(r['ratios']):.2f} to {max(r['ratios']):.2f})"
        seconds = [f"{r[form][0]:.2f}" for form in ("tiled", "naive")]
        rows.append([r["loss"], f"{r['rows']:,}", *seconds, span, f"{r['ratio'][1]:.2f}"])
    headings = ("loss", "rows", "tiled, s", "naive, s", "ratio (lowest to highest)", "ratio by CPU time")
    return table(headings, rows, note)


def memory_table(found: list[dict[str, Any]], note: str) -> list[str]:
    by_size: dict[tuple[str, int, int], dict[str, int]] = {}
    for r in found:
        by_size.setdefault((r["loss"], r["rows"], r["dim"]), {})[r["form"]] = r["bytes"]
    rows = []
    for (loss, num, dim), used in by_size.items():
        ratio = f"{used['tiled'] / used['naive']:.1%}" if "naive" in used else ""
        theirs = f"{used['naive'] / MIB:,.0f}" if "naive" in used else ""
        rows.append([loss, f"{num:,}", dim, f"{used['tiled'] / MIB:,.0f}", theirs, ratio])
    return table(("loss", "rows", "dimension", "tiled, MiB", "naive, MiB", "share"), rows, note)


def error_table(found: list[dict[str, Any]], note: str) -> list[str]:
    rows = []
    for r in found:
        errors = [f"{r[part][form]:.1e}" for part in ("value", "vectors", "of_scale") for form in ("tiled", "naive")]
        rows.append([r["loss"], f"{r['scale']:g}", *errors])
    headings = (
        "loss",
        "scale",
        "value: tiled",
        "naive",
        "vectors' gradients: tiled",
        "naive",
        "scale's gradient: tiled",
    )
    return table((*headings, "naive"), rows, note)


def match_table(found: list[dict[str, Any]], note: str) -> list[str]:
    rows = [[f"{r['rows']:,}", r["keys"], f"{1e3 * r['sorted']:.1f}", f"{1e3 * r['compared']:.1f}"] for r in found]
    headings = ("rows", "products a row and column", "by sorted keys, ms", "by comparisons, ms")
    return table(headings, rows, note, num_left=0)


if __name__ == "__main__":
    main()
