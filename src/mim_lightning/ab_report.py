"""python -m mim_lightning.ab_report event_log=<database> experiment_name=<name>: the result of an online experiment.

Click-through rate by arm, lift with intervals and p-values, and validity warnings. With `baseline_rate=<rate>` in place
of `event_log`: the sample size that a new experiment needs. `write_clicks=<folder>` writes recorded queries, with what
they showed and what was clicked, as tables for `prepare data=clicks`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_lightning.cli import run_entry_point
from mim_lightning.display.numbers import format_count
from mim_lightning.ids import hash_id
from mim_lightning.io.atomic import atomic_write

if TYPE_CHECKING:
    from mim_lightning.online.event_log import EventLog

NUMBERS = (
    "planned_users", "lift", "power", "alpha",
    "baseline_rate", "design_effect", "impressions_per_user", "num_comparisons",
)  # fmt: skip


def main() -> None:
    run_entry_point("ab_report", ab_report)


def ab_report(config: dict[str, Any]) -> None:
    """Print the report of an experiment, or a sample size, as tables or as JSON."""
    from mim_lightning.online.event_log import EventLog
    from mim_lightning.online.experiment_report import make_report, to_json
    from mim_lightning.online.experiment_tables import print_report, print_size
    from mim_lightning.online.power import Plan, sample_size

    if find_spec("statsmodels") is None:
        raise ValueError("ab_report: install the extra: pip install 'mim-lightning[online]'")
    values = {key: config[key] for key in NUMBERS} | {
        f"traffic_fractions.{arm}": s for arm, s in (config["traffic_fractions"] or {}).items()
    }
    for key, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key}={value}: must be a number")
    plan = Plan(config["lift"], config["power"], config["alpha"], config["planned_users"])
    if config["event_log"] is None:
        if config["baseline_rate"] is None:
            raise ValueError(
                "event_log: needs a value; give event_log=<database>, or baseline_rate=<rate> for a sample size"
            )
        size = sample_size(**{key: config[key] for key in NUMBERS if key != "planned_users"})
        if config["json"]:
            print(json.dumps(asdict(size), indent=2))
        else:
            print_size(size, plan, f"at a base rate of {config['baseline_rate']:g}")
        return
    with EventLog(str(config["event_log"]), create=False) as log:
        if config["write_clicks"] is not None:
            write_clicks(log, config["experiment_name"], Path(config["write_clicks"]))
            return
        counts = log.counts(_choose_experiment(config["experiment_name"], log.experiments(), log.name))
    report = make_report(counts, plan, config["control"], config["traffic_fractions"] or None)
    if config["json"]:
        print(json.dumps(to_json(report), indent=2))
    else:
        print_report(report)


def write_clicks(log: EventLog, experiment: str | None, folder: Path) -> None:
    """Write the tables of recorded queries; a tenth of them, by their ids, are the split val.

    Raises:
        ValueError: there is no query to write; tables of an earlier call stay.
    """
    queries = (
        (query_id, "val" if hash_id(query_id) % 10 == 0 else "train", photo, text)
        for query_id, text, photo in log.read_queries(experiment)
    )
    first, left_out = next(queries, None), log.count_left_out(experiment)
    others = "".join(f"; left out: {format_count(count, 'query')} {what}" for what, count in left_out.items())
    if first is None:
        of = f" of experiment_name={experiment}" if experiment else ""
        hint = others or "; serve with record_queries=true"
        raise ValueError(f"event_log={log.name}: has no recorded queries{of} to write{hint}")
    shown = ((*row[:-1], int(row[-1])) for row in log.read_shown(experiment))
    folder.mkdir(parents=True, exist_ok=True)
    # both are complete before either replaces a former one
    with atomic_write(folder / "queries.csv") as partial, atomic_write(folder / "impressions.csv") as other_partial:
        num_queries = _write_csv(partial, ("query_id", "split", "image", "text"), chain([first], queries))
        num_rows = _write_csv(other_partial, ("impression_id", "query_id", "product_id", "position", "clicked"), shown)
    print(f"{folder}: {format_count(num_queries, 'query')}, {format_count(num_rows, 'impression')}{others}")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    num_rows = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for num_rows, row in enumerate(rows, start=1):  # noqa: B007
            writer.writerow(row)
    return num_rows


def _choose_experiment(name: str | None, known: dict[str, int], log: str) -> str:
    """Return the named experiment, or the only one in the log."""
    if not known:
        raise ValueError(f"event_log={log}: contains no impressions yet; there is nothing to report")
    if name is None and len(known) == 1:
        return next(iter(known))
    if name is None:
        raise ValueError(f"experiment_name: needs a value; there are {', '.join(known)}")
    if name not in known:
        raise ValueError(f"experiment_name={name}: has no impressions; there are {', '.join(known)}")
    return name


if __name__ == "__main__":
    main()
