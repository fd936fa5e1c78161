"""The staging directory of a preparation, `.<folder>.partial` beside the folder, renamed into place when complete.

One process works in it at a time, by a lock that the kernel releases when its holder ends. An interrupted process
leaves it behind, and the next one resumes there. At a URL, where nothing can be renamed or locked, data are staged in
place.
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
from mim_lightning.io.atomic import atomic_write
from mim_lightning.io.locks import is_same_file, try_lock
from mim_lightning.io.store import Store

WORK_FILE = "making.json"  # what is prepared here, and by which process; names on disk do not change
SETTINGS_FILE = "settings.json"  # of prepared data, written last: its presence means complete
SKIPPED_FILE = "skipped.csv"  # dropped rows and images
LOCK_FILE = "lock"
IMAGES_FILE = "pictures.jsonl"  # properties of inspected images; valid for any preparation
OUR_NAMES = ("catalogue", "queries", "image_hashes", MARKERS, SKIPPED_FILE, WORK_FILE)
POLL = 0.5  # seconds


def staging_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


@contextmanager
def staging_dir(folder: Path, described: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Lock the staging directory of `folder`, and keep what an interrupted process finished of the same preparation.

    Waits, and says so, while another process prepares the same. At the end the directory is removed unless it was moved
    into place or contains work to resume from.

    Raises:
        ValueError: it contains finished shards of another preparation (which `overwrite` discards), or another process
            prepares something else there.
    """
    staging = staging_path(folder)
    lock = _wait_for_lock(staging, folder, described)
    try:
        there = _read_work(staging)
        difference = first_difference(described, there["described"]) if there else None
        if difference is not None and _has_shards(staging) and not overwrite:
            raise ValueError(_other_work(staging, difference))
        if not there or difference is not None:
            _clear(staging)
        _remove_scratch(staging)
        with atomic_write(staging / WORK_FILE) as partial:  # a torn one would cost what is finished
            partial.write_bytes(_work(described))
        yield staging
    finally:
        is_wanted = _has_shards(staging) or (staging / IMAGES_FILE).is_file()
        if is_same_file(staging / LOCK_FILE, lock) and not is_wanted:
            shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


@contextmanager
def remote_staging(url: str, described: Mapping[str, Any], *, overwrite: bool) -> Iterator[str]:
    """Stage data at the URL where they are to be: a store has neither renames nor locks.

    Raises:
        ValueError: the URL has other files, or finished shards of another preparation.
    """
    store = Store(url)
    there = json.loads(store.read(WORK_FILE)) if store.exists(WORK_FILE) else None
    found = store.names("")
    difference = first_difference(described, there["described"]) if there else None
    if difference is not None and MARKERS in found and not overwrite:
        raise ValueError(_other_work(url, difference))
    if there is None and found and not (overwrite and SETTINGS_FILE in found):
        raise ValueError(f"{url}: contains other files ({', '.join(found[:3])}); give an empty URL")
    if there is None or difference is not None or SETTINGS_FILE in found:
        for name in (SETTINGS_FILE, *OUR_NAMES):  # settings first: they say that the rest is complete
            store.remove(name)
    store.write(WORK_FILE, _work(described))
    yield url
    store.remove(WORK_FILE)


def move_into_place(staging: Path, folder: Path, *, overwrite: bool) -> None:
    """Rename the complete staging directory to its folder; with `overwrite` a folder of that name is replaced.

    Raises:
        OSError: it could not be renamed, for example because another machine was faster.
    """
    _remove_scratch(staging)
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if overwrite and folder.exists():
        folder.rename(replaced)
    staging.rename(folder)
    for name in (IMAGES_FILE, WORK_FILE, LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(replaced, ignore_errors=True)


def first_difference(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return key, value there and value wanted where two descriptions first differ, or None."""
    for part, ours in wanted.items():
        theirs = there.get(part, {})
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                return key, theirs.get(key, "nothing, by an older version"), ours.get(key)
    return None


def _remove_scratch(staging: Path) -> None:
    """Remove what processes that were killed, on any machine, were writing."""
    for path in staging.glob(".scratch-*"):
        shutil.rmtree(path, ignore_errors=True)


def _wait_for_lock(staging: Path, folder: Path, described: Mapping[str, Any]) -> int:
    is_announced = False
    while (lock := try_lock(staging / LOCK_FILE)) is None:
        there = _read_work(staging)
        process = there.get("process", "another process")
        difference = first_difference(described, there["described"]) if there else None
        if difference is not None:
            key, found, wanted = difference
            raise ValueError(
                f"{folder}: {process} is preparing it with {key}={found}, this command has {wanted}; wait for it, or "
                "choose another data.folder"
            )
        if not is_announced:
            print(f"{folder}: {process} is preparing it; waiting", file=sys.stderr, flush=True)
            is_announced = True
        time.sleep(POLL)
    return lock


def _work(described: Mapping[str, Any]) -> bytes:
    work = {"described": dict(described), "process": f"process {os.getpid()} on {socket.gethostname()}"}
    return json.dumps(work, indent=2).encode()


def _read_work(staging: Path) -> dict[str, Any]:
    try:
        return json.loads((staging / WORK_FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not written yet, or not completely
        return {}


def _other_work(path: Path | str, difference: tuple[str, Any, Any]) -> str:
    key, found, wanted = difference
    return (
        f"{path}: contains an unfinished preparation with {key}={found}, this command has {wanted}; finish that one, "
        "or discard it by overwrite=true"
    )


def _has_shards(staging: Path) -> bool:
    return (staging / SETTINGS_FILE).is_file() or any((staging / MARKERS).rglob("*.npz"))


def _clear(staging: Path) -> None:
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in (LOCK_FILE, IMAGES_FILE):
            path.unlink(missing_ok=True)
