"""python -m mim_lightning.serve index=<folder>: the search service and its page, on loopback.

One process: requests wait on threads of their own while what they want encoded goes through the model together.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any

from mim_lightning.cli import run_door
from mim_lightning.config import construct
from mim_lightning.interruption import Interruption

FREE_TEXTS = ("index", "checkpoint", "events", "experiment_name")
API_KEY = "MIM_API_KEY"  # environment variable: a secret does not belong on a command line
DEFAULT_ARM = "control"
OTHER_FILES = 256  # open ones besides connections: shards, uploads, the event log
EVENT_SECONDS = 2.0  # that a search waits for its event log


def main() -> None:
    run_door("serve", serve, FREE_TEXTS)


def serve(config: dict[str, Any]) -> None:
    """Open everything, then answer until asked to stop; requests at work are finished."""
    try:
        import uvicorn

        from mim_lightning.search.service.app import behind_gate, make_app
        from mim_lightning.search.service.client_address import Proxies
    except ImportError as error:
        raise ValueError(f"serve: install the extra: pip install 'mim-lightning[serve]' ({error.name})") from error

    # the encoder's thread takes the interpreter back after every operator, and waits so long for it if others are busy:
    # with 5 ms, the default, 32 clients get a quarter fewer answers
    sys.setswitchinterval(0.0005)
    api_key = read_api_key()
    proxies = Proxies(config["forwarded_allow_ips"])
    if api_key is None and not is_loopback(config["host"]):
        print(
            f"warning: host={config['host']} lets other machines in, and {API_KEY} is not set: whoever reaches the "
            "port may search and read the metrics",
            file=sys.stderr,
            flush=True,
        )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # or each broken form is a line of the log
    listening = listen(config["host"], config["port"])  # first, for what is opened next takes a while
    shopfront = open_shopfront(config)
    app: Any = make_app(shopfront, has_key=api_key is not None)
    if config["page"]:
        from mim_lightning.search.service.page import mount_page

        app = mount_page(app, shopfront, api_key)
    host = f"[{config['host']}]" if ":" in config["host"] else config["host"]
    print(f"http://{host}:{listening.getsockname()[1]}  (API: /docs)", flush=True)
    allow_open_files(shopfront.limits.connections + OTHER_FILES)
    gated = behind_gate(app, shopfront, api_key, lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(gated, **uvicorn_settings(shopfront.limits, proxies)))
    with suppress(Interruption):  # asked to stop it does so, which is no failure
        server.run(sockets=[listening])


def uvicorn_settings(limits: Any, proxies: Any) -> dict[str, Any]:
    """Return uvicorn's settings: time and number of connections, and whose word on a client is believed."""
    from mim_lightning.search.service.connections import Connections

    return {
        "http": Connections(limits, lambda host: host in proxies).protocol(),
        "ws": "none",
        "timeout_keep_alive": limits.idle_seconds,
        "timeout_graceful_shutdown": 30,
        "proxy_headers": bool(proxies.names),  # uvicorn's default believes whoever comes from loopback
        "forwarded_allow_ips": proxies.names,
        "server_header": False,
        "log_level": "error",  # a warning for each request that is none would let strangers fill the log
    }


def allow_open_files(wanted: int) -> None:
    """Let this process open so many files, as far as it may: a connection is one, and the usual limit is 1024."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    may = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < may:
        resource.setrlimit(resource.RLIMIT_NOFILE, (may, hard))
    if may < wanted:
        print(f"warning: limits.connections needs {wanted} open files, of {may}; raise ulimit -n", file=sys.stderr)


def read_api_key() -> str | None:
    """Return the secret that requests must show, without the newline that a file of it ends in; None: there is none.

    Raises:
        ValueError: it is empty.
    """
    api_key = os.environ.get(API_KEY)
    if api_key is None:
        return None
    if not api_key.strip():
        raise ValueError(f"{API_KEY}: is empty, and would let everyone in; give a secret, or unset it")
    return api_key.rstrip("\r\n")


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Take the port; a port in use is told before anything is loaded."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ValueError(f"host={host} port={port}: cannot listen there ({error}); give another port") from error


def open_shopfront(config: Mapping[str, Any]) -> Any:
    """Open the engines of all arms, and the experiment if there is one."""
    from mim_lightning.search.product_images import ProductImages
    from mim_lightning.search.query import drop_null_weights
    from mim_lightning.search.searcher import open_searcher
    from mim_lightning.search.service.app import ROUTES
    from mim_lightning.search.service.batching import BatchingEncoder
    from mim_lightning.search.service.limits import Limits
    from mim_lightning.search.service.pixel_budget import PixelBudget
    from mim_lightning.search.service.shopfront import Engine, Shopfront
    from mim_lightning.search.service.telemetry import Telemetry

    limits = construct("limits", Limits, **config["limits"])
    telemetry = Telemetry(ROUTES)
    encoder = partial(
        BatchingEncoder,
        max_batch_size=config["max_batch_size"],
        on_batch=telemetry.observe_batch,
        budget=PixelBudget(limits.pixels_in_work),
    )
    arms, engines = arms_of(config), {}
    for name, arm in arms.items():
        searcher = open_searcher(
            arm["index"],
            arm["checkpoint"],
            drop_null_weights(arm["weights"]),
            encoder,
            device=config["device"],
            precision=config["precision"],
            runtime=config["runtime"],
        )
        engines[name] = Engine(name, searcher, ProductImages(searcher.index.card))
    return Shopfront(engines, limits, telemetry, open_experiment(config, arms))


def arms_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every arm with all of its settings; `control` comes first."""
    own = {key: config[key] for key in ("index", "checkpoint", "weights", "share")}
    arms = {DEFAULT_ARM: own}
    for name, arm in (config["arms"] or {}).items():
        unknown = sorted(set(arm or {}) - set(own))
        if unknown:
            raise ValueError(f"arms.{name}.{unknown[0]}: no such key; an arm has {', '.join(own)}")
        if arm is not None:
            arms[name] = {**own, "share": 1, **arm, "weights": {**own["weights"], **arm.get("weights", {})}}
            if "index" in arm and "checkpoint" not in arm:
                arms[name]["checkpoint"] = None  # another index has its own model
    return arms


def open_experiment(config: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> Any:
    """Open the experiment between arms, if it has a name."""
    if config["experiment_name"] is None:
        return None
    from mim_lightning.online.assignment import Arm, Experiment, read_salt, validate_arms
    from mim_lightning.online.event_log import EventLog

    shares = {name: Arm(name, arm["share"]) for name, arm in arms.items()}
    validate_arms(shares)
    return Experiment(
        config["experiment_name"], shares, read_salt(), EventLog(config["events"], wait_seconds=EVENT_SECONDS)
    )


if __name__ == "__main__":
    main()
