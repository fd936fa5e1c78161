"""python -m tests.flow.ranks torchrun|srun <number> <JSON>: commands in processes as a launcher starts them.

The JSON is a list of [name of an entry point, [overrides]]; every process runs all of them, one after the other. After
["kill", [rank, number]] that rank is killed as it starts so many batches of an evaluation; after ["log_shards",
[folder]] each rank writes which shards it opens into a file there. A process that fails ends with code 1, and with it
the others, as torchrun and `srun --kill-on-bad-exit` have it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.config import compose

if TYPE_CHECKING:
    from mim_lightning.data.shards.open_shards import OpenShard
    from mim_lightning.data.shards.set_index import IndexedShard


def main(launcher: str, num_processes: int, commands: list[tuple[str, list[str]]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = {}
    for rank in range(num_processes):
        pid = os.fork()
        if pid == 0:
            os.environ.update({name: str(value) for name, value in variables(launcher, rank, num_processes, port)})
            run(commands)
        children[pid] = rank
    code = 0
    while children:
        pid, status = os.wait()
        rank = children.pop(pid)
        if status and not code:
            code = 1
            print(f"rank {rank} ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
            for other in children:
                os.kill(other, signal.SIGKILL)
    sys.exit(code)


def variables(launcher: str, rank: int, num_processes: int, port: int) -> Iterator[tuple[str, object]]:
    yield from (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port))
    if launcher == "srun":
        yield from (("SLURM_JOB_ID", 1), ("SLURM_JOB_NAME", "job"), ("SLURM_NODELIST", "localhost"))
        yield from (("SLURM_PROCID", rank), ("SLURM_LOCALID", rank), ("SLURM_NODEID", 0))
        yield from (("SLURM_NTASKS", num_processes), ("SLURM_NTASKS_PER_NODE", num_processes), ("SLURM_NNODES", 1))
    else:
        yield from (("RANK", rank), ("LOCAL_RANK", rank), ("GROUP_RANK", 0), ("TORCHELASTIC_RUN_ID", "test"))
        yield from (("WORLD_SIZE", num_processes), ("LOCAL_WORLD_SIZE", num_processes))


def run(commands: list[tuple[str, list[str]]]) -> None:
    code = 1
    try:
        for name, overrides in commands:
            if name == "kill":
                kill_at(*map(int, overrides))
                continue
            if name == "log_shards":
                log_shards(Path(*overrides) / os.environ["RANK"])
                continue
            getattr(importlib.import_module(f"mim_lightning.{name}"), name)(compose(name, overrides))
        code = 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill_at(rank: int, number: int) -> None:
    from mim_lightning.lit.module import MatchModule

    embed, batches = MatchModule.validation_step, iter(range(1, number))

    def embed_or_die(module: MatchModule, *arguments: Any) -> Any:
        if module.global_rank == rank and next(batches, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(module, *arguments)

    MatchModule.validation_step = embed_or_die  # type: ignore[method-assign]


def log_shards(path: Path) -> None:
    """Write each shard that this process opens into a file, as <name of the set> <number>."""
    from mim_lightning.data.shards.files import LocalFiles

    open_shard = LocalFiles.open

    def open_and_log(files: LocalFiles, shard: IndexedShard, verify: bool) -> OpenShard:
        with path.open("a") as file:
            print(files.folder.name, shard.idx, file=file)
        return open_shard(files, shard, verify)

    LocalFiles.open = open_and_log  # type: ignore[method-assign]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
