"""Run an entry point in several processes of this machine, each with the same frozen config.

Lightning would start processes by repeating the command line, which starts a multirun again inside each of them. Run as
a module this is torchrun, with its errors in one line instead of forty.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_lightning.allocator import keep_freed_memory
from mim_lightning.cli import ERROR_FILE, FROZEN_CONFIG, STACK_FILE
from mim_lightning.config import save_config
from mim_lightning.errors import LOST_PROCESS, ChildError, ErrorReport, read_error, write_error
from mim_lightning.interruption import GRACE, Interruption, exit_after

ANSWER_FILE = "answer.json"  # beside the frozen config
OTHER_LAUNCHERS = ("LOCAL_RANK", "OMPI_COMM_WORLD_RANK")  # set in the processes that torchrun and others start


def is_alone() -> bool:
    """Is this process no rank of a launcher, so that it may prepare data and launch others?"""
    # SLURM sets its variables in every job; only several tasks are several processes
    in_slurm_task = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    return not in_slurm_task and not any(name in os.environ for name in OTHER_LAUNCHERS)


def is_first_rank() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"))


def is_launched() -> bool:
    """Is this one of the processes that `launch` started?"""
    return FROZEN_CONFIG in os.environ


def is_joined() -> bool:
    """Is this one of several processes that another launcher started, and which have to agree?"""
    return not is_alone() and not is_launched()


def num_processes_to_launch(trainer: Mapping[str, Any]) -> int:
    """Return how many processes to launch; 0: train in this one."""
    if not is_alone() or str(trainer["num_nodes"]) not in ("0", "1"):
        return 0
    devices, num_gpus = trainer["devices"], _num_gpus() if _is_on_gpu(trainer["accelerator"]) else None
    if isinstance(devices, list) and num_gpus is not None:
        count = len(devices)
    elif devices in ("auto", -1, "-1") and (num_gpus is not None or devices == "auto"):
        count = num_gpus or 1
    elif type(devices) is not bool and str(devices).isdecimal() and int(devices) > 0:
        count = int(devices)
    else:
        wanted = "a number of processes" if num_gpus is None else "a number, auto, or a list such as [0,1]"
        raise ValueError(f"trainer.devices={'null' if devices is None else devices}: give {wanted}")
    if num_gpus is not None and count > num_gpus:
        raise ValueError(f"trainer.devices={devices}: this machine has {num_gpus} GPUs")
    return count if count > 1 else 0


def choose_precision(trainer: Mapping[str, Any]) -> str:
    """Return the precision for `auto`: bfloat16 on a GPU, float32 elsewhere.

    On CPUs bfloat16 convolutions gain little in the backward pass, and are several times slower when loader workers
    share the cores.
    """
    if trainer["precision"] not in ("auto", None):
        return str(trainer["precision"])
    return "bf16-mixed" if _is_on_gpu(trainer["accelerator"]) else "32-true"


def set_up_process(config: Mapping[str, Any], device: str) -> None:
    """Apply what a config says of the process and not of the model: before anything large is allocated.

    Args:
        device: "auto", or one of Lightning's accelerators or torch's devices.
    """
    if config["reuse_memory"] and not _is_on_gpu(device):
        keep_freed_memory()


def _is_on_gpu(device: str) -> bool:
    return device.startswith(("gpu", "cuda")) or (device == "auto" and _num_gpus() > 0)


def _num_gpus() -> int:
    import torch  # late: it takes seconds, and worker processes import the entry point again

    return torch.cuda.device_count()


def hand_back(answer: Any) -> None:
    """Give plain values to the process that launched this one, if one did; the first rank alone calls it."""
    if is_launched():
        Path(os.environ[FROZEN_CONFIG]).with_name(ANSWER_FILE).write_text(json.dumps(answer))


def launch(module: str, config: Mapping[str, Any], num_processes: int) -> Any:
    """Run `python -m <module>` in processes that read the frozen config, wait for all, and return what one hands back.

    Raises:
        ChildError: one of them failed; has its report.
    """
    cores = str(max(1, (os.cpu_count() or 1) // num_processes))
    time_to_stop = _time_to_stop(config)
    command = [sys.executable, "-m", __name__, "--standalone", f"--nproc-per-node={num_processes}"]
    command.append(f"--shutdown-timeout={time_to_stop:.0f}")
    with tempfile.TemporaryDirectory() as folder:
        frozen = Path(folder) / "config.yaml"
        save_config(config, frozen)
        environment = {"OMP_NUM_THREADS": cores, **os.environ, FROZEN_CONFIG: str(frozen)}
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules, no shell
            [*command, "-m", module],
            env=environment,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            close_fds=False,  # the processes that write into the run inherit its lock
            start_new_session=True,  # Ctrl-C reaches this process only, which forwards it
        )
        try:
            code = process.wait()
        except BaseException as error:
            signum = error.signum if isinstance(error, Interruption) else signal.SIGTERM
            if isinstance(error, Interruption):
                exit_after(time_to_stop + GRACE, signum)
            process.send_signal(signum)
            process.wait()  # torchrun kills what does not end
            left = read_error(Path(folder) / ERROR_FILE)
            if isinstance(error, Interruption) and left is not None and left.kind == Interruption.__name__:
                error.where = left.reason
            raise
        report, answer = read_error(Path(folder) / ERROR_FILE), Path(folder) / ANSWER_FILE
        handed_back = json.loads(answer.read_text()) if answer.exists() else None
    if code:
        if report is not None and report.kind == Interruption.__name__:  # one of the processes got a signal
            raise Interruption(signal.SIGTERM, report.reason)
        died = ErrorReport("ChildProcessError", f"the {num_processes} processes ended with code {code}")
        raise ChildError(report or died)
    return handed_back


def _time_to_stop(config: Mapping[str, Any]) -> float:
    """Return the seconds that processes may take from a signal to their end."""
    preemption = (config.get("callbacks") or {}).get("preemption") or {}
    return GRACE + sum(float(preemption.get(key) or 0) for key in ("patience", "save_patience"))


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, also when that was killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _run_torchrun() -> None:
    logging.disable()  # of torchrun only; its processes have their own
    from torch.distributed import run

    timeout = next(word for word in sys.argv if word.startswith("--shutdown-timeout="))
    if timeout.partition("=")[0] not in run.get_args_parser()._option_string_actions:  # an older torch
        sys.argv.remove(timeout)
    try:
        run.main()
    except Exception as error:
        if type(error).__name__ == "SignalException":  # asked to end, as its processes were
            sys.exit(1)
        if type(error).__name__ != "ChildFailedError":
            raise
        # a process that failed has written why; one that was killed could not, but others that lost it may have
        rank, fault = error.get_first_failure()  # type: ignore[attr-defined]
        killed = [item for item in error.failures.items() if item[1].exitcode < 0]  # type: ignore[attr-defined]
        path = Path(os.environ[FROZEN_CONFIG]).with_name(ERROR_FILE)
        report = read_error(path)
        said = ""
        if report is not None and killed and _caused(killed[0][1].exitcode, report):
            (rank, fault), *_ = killed
            path.unlink()
            if report.kind in LOST_PROCESS:
                said = f"; another process: {report.reason}"  # most often that it lost this one
        elif (stack := path.with_name(STACK_FILE)).exists():
            sys.stderr.write(stack.read_text())
        reason = f"process {rank} died with exit code {fault.exitcode} {fault.signal_name()}".strip() + said
        write_error(path, ErrorReport("ChildProcessError", reason))
        sys.exit(1)


def _caused(exitcode: int, report: ErrorReport) -> bool:
    """Return whether the death of a process is why another failed: it lost that one, or torchrun stopped it then."""
    is_stopped = report.kind == Interruption.__name__ and -exitcode not in (signal.SIGTERM, signal.SIGINT)
    return report.kind in LOST_PROCESS or is_stopped


if __name__ == "__main__":
    _run_torchrun()
