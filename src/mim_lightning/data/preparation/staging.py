"""The folder in which data are prepared until they are whole: one name, one process, kept if it is interrupted.

A target folder and the description of what is to stand there come in; the caller fills the partial folder beside it,
which `move_into_place` renames at the end. A process that dies leaves it behind, and the next one goes on there. The
kernel lets go of the lock when its holder ends, however it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mim_lightning.data.shards.set_writer import MARKERS
from mim_lightning.io.locks import is_same_file, try_lock
from mim_lightning.io.store import Store

MAKING_FILE = "making.json"  # what is being made here, and by which process
SETTINGS_FILE = "settings.json"  # of prepared data, written last: its presence means complete
LOCK_FILE = "lock"
FACTS_FILE = "pictures.jsonl"  # what the check knows of pictures: true for whatever is made of them
OUR_NAMES = ("catalogue", "queries", MARKERS, "skipped.csv", MAKING_FILE)
POLL_S = 0.5  # seconds


def partial_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


@contextmanager
def partial_work(folder: Path, described: Mapping[str, Any], *, force: bool) -> Iterator[Path]:
    """Hold the partial folder of `folder`, with what an interrupted process has finished of the same work.

    While another process does the same work there, this one waits, and says so. The folder is removed at the end
    if it was not moved into place and holds nothing worth going on with.

    Raises:
        ValueError: it holds finished shards of other work (and `force` does not discard them), or another process
            is doing other work there.
    """
    partial = partial_folder(folder)
    lock = _wait_for(partial, folder, described)
    try:
        _begin(partial, described, force)
        yield partial
    finally:
        is_wanted = _holds_shards(partial) or (partial / FACTS_FILE).is_file()
        if is_same_file(partial / LOCK_FILE, lock) and not is_wanted:
            shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


@contextmanager
def remote_work(address: str, described: Mapping[str, Any], *, force: bool) -> Iterator[str]:
    """Take an address for work that is finished there: in a store nothing can be renamed, and nobody can be kept out.

    Raises:
        ValueError: other things stand there, or finished shards of other work.
    """
    store = Store(address)
    there = json.loads(store.read(MAKING_FILE)) if store.exists(MAKING_FILE) else None
    found = store.names("")
    difference = first_difference(described, there["described"]) if there else None
    if difference is not None and MARKERS in found and not force:
        raise ValueError(_other_work(address, difference))
    if there is None and found and not (force and SETTINGS_FILE in found):
        raise ValueError(f"{address}: holds other things ({', '.join(found[:3])}); give an empty address")
    if there is None or difference is not None or SETTINGS_FILE in found:
        for name in (SETTINGS_FILE, *OUR_NAMES):  # the settings first: what they vouch for is going
            store.remove(name)
    store.write(MAKING_FILE, _making(described))
    yield address
    store.remove(MAKING_FILE)


def move_into_place(partial: Path, folder: Path, *, force: bool) -> None:
    """Rename the finished folder to its name; with `force`, what stands there is moved aside first and removed after.

    Raises:
        OSError: it could not be renamed, for one because another machine was faster.
    """
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if force and folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    for name in (FACTS_FILE, MAKING_FILE, LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(replaced, ignore_errors=True)


def first_difference(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return key, value there and value wanted where two descriptions differ first, or None."""
    for part, ours in wanted.items():
        theirs = there.get(part, {})
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                return key, theirs.get(key, "nothing, by an older version"), ours.get(key)
    return None


def _wait_for(partial: Path, folder: Path, described: Mapping[str, Any]) -> int:
    is_told = False
    while True:
        lock = try_lock(partial / LOCK_FILE)
        if lock is not None:
            return lock
        _refuse_other_work(partial, folder, described)
        if not is_told:
            print(f"{folder}: {_worker(partial)} is preparing it; waiting", file=sys.stderr, flush=True)
            is_told = True
        time.sleep(POLL_S)


def _begin(partial: Path, described: Mapping[str, Any], force: bool) -> None:
    there = _read_making(partial)
    difference = first_difference(described, there["described"]) if there else None
    if difference is not None:
        if _holds_shards(partial) and not force:
            raise ValueError(_other_work(partial, difference))
        _empty(partial)
    for path in partial.glob(".scratch-*"):  # of a process that was killed
        shutil.rmtree(path, ignore_errors=True)
    (partial / MAKING_FILE).write_bytes(_making(described))


def _making(described: Mapping[str, Any]) -> bytes:
    making = {"described": dict(described), "process": f"process {os.getpid()} on {socket.gethostname()}"}
    return json.dumps(making, indent=2).encode()


def _other_work(place: Path | str, difference: tuple[str, Any, Any]) -> str:
    key, found, wanted = difference
    return (
        f"{place}: holds an unfinished preparation with {key}={found}, asked for is {wanted}; finish that one, or "
        "discard it by overwrite=true"
    )


def _refuse_other_work(partial: Path, folder: Path, described: Mapping[str, Any]) -> None:
    there = _read_making(partial)
    difference = first_difference(described, there["described"]) if there else None
    if difference is not None:
        key, found, wanted = difference
        raise ValueError(
            f"{folder}: {_worker(partial)} is preparing it with {key}={found}, asked for is {wanted}; wait for it, or "
            "choose another data.folder"
        )


def _read_making(partial: Path) -> dict[str, Any]:
    try:
        return json.loads((partial / MAKING_FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not written yet, or not to its end
        return {}


def _worker(partial: Path) -> str:
    return _read_making(partial).get("process", "another process")


def _holds_shards(partial: Path) -> bool:
    return (partial / SETTINGS_FILE).is_file() or any((partial / MARKERS).rglob("*.npz"))


def _empty(partial: Path) -> None:
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in (LOCK_FILE, FACTS_FILE):
            path.unlink(missing_ok=True)
