"""The server process of the search service: its port, API key, open files and the settings of uvicorn."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import uvicorn

from mim_lightning.interruption import Interruption
from mim_lightning.io.os_errors import lacks_descriptors
from mim_lightning.search.service.app import make_app
from mim_lightning.search.service.connections import Connections, Proxies
from mim_lightning.search.service.request_limits import Limits
from mim_lightning.search.service.search_service import SearchService

API_KEY = "MIM_API_KEY"  # environment variable: a secret does not belong on a command line
LOG = logging.getLogger(__name__)
OTHER_FILES = 256  # open files besides connections: shards, uploads, the event log


class Server:
    """A server that listens from the start, so that a port in use is reported before anything is loaded.

    Args:
        proxies: `forwarded_allow_ips` of the config.

    Raises:
        ValueError: the port cannot be used, `proxies` are no addresses, or the API key is empty.
    """

    def __init__(self, host: str, port: int, proxies: str | None) -> None:
        self.api_key, self.proxies = read_api_key(), Proxies(proxies)
        if self.api_key is None and not is_loopback(host):
            print(
                f"warning: host={host} accepts connections from other machines, and {API_KEY} is not set: anyone who "
                "reaches the port can search and read the metrics",
                file=sys.stderr,
                flush=True,
            )
        self.socket = listen(host, port)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.socket.getsockname()[1]}"

    def run(self, service: SearchService, has_ui: bool) -> None:
        """Serve until SIGINT or SIGTERM; requests that run are finished."""
        # the encoder's thread needs the interpreter again after every operator, and waits that long for it if others
        # are busy: with 5 ms, the default, 32 clients get a quarter fewer responses
        sys.setswitchinterval(0.0005)
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs each broken form
        app = make_app(service, self.api_key, has_ui, lambda: server.should_exit)
        print(f"{self.url}  (API: /docs)", flush=True)
        limits = replace(service.limits, connections=raise_file_limit(service.limits.connections))
        server = QuietServer(uvicorn.Config(app, **uvicorn_settings(limits, self.proxies)))
        with suppress(Interruption):  # a requested stop is no failure
            server.run(sockets=[self.socket])


class QuietServer(uvicorn.Server):
    """uvicorn's, with one line instead of a call stack where a connection finds no open file left."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_report_error)
        await super().startup(sockets)


def _report_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, Exception) and lacks_descriptors(error):
        LOG.error("too many open files: connections wait; raise ulimit -n")
    else:
        loop.default_exception_handler(context)


def uvicorn_settings(limits: Limits, proxies: Proxies) -> dict[str, Any]:
    return {
        "http": Connections(limits, proxies).protocol(),
        "ws": "none",
        "timeout_keep_alive": limits.idle_seconds,
        "timeout_graceful_shutdown": 30,
        "proxy_headers": bool(proxies.names),  # by default uvicorn trusts every client on loopback
        "forwarded_allow_ips": proxies.names,
        "server_header": False,
        "log_level": "error",  # a warning for each malformed request would let clients fill the log
    }


def raise_file_limit(num_connections: int) -> int:
    """Raise this process's limit of open files, as far as allowed: a connection is one, and the usual limit is 1024.

    Returns:
        how many connections are possible.
    """
    num_files = num_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed >= num_files:
        return num_connections
    possible = max(1, allowed - OTHER_FILES, allowed // 4)
    print(
        f"warning: limits.connections={num_connections} needs {num_files} open files, {allowed} are allowed: there are "
        f"{possible} connections; raise ulimit -n",
        file=sys.stderr,
        flush=True,
    )
    return possible


def read_api_key() -> str | None:
    """Return the API key, without the newline at the end of a file that it came from; None: no key is set.

    Raises:
        ValueError: it is empty.
    """
    api_key = os.environ.get(API_KEY)
    if api_key is None:
        return None
    if not api_key.strip():
        raise ValueError(f"{API_KEY}: is empty, which would accept every client; set a secret, or unset it")
    return api_key.rstrip("\r\n")


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ValueError(f"host={host} port={port}: cannot listen there ({error}); give another port") from error
