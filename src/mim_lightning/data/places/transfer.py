"""Files of a store brought to this machine: time limits, bounded retries, and one line about what went wrong.

An address comes in, a file or its bytes go out; `shard_cache`, `shards.files` and `prepared` call it. Whatever a store
does, answer 500, say nothing, break off, a call ends: nothing that fsspec promises of time limits is relied on.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mim_lightning.io.paths import EXTRAS

BACKOFF, MAX_PAUSE = 0.5, 10.0  # seconds before the second try, doubled for every further one up to the longest
MAX_REASON = 200  # characters of a store's own words

Check = Callable[[Path], None]  # raises ValueError where a file is not what it should be


class ShardError(ValueError):
    """A shard, or a sample in it, cannot be read; names the file."""


class ChangedError(ValueError):
    """A set is not any more what was opened: whoever reads it must not mix the two. It is no damage to be skipped."""


def changed(place: str, what: str = "was prepared again with other content") -> ChangedError:
    """Return the error for a set that is not any more what was opened at a place."""
    return ChangedError(
        f"{place}: {what} since it was opened; what was read before and what would be read now are two data sets: "
        "start again, which is another run where the content is another"
    )


class MissingError(ShardError):
    """There is no such file."""


@dataclass(frozen=True)
class Patience:
    """How long a store is waited for.

    Args:
        timeout: seconds without a byte after which a try is given up.
        retries: further tries after the first, each after a longer pause.
    """

    timeout: float = 60.0
    retries: int = 3

    @property
    def seconds(self) -> float:
        """How long it may take until a store that says nothing is given up."""
        return (self.retries + 1) * self.timeout + sum(_longest_pause(number) for number in range(1, self.retries + 1))


def fetch(address: str, path: Path, patience: Patience, check: Check | None = None) -> Path:
    """Bring a file here and return where it lies: beside `path`, under a name of its own for each try.

    A try that was given up may still be writing: it must not meet the next one.

    Raises:
        MissingError: there is no such file.
        ShardError: it did not come whole; says why the last try failed.
    """
    reason = ""
    for attempt in range(patience.retries + 1):
        if attempt:
            time.sleep(_longest_pause(attempt) * random.uniform(0.5, 1))
        target = path.with_name(f"{path.name}.try{attempt}")
        try:
            _download(address, target, patience.timeout)
            if check is not None:
                check(target)
            return target
        except ShardError:
            raise
        except FileNotFoundError:
            raise MissingError(f"{address}: there is no such file") from None
        except (PermissionError, ImportError) as error:  # another try would end like this one
            raise ShardError(f"{address}: {_told(error, address)}") from error
        except Exception as error:  # stores have exceptions of their own
            reason = _told(error, address)
            target.unlink(missing_ok=True)
    raise ShardError(f"{address}: {reason} (tried {patience.retries + 1} times)")


def fetch_bytes(address: str, patience: Patience) -> bytes:
    """Return the content of a small file.

    Raises:
        MissingError, ShardError: as `fetch`.
    """
    with tempfile.TemporaryDirectory() as folder:
        return fetch(address, Path(folder) / "file", patience).read_bytes()


def size_of(address: str, patience: Patience) -> int | None:
    """Return the bytes of a file as the store tells them; None if it does not."""
    try:
        size = _within(lambda: open_system(address, patience.timeout).info(address)["size"], patience.timeout)
    except Exception:  # whoever fetches the file will hear of it
        return None
    return None if size is None else int(size)


def folders_in(address: str, patience: Patience) -> list[str]:
    """Return the names of what lies in a folder of a store, none where it has no such folder or does not tell."""
    try:
        found = _within(lambda: open_system(address, patience.timeout).ls(address, detail=False), patience.timeout)
    except Exception:  # plain web servers list nothing
        return []
    own = address.rstrip("/").rsplit("/", 1)[-1]
    names = (str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)
    return sorted({name for name in names if name} - {own})


def open_system(address: str, timeout: float) -> Any:
    """Return fsspec's file system of an address; one a process, for connections do not outlive a fork.

    Raises:
        ShardError: there is none such.
        ImportError: an extra is missing.
    """
    return _open_system("/".join(address.split("/")[:3]), timeout, os.getpid())


@lru_cache(maxsize=64)
def _open_system(root: str, timeout: float, process_id: int) -> Any:
    import fsspec

    timeout = 1.5 * timeout + 1  # ours comes first; this ends what was given up
    protocol = root.split("://", 1)[0]
    settings = fsspec.config.conf.get(protocol, {})
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        # one stream, whose progress can be seen; several parts at once would also be held in memory
        limits = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 0}}
        options = {"config_kwargs": {**settings.get("config_kwargs", {}), **limits}, "max_concurrency": 1}
    elif protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        limits = {"timeout": ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)}
        options = {"client_kwargs": {**settings.get("client_kwargs", {}), **limits}}
    try:
        system, _ = fsspec.core.url_to_fs(root, skip_instance_cache=True, use_listings_cache=False, **options)
    except ValueError as error:
        raise ShardError(f"{root}: cannot be opened ({error})") from error
    if hasattr(system, "retries"):  # of s3fs and gcsfs: every try is one of ours
        system.retries = 1
    return system


def _download(address: str, path: Path, timeout: float) -> None:
    from fsspec.callbacks import Callback

    class Progress(Callback):
        moved = time.monotonic()

        def relative_update(self, inc: int = 1) -> None:
            self.moved = time.monotonic()

    progress = Progress()
    _within(
        lambda: open_system(address, timeout).get_file(address, str(path), callback=progress),
        timeout,
        lambda: progress.moved,
    )


def _within(call: Callable[[], Any], timeout: float, moved: Callable[[], float] | None = None) -> Any:
    """Call in a thread of its own, and leave it alone when nothing has moved for `timeout` seconds."""
    started, done = time.monotonic(), threading.Event()
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = call()
        except BaseException as error:
            outcome["error"] = error
        finally:
            done.set()

    threading.Thread(target=run, name="transfer", daemon=True).start()
    while not done.wait(min(0.5, timeout / 4)):
        if time.monotonic() - (moved() if moved is not None else started) > timeout:
            raise TimeoutError(f"the store has sent nothing for {timeout:g} s")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def _longest_pause(attempt: int) -> float:
    return min(BACKOFF * 2 ** (attempt - 1), MAX_PAUSE)


def _told(error: BaseException, address: str) -> str:
    """Return what an exception says, in one line."""
    protocol = address.split("://", 1)[0]
    if isinstance(error, ImportError) and protocol in EXTRAS:
        return f"{protocol}:// needs an extra: pip install 'mim-lightning[{EXTRAS[protocol]}]'"
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:MAX_REASON]
