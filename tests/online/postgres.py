"""A real PostgreSQL server in a folder of its own, for the tests that need one; it listens on no network."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

DEBIAN = Path("/usr/lib/postgresql")


@contextmanager
def running_server() -> Iterator[str]:
    """Start a server and give the folder of its socket and the user to connect as, as part of a URL's query."""
    programs, user = _programs(), _user()
    folder = Path(tempfile.mkdtemp(prefix="mim-postgres-", dir="/tmp"))  # a socket's path may have 107 characters
    if os.getuid() == 0:
        shutil.chown(folder, user)
    data = folder / "data"

    def call(program: str, *words: str) -> None:
        as_user = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []
        # no pipe for its output: the server keeps it open, and a reader would wait for its end
        subprocess.run(
            [*as_user, programs / program, "-D", data, *words],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )

    try:
        call("initdb", "-A", "trust", "-U", user, "--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C")
        options = f"-k {folder} -c listen_addresses='' -c shared_buffers=16MB -c fsync=off"
        call("pg_ctl", "start", "-w", "-t", "90", "-l", str(folder / "log"), "-o", options)
        yield f"host={folder}&user={user}"
    finally:
        with suppress(subprocess.CalledProcessError):
            call("pg_ctl", "stop", "-m", "immediate")
        shutil.rmtree(folder)


def _programs() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(path.parent for path in DEBIAN.glob("*/bin/initdb"))
    if not folders:
        pytest.skip("no PostgreSQL server on this machine (initdb)")
    return folders[-1]


def _user() -> str:
    """Return the user of the server: the current one, or another than root, as which initdb does not run."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid()).pw_name
    known = {entry.pw_name for entry in pwd.getpwall()}
    others = [name for name in ("postgres", "nobody") if name in known]
    if not others or shutil.which("runuser") is None:
        pytest.skip("initdb refuses root, and there is no other user to run it as")
    return others[0]
