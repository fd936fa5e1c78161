"""mim serve index=<folder>: the search service and its user interface, on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_lightning.artifact_paths import validate_index, validate_model
from mim_lightning.cli import run_entry_point
from mim_lightning.config import construct
from mim_lightning.expected_types import validate_type
from mim_lightning.launch import set_up_process

VERBATIM_KEYS = ("index", "checkpoint", "event_log", "experiment_name", "query_photos")
EVENT_SECONDS = 2.0  # that a search waits for the event log


def main() -> None:
    run_entry_point("serve", serve, VERBATIM_KEYS)


def serve(config: dict[str, Any]) -> None:
    """Open the engines, then serve until stopped."""
    _validate_paths(config)
    try:
        from mim_lightning.search.service.request_limits import Limits
        from mim_lightning.search.service.search_service import open_service, read_arms
        from mim_lightning.search.service.server import Server
    except ImportError as error:
        raise ValueError(f"serve: install the extra: pip install 'mim-lightning[serve]' ({error.name})") from error
    validate_type("reuse_memory", config["reuse_memory"], bool)
    set_up_process(config, str(config["device"]))
    server = Server(config["host"], config["port"], config["forwarded_allow_ips"])
    limits, arms = construct("limits", Limits, **config["limits"]), read_arms(config)
    validate_type("record_queries", config["record_queries"], bool)
    photos = None if config["query_photos"] is None else Path(config["query_photos"])
    if config["record_queries"] and not config["experiment_name"]:
        raise ValueError("record_queries=true: queries are those of recorded impressions; give experiment_name too")
    if photos and not config["record_queries"]:
        raise ValueError(
            "query_photos: photos are those of recorded queries; give experiment_name and record_queries=true"
        )
    validate_type("detector", config["detector"], dict | None)
    detector = None
    if (config["detector"] or {}).get("weights") is not None:
        from mim_lightning.inference.detector import TorchvisionDetector

        detector = construct("detector", TorchvisionDetector, **config["detector"])
    service = open_service(config, arms, limits, open_experiment(config, arms), photos, detector)
    server.run(service, has_ui=config["ui"])


def _validate_paths(config: Mapping[str, Any]) -> None:
    """Raise a ValueError for an index or a model of an arm that is not there."""
    arms = config["arms"] if isinstance(config["arms"], dict) else {}
    for arm in (config, *(arm for arm in arms.values() if isinstance(arm, dict))):
        if arm.get("index") is not None:
            validate_index(arm["index"])
        if arm.get("checkpoint") is not None:
            validate_model(arm["checkpoint"])


def open_experiment(config: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> Any:
    """Open the experiment between arms; None: it has no name."""
    if config["experiment_name"] is None:
        return None
    from mim_lightning.online.assignment import Arm, Experiment, read_salt, validate_arms
    from mim_lightning.online.event_log import EventLog

    compared = {name: Arm(name, arm["traffic_fraction"]) for name, arm in arms.items()}
    validate_arms(compared)
    is_recorded = config["record_queries"]
    log = EventLog(config["event_log"], wait_seconds=EVENT_SECONDS, with_queries=is_recorded)
    return Experiment(config["experiment_name"], compared, read_salt(), log, is_recorded)


if __name__ == "__main__":
    main()
