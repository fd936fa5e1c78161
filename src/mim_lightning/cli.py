"""How an entry point on Hydra starts: compose a config, call a function, and report errors.

An error that the user can fix ends as one line on stderr and exit code 2; MIM_FULL_ERRORS=1 adds the call stack. In a
sweep with a job log a failing job does not end the others: it returns an ErrorReport instead of its result.
"""

from __future__ import annotations

import gc
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mim_lightning.command import FULL_ERRORS
from mim_lightning.config import (
    Config,
    compose,
    conf_dir,
    listed_sections,
    load_config,
    to_plain,
    warn_of_former_name,
)
from mim_lightning.config_groups import describe_groups
from mim_lightning.display.text import error_text, escape_unprintable
from mim_lightning.errors import LOST_PROCESS, ErrorReport, hint_at, is_user_error, to_error_report, write_error
from mim_lightning.former_names import present_overrides
from mim_lightning.interruption import Interruption, interruptible
from mim_lightning.io.os_errors import lacks_descriptors
from mim_lightning.overrides import open_up

FROZEN_CONFIG = "MIM_FROZEN_CONFIG"  # environment variable: a resolved config, for launched processes
OWN_CONFIGS = ("--config", "-cd", "-cn", "-cp", "hydra.searchpath")  # with which users add their own conf/
DATA_VARIABLES = ("MIM_PREPARED_DIR", "MIM_DATA_DIR")  # of conf/paths, without which a command finds other data
ERROR_FILE = "failure.json"  # beside the frozen config: the error of a launched process
NOT_QUOTED = re.compile(r"[\w./@:+-]+", re.ASCII)  # a path that Hydra's grammar takes as it is
STACK_FILE = "stack.txt"  # likewise: its call stack, where the loss of another process may be the cause


def run_entry_point(
    name: str, function: Callable[[Config], Any], verbatim_keys: Sequence[str] = (), resumes: bool = False
) -> None:
    """Compose `conf/<name>.yaml` with the command line, call `function` with the result, and report errors.

    Args:
        name: of the config.
        function: of plain containers.
        verbatim_keys: keys whose values are free text or paths: taken as they are, with commas and quotes.
        resumes: whether the same command always resumes after an interruption.
    """
    # before torch loads OpenMP: its threads wait for each other by spinning, milliseconds at the end of every small
    # product, and where other processes want the cores, for a thread that does not run
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    escape_unprintable()
    try:
        with interruptible():
            _run(name, function, verbatim_keys)
    except Interruption as stopped:
        frozen = os.environ.get(FROZEN_CONFIG)
        if frozen:  # the process that launched this one reports it
            write_error(Path(frozen).with_name(ERROR_FILE), ErrorReport(Interruption.__name__, stopped.where))
            _exit_at_once(128 + stopped.signum)
        sys.stdout.flush()
        more = "; the same command resumes" if resumes or stopped.resumes else ""
        print(stopped.describe() + more, file=sys.stderr, flush=True)
        sys.exit(stopped.code)


def _run(name: str, function: Callable[[Config], Any], verbatim_keys: Sequence[str]) -> None:
    if {"-m", "--multirun"} & {*sys.argv}:
        verbatim_keys = ()  # there a comma separates the values of a sweep
    sys.argv[1:] = _to_overrides(name, sys.argv[1:], verbatim_keys)
    if FROZEN_CONFIG not in os.environ:
        try:
            validate_options(name, sys.argv[1:])
            validate_keys(sys.argv[1:])
            validate_sections(name, sys.argv[1:])
            validate_groups(sys.argv[1:])
        except ValueError as error:
            _exit(error, name)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed by Hydra
    frozen = os.environ.get(FROZEN_CONFIG)
    if frozen:
        _run_frozen(Path(frozen), name, function)
        return

    is_composed = False

    def guarded(config: DictConfig) -> Any:
        nonlocal is_composed
        is_composed = True
        # exit in here: Hydra prints an exception that passes through it with the whole call stack
        try:
            with interruptible():
                return function(to_plain(config, name))
        except Exception as caught:
            error = _naming_removed(caught)
            if not _is_recorded():
                _exit(error, name)
            if FULL_ERRORS in os.environ:
                traceback.print_exc()
            report = to_error_report(error, name)  # for the job log
        gc.collect()  # the failed job's model, before the next one needs its memory
        return report

    OmegaConf.register_new_resolver("groups", lambda: describe_groups(name), replace=True)  # of conf/, for --help
    try:
        hydra.main(version_base="1.3", config_path=conf_dir(), config_name=name)(guarded)()
    except Exception as error:
        if isinstance(error, RecursionError) and not is_composed:
            error = ValueError("a defaults list leads back to its own config, or values are nested too deep")
        _exit(error, name)
    leave_process_group()


def compose_arguments(name: str, arguments: Sequence[str], verbatim_keys: Sequence[str] = ()) -> Config:
    """Return the config that `conf/<name>.yaml` and the arguments of a command line compose, for a call from Python.

    Raises:
        ValueError: an unknown key or option, or a value that is missing or not valid; the line that the command prints.
    """
    overrides = _to_overrides(name, arguments, verbatim_keys)
    try:
        validate_keys(overrides)
        validate_sections(name, overrides)
        validate_groups(overrides)
        return compose(name, overrides)
    except Exception as error:
        if not is_user_error(error):
            raise
        raise ValueError(to_error_report(error, name).reason) from None


def _to_overrides(name: str, arguments: Sequence[str], verbatim_keys: Sequence[str]) -> list[str]:
    present = present_overrides(arguments, name, warn_of_former_name)
    return open_up(quote_value(argument, verbatim_keys) for argument in present)


def validate_options(name: str, arguments: Sequence[str]) -> None:
    """Check the options among the arguments, such as --multirun: Hydra's parser prints all that it has in an error.

    Raises:
        ValueError: one that Hydra does not have, or without its value; names it.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; see mim {name} --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    if {"--version"}.isdisjoint(arguments):  # which would end here
        parser.parse_args(arguments)


def validate_keys(arguments: Sequence[str]) -> None:
    """Check that no key of an override has an empty part: Hydra would look for a section without a name.

    Raises:
        ValueError: one has; names it.
    """
    for argument in arguments:
        key, is_given, _ = argument.lstrip("+~").partition("=")
        is_path = not is_given and ("/" in key or key.startswith("."))  # -cd own/..
        if re.fullmatch(r"[\w./@]+", key) and "" in key.split(".") and not is_path:
            raise ValueError(f"'{argument}': the key has nothing beside a dot; give <section>.<key>=<value>")


def validate_sections(name: str, arguments: Sequence[str]) -> None:
    """Check that overrides add no section that nothing reads: Hydra's "+" accepts a misspelt key silently.

    Raises:
        ValueError: an unknown section; names the key and the closest one.
    """
    if any(argument.startswith(OWN_CONFIGS) for argument in arguments):
        return  # the user's own sections
    values = "\n".join(argument.partition("=")[2] for argument in arguments)
    known: set[str] | None = None
    for argument in arguments:
        key = argument.lstrip("+").partition("=")[0]
        section = re.split(r"[.@/]", key)[0]
        is_group = "." not in key and (Path(conf_dir()) / key.partition("@")[0]).is_dir()
        is_looked_up = re.search(rf"\$\{{(oc\.select:)?{re.escape(section)}\b", values)
        if not argument.startswith("+") or is_group or is_looked_up or section == "hydra":
            continue
        known = known or listed_sections(name) | {re.split(r"[=@/]", other)[0] for other in arguments}
        if section not in known:
            raise ValueError(f"no config key '{key}'{hint_at(key, name)}")


def validate_groups(arguments: Sequence[str]) -> None:
    """Check that no override sets a config group to the name of an option, as a key: only `/` chooses the option.

    Raises:
        ValueError: one does; names the override that chooses it.
    """
    for argument in arguments:
        key, _, option = argument.lstrip("+").partition("=")
        group = key.replace(".", "/")
        if (
            "." in key
            and re.fullmatch(r"[\w-]{1,64}", option)
            and (Path(conf_dir()) / group / f"{option}.yaml").is_file()
        ):
            raise ValueError(f"{key}={option}: {group} is a group of options; choose one by {group}={option}")


def quote_value(argument: str, names: Sequence[str]) -> str:
    """Quote the value of "<name>=<value>" for Hydra's grammar; lists, null and what is quoted stay as they are."""
    name, is_given, value = argument.partition("=")
    is_list_or_quoted = (value[:1], value[-1:]) in (("[", "]"), ("'", "'"), ('"', '"'))
    if name not in names or not is_given or value in ("", "null") or is_list_or_quoted:
        return argument
    return f"{name}={QuotedString(value.replace('${', chr(92) + '${'), Quote.single).with_quotes()}"


def _run_frozen(path: Path, name: str, function: Callable[[Config], Any]) -> None:
    """Call `function` with a config that is already composed, in a launched process of a run."""
    try:
        with interruptible():
            function(load_config(path))
    except Exception as error:
        report = to_error_report(error, name)
        is_first = write_error(path.with_name(ERROR_FILE), report)
        if FULL_ERRORS in os.environ:
            raise
        if not is_first:  # the end of the process that was first broke a collective of this one
            _exit_at_once(2)
        if report.kind in LOST_PROCESS:  # the process that launched this one knows whether another was killed
            path.with_name(STACK_FILE).write_text(traceback.format_exc())
            _exit_at_once(2)
        if not is_user_error(error):
            raise
        sys.exit(2)  # the process that launched this one reports the reason
    leave_process_group()


def command_line(name: str) -> str | None:
    """Return the command line of this config, or of a sweep's job, for a shell: folder, folders of data, command.

    None where Hydra did not start, and of a search's job: it goes on by the search, and its trial may hold a password.
    """
    if not HydraConfig.initialized():
        return None
    words = given_arguments()
    if any(word.lstrip("+").startswith("trial=") for word in words):
        return None
    variables = [f"{key}={shlex.quote(os.environ[key])} " for key in DATA_VARIABLES if key in os.environ]
    command = shlex.join(["mim", name, *words])
    return f"cd {shlex.quote(HydraConfig.get().runtime.cwd)} && {''.join(variables)}{command}"


def given_arguments(*keys: str) -> list[str]:
    """Return the arguments of this command line, or of a sweep's job, as people write them; none in a call from Python.

    Args:
        keys: first parts of the keys to return, as "data" of data=manifest, data/splits=given and data.folder=shop;
            none: all.
    """
    if not HydraConfig.initialized():
        return []
    words = [word for word in HydraConfig.get().overrides.task if not word.startswith("sweep=")]
    # where `open_up` has marked a key
    plain = (word.removeprefix("++") for word in words)
    written = [short if open_up([short]) == [word] else word for short, word in zip(plain, words, strict=True)]
    wanted = [word for word in written if not keys or re.split(r"[=./@]", word.lstrip("+~"))[0] in keys]
    return [*_own_configs(sys.argv[1:]), *wanted]


def as_override(key: str, value: object) -> str:
    """Return "<key>=<path>" for Hydra's grammar: quoted where it would read the path as something else."""
    word = f"{key}={value}"
    return word if NOT_QUOTED.fullmatch(word, len(key) + 1) else quote_value(word, [key])


def is_job_of_sweep() -> bool:
    """Is this one of the jobs of a multirun, which says itself what comes after it?"""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _own_configs(arguments: Sequence[str]) -> list[str]:
    """Return the arguments by which a command line adds its own conf/: for Hydra they are no overrides of the task."""
    found, left = [], iter(arguments)
    for argument in left:
        if argument.startswith(OWN_CONFIGS):
            is_whole = "=" in argument or not argument.startswith("-")
            found += [argument] if is_whole else [argument, *islice(left, 1)]
    return found


def leave_process_group() -> None:
    """End the threads of a process group, if this process is in one, while the interpreter still runs.

    Lightning does so for NCCL only. A gloo thread that frees a tensor of the last collective while the interpreter
    shuts down is killed inside C++, which aborts the process: "terminate called without an active exception".
    After an error this is not called, so no process waits for the others.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _is_recorded() -> bool:
    """Is this a job of a sweep with a job log, which continues without it?"""
    return is_job_of_sweep() and "ledger" in HydraConfig.get().callbacks


def _naming_removed(error: Exception) -> Exception:
    """Return the KeyError of a key that the command line removed, "~trainer.devices", as that mistake."""
    removed = (argument[1:].partition("=")[0] for argument in sys.argv[1:] if argument.startswith("~"))
    key = next((key for key in removed if isinstance(error, KeyError) and key.split(".")[-1] in error.args), None)
    if key is None:
        return error
    named = ValueError(f"{key}: is required; give {key}=<value> instead of ~{key}")
    named.__cause__ = error
    return named


def _exit_at_once(code: int) -> NoReturn:
    """Exit where a collective is broken: its threads would block the end of the interpreter."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit(error: Exception, name: str) -> NoReturn:
    if FULL_ERRORS in os.environ or not is_user_error(error):
        raise error
    print(f"error: {error_text(to_error_report(error, name).reason)}", file=sys.stderr)
    if lacks_descriptors(error):
        # W&B needs file descriptors to clean up at the exit: those of the failed call, which is half-made and complains
        sys.unraisablehook = lambda _: None
        traceback.clear_frames(error.__traceback__)
        gc.collect()
    sys.exit(2)
