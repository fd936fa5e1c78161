"""mim calibrate index=<folder> [data_folder=<prepared data> split=val]: the probability of a score.

Searches for held-out queries, and keeps in the index how likely a hit with a score answers its query, and from which
score on anything in the index does: every later search says so. Made again when build_index changes the index.
"""

from __future__ import annotations

from typing import Any

from mim_lightning.artifact_paths import validate_index, validate_model
from mim_lightning.callable_module import make_callable
from mim_lightning.cli import run_entry_point
from mim_lightning.config import construct
from mim_lightning.expected_types import validate_type
from mim_lightning.next_command import print_next_service

VERBATIM_KEYS = ("index", "checkpoint", "data_folder")


def main() -> None:
    run_entry_point("calibrate", calibrate, VERBATIM_KEYS)


def calibrate(config: dict[str, Any]) -> None:
    """Calibrate an index and print a table of the kinds of queries."""
    for key in ("checkpoint", "data_folder", "split"):
        validate_type(key, config[key], str | None)
    validate_index(config["index"])
    if config["checkpoint"] is not None:
        validate_model(config["checkpoint"])
    from rich.console import Console
    from rich.table import Table

    from mim_lightning.index_calibration import CalibrationSettings, calibrate_index

    names = ("split", "num_queries", "num_hits", "false_alarm_rate", "seed")
    options = {name: config[name] for name in names} | {"folder": config["data_folder"]}
    found, lacking = calibrate_index(
        str(config["index"]), config["checkpoint"], construct("calibrate", CalibrationSettings, **options)
    )
    table = Table(title=str(config["index"]), title_justify="left", caption_justify="left")
    table.caption = (
        "fractions of held-out queries, with 95 % intervals; below the threshold, nothing here matches\n"
        "false alarms: queries that nothing answers, and that reach it; detected: queries that something answers"
    )
    table.add_column("query")
    for name in ("method", "error", "threshold", "false alarms", "detected", "queries"):
        table.add_column(name, justify="right")
    for kind, one in found.items():
        rates = (f"{rate.value:.3f} {rate.low:.2f} - {rate.high:.2f}" for rate in (one.false_alarms, one.detected))
        table.add_row(
            kind, one.method, f"{one.error:.3f}", f"{one.threshold:.3f}", *rates, f"{one.false_alarms.count:,}"
        )
    Console().print(table)
    for kind, reason in lacking.items():
        print(f"{kind} queries: {reason}")
    print_next_service(config["index"], config["checkpoint"])


make_callable(__name__, calibrate, VERBATIM_KEYS)

if __name__ == "__main__":
    main()
