"""What all doors share: compose, call, and tell a user's mistake in one line.

A config's name and a function come in; the function is called with plain containers. Whatever a user can mend ends
as one line on stderr and exit code 2; MIM_FULL_ERRORS=1 shows the call stack instead.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mim_lightning.config import Config, conf_dir, to_plain

FULL_ERRORS = "MIM_FULL_ERRORS"
FROZEN_CONFIG = "MIM_FROZEN_CONFIG"  # environment variable: a resolved config, for launched processes


def run_door(name: str, function: Callable[[Config], Any]) -> None:
    """Compose `conf/<name>.yaml` with the command line and call `function` with the result; report errors."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed by Hydra
    frozen = os.environ.get(FROZEN_CONFIG)

    def guarded(config: DictConfig) -> Any:
        # an exit from within: an exception on its way through Hydra is printed with the whole call stack
        try:
            return function(to_plain(config))
        except Exception as error:
            if FULL_ERRORS in os.environ or not _is_mendable(error):
                raise
            sys.exit(_fail(error, name))

    if frozen:
        # resolved before: nothing is left to compose
        guarded(OmegaConf.load(frozen))  # type: ignore[arg-type]
        return
    try:
        hydra.main(version_base="1.3", config_path=conf_dir(), config_name=name)(guarded)()
    except (CompactHydraException, OmegaConfBaseException) as error:
        sys.exit(_fail(error, name))


def _is_mendable(error: Exception) -> bool:
    kinds = (ValueError, ChildProcessError, CompactHydraException, OmegaConfBaseException)
    # Lightning's own word for a fault of configuration; its room is not ours to import from
    return isinstance(error, kinds) or type(error).__name__ == "MisconfigurationException"


def _fail(error: Exception, name: str) -> int:
    print(f"error: {_one_line(error, name)}", file=sys.stderr)
    return 2


def _one_line(error: Exception, name: str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Caught"):  # in a loader's worker, whose call stack is the message
        lines = [lines[-1].split("Error: ", 1)[-1]]
    text = " ".join(lines)
    match = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text)
    if match:
        return f"no config key '{match[1]}'{_hint(match[1], name)}"
    match = re.search(r"Could not find '([^']+)' Available options in '([^']+)': (.*)", text)
    if match:
        wanted, options = match[1].split("/")[-1], match[3].split()
        close = difflib.get_close_matches(wanted, options, 1)
        return f"no option '{wanted}' in config group '{match[2]}'; there are {', '.join(options)}" + (
            f"; did you mean '{close[0]}'?" if close else ""
        )
    return text


def _hint(key: str, name: str) -> str:
    """Return the existing keys that look most like a misspelt one."""
    key = key.split("@")[0]
    try:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
            known = list(_dotted_keys(OmegaConf.to_container(hydra.compose(name), resolve=False)))
    except (CompactHydraException, OmegaConfBaseException):
        return ""
    last = {path.rsplit(".", 1)[-1] for path in known}
    close = difflib.get_close_matches(key, known, 2, cutoff=0.75) or [
        path
        for word in difflib.get_close_matches(key.rsplit(".", 1)[-1], sorted(last), 1)
        for path in known
        if path.rsplit(".", 1)[-1] == word
    ]
    return f"; did you mean {' or '.join(repr(path) for path in close[:2])}?" if close else ""


def _dotted_keys(config: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            yield f"{prefix}{key}"
            yield from _dotted_keys(value, f"{prefix}{key}.")
