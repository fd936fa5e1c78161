"""A Python that starts in a moment: a fork of a process that has imported what entry points import.

Importing takes longer than most commands of the tests do. `start` runs one such process for all workers of a test run;
its imports wait until somebody asks. PYTHON is the path of a program to be called as Python is: with `-m` or `-c` it
runs in a fork, with other options in Python itself. What a fork starts by `sys.executable` are forks again.

A fork has the caller's arguments, environment, folder and open files. It gets the caller's signals and gives its exit
code; if the caller is killed, so is it. VENDORS does the same with nothing of this project imported.
"""

import fcntl
import gc
import importlib
import json
import os
import pkgutil
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

PYTHON, VENDORS = "MIM_TESTS_PYTHON", "MIM_TESTS_PYTHON_VENDORS"  # environment variables
HOOK = "MIM_TESTS_HOOK"  # likewise: a module that a fork imports first
SCRIPT = """#!{python} -IS
import sys
sys.path.append({folder!r})
import preloaded
preloaded.run({python!r}, {address!r})
"""
PARTS = (  # of the package, which entry points import when they have work
    *("analysis.html", "analysis.record", "callable_module", "catalog_embedding", "catalog_index"),
    *("checkpoint_evaluation", "data.loading", "data.manifest", "data.sampling", "data.shards", "data.validation"),
    *("data.versions", "data_preparation", "encoders.tiny", "index_calibration", "inference.export_writer"),
    *("inference.quantization", "lit", "losses", "metrics", "model", "next_command", "search.index.faiss"),
    *("search.index_builder", "search.judged_searches", "search.searcher", "sweep.job_log", "sweep.launcher"),
    *("sweep.summary", "training"),
)
PATIENCE = 300  # seconds that a fork may take
ABOVE_ALL = 512  # descriptors from here on are nobody's


def start() -> None:
    """Start the process and name its programs in the environment; it ends with this one."""
    if PYTHON in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="mim-python-"))
    for name in (PYTHON, VENDORS):
        path = folder / name.lower()
        script = SCRIPT.format(python=sys.executable, folder=str(Path(__file__).parent), address=f"{path}.socket")
        path.write_text(script)
        path.chmod(0o755)
        os.environ[name] = str(path)
    command = [sys.executable, __file__, *(f"{os.environ[name]}.socket" for name in (PYTHON, VENDORS))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()  # it listens


# --- the program ----------------------------------------------------------------------------------------


def run(python: str, address: str) -> NoReturn:
    """Do what Python would do with this process's arguments, in a fork of the process that listens at `address`."""
    options = [argument for argument in sys.argv[1:3] if argument in ("-u", "-m", "-c")]
    if options not in (["-m"], ["-c"], ["-u", "-m"]):
        os.execv(python, [python, *sys.argv[1:]])  # noqa: S606 - the interpreter of the tests
    descriptors = [number for number in range(ABOVE_ALL) if _is_open(number)]
    request = {
        "options": options,
        "arguments": sys.argv[1 + len(options) :],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "descriptors": descriptors,
    }
    data = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(data).to_bytes(8, "big")], descriptors)
        connection.sendall(data)
        answers = connection.makefile()
        pid = int(answers.readline())

        def forward(signum: int, frame: Any) -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, forward)
        code = int(answers.readline() or 1)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


# --- the process that is forked -------------------------------------------------------------------------


def main(address: str, address_of_vendors: str) -> None:
    """Listen at both addresses; import and serve once somebody connects, until standard input ends."""
    listeners = []
    for path in (address, address_of_vendors):
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(path)
        listeners[-1].listen(64)
    print(flush=True)
    with selectors.DefaultSelector() as selector:
        for source in (sys.stdin, *listeners):
            selector.register(source, selectors.EVENT_READ)
        if any(key.fileobj is sys.stdin for key, _ in selector.select()):
            shutil.rmtree(Path(address).parent)
            return
    _import_vendors()
    if os.fork() == 0:
        serve(listeners[1])
    else:
        _import_ours()
        serve(listeners[0])
        shutil.rmtree(Path(address).parent, ignore_errors=True)
    os._exit(0)  # without taking modules apart


def _import_vendors() -> None:
    import duckdb  # noqa: F401 - forks have it
    import hydra  # noqa: F401
    import lightning.pytorch  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import timm  # noqa: F401
    import transformers  # noqa: F401

    for name in ("pandas", "s3fs"):  # pyarrow and Lightning import them where they are installed
        with suppress(ImportError):
            importlib.import_module(name)


def _import_ours() -> None:
    import quick_compose

    import mim_lightning
    from mim_lightning.config import compose

    quick_compose.install()
    for module in pkgutil.walk_packages(mim_lightning.__path__, "mim_lightning."):
        if module.name.removeprefix("mim_lightning.").startswith(PARTS):
            importlib.import_module(module.name)
    compose("train", ["model=4tower"])  # finds plugins, and grammars remember what they have parsed


def serve(listener: socket.socket) -> None:
    """Fork for each connection, until standard input ends."""
    gc.freeze()  # a collection would write to every object, and so copy the page
    callers: dict[int, socket.socket] = {}  # by process
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    with selectors.DefaultSelector() as selector:
        for source in (sys.stdin, listener, woken):
            selector.register(source, selectors.EVENT_READ)
        while True:
            for source in [key.fileobj for key, _ in selector.select()]:
                if source is sys.stdin:
                    return
                if source is listener:
                    caller, _ = listener.accept()
                    descriptors, request = _receive(caller)
                    pid = os.fork()
                    if pid == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        _become(descriptors, request)
                    for descriptor in descriptors:
                        os.close(descriptor)
                    caller.sendall(f"{pid}\n".encode())
                    callers[pid] = caller
                    selector.register(caller, selectors.EVENT_READ)
                elif source is woken:
                    woken.recv(4096)
                    _report(callers, selector)
                else:  # a caller says nothing more: it is gone
                    selector.unregister(source)
                    for pid in [pid for pid, caller in callers.items() if caller is source]:
                        os.kill(pid, signal.SIGKILL)


def _report(callers: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    """Send the exit codes of the forks that ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        caller = callers.pop(pid, None)
        if caller is None:
            continue
        with suppress(KeyError):
            selector.unregister(caller)
        with suppress(OSError):
            caller.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        caller.close()


def _receive(caller: socket.socket) -> tuple[list[int], dict[str, Any]]:
    """Return the open files of a caller, and what it wants."""
    header, descriptors, _, _ = socket.recv_fds(caller, 8, 253)
    data = b""
    while len(data) < int.from_bytes(header, "big"):
        data += caller.recv(1 << 20)
    return list(descriptors), json.loads(data)


def _become(descriptors: list[int], request: dict[str, Any]) -> NoReturn:
    """Be the process that a caller describes."""
    descriptors = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, ABOVE_ALL) for descriptor in descriptors]
    os.closerange(0, ABOVE_ALL)
    for descriptor, number in zip(descriptors, request["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.setsid()
    signal.alarm(PATIENCE)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.executable = os.environ[PYTHON]
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    _read_environment()
    if "-u" in request["options"]:
        sys.stdout.reconfigure(write_through=True)
    sys.orig_argv = [sys.executable, *request["options"], *request["arguments"]]
    if (interruption := sys.modules.get("mim_lightning.interruption")) is not None and interruption.is_entry_point():
        interruption.install()  # as the package does at its import
    if (hook := os.environ.get(HOOK)) is not None:
        importlib.import_module(hook)
    _end(_run(request["options"], request["arguments"]))


def _run(options: list[str], words: list[str]) -> int:
    """Return the exit code of a module or of code."""
    import runpy
    import traceback

    try:
        if "-c" in options:
            sys.path.insert(0, "")
            sys.argv = ["-c", *words[1:]]
            sys.modules["__main__"] = module = type(sys)("__main__")
            exec(words[0], module.__dict__)  # noqa: S102 - of a test
        else:
            sys.path.insert(0, os.getcwd())
            sys.argv = words
            if words[0].startswith("mim_lightning.") and (ours := sys.modules.get("mim_lightning.interruption")):
                ours.install()  # as the package does when an entry point imports it
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """Exit as Python does, but let modules lie: taking them apart would copy every page that the forks share."""
    import atexit
    import threading

    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _read_environment() -> None:
    """Set what the imported packages have read from another environment."""
    import numpy as np
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    np.random.seed()
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    rank_zero_only.rank = next((int(rank) for rank in ranks if rank is not None), 0)
    if (media := sys.modules.get("wandb.sdk.data_types._private")) is not None:  # the first fork to end removes it
        media.MEDIA_TMP.name = tempfile.mkdtemp("wandb-media")


if __name__ == "__main__":
    main(*sys.argv[1:])
