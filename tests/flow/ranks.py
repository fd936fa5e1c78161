"""python -m tests.flow.ranks <number of processes> <JSON>: commands in joined processes, as torchrun starts them.

The JSON is a list of [name of an entry point, [overrides]]; every process runs all of them, one after the other. A
process that fails ends with code 1, and with it the others, as torchrun and `srun --kill-on-bad-exit` have it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys

from mim_lightning.config import compose


def main(num_processes: int, commands: list[tuple[str, list[str]]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = {}
    for rank in range(num_processes):
        pid = os.fork()
        if pid == 0:
            run(rank, num_processes, port, commands)
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


def run(rank: int, num_processes: int, port: int, commands: list[tuple[str, list[str]]]) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
    numbers |= {"GROUP_RANK": 0, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in numbers.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"})
    code = 1
    try:
        for name, overrides in commands:
            getattr(importlib.import_module(f"mim_lightning.{name}"), name)(compose(name, overrides))
        code = 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
