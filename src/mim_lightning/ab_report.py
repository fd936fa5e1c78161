"""mim ab_report event_log=<database> experiment_name=<name>: the result of an online experiment.

Click-through rate by arm, lift with intervals and p-values, and validity warnings. With `baseline_rate=<rate>` in place
of `event_log`: the sample size that a new experiment needs. `write_clicks=<folder>` writes recorded queries, with what
they showed and what was clicked, as tables for `prepare data=clicks`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mim_lightning.cli import run_entry_point

NUMBERS = (
    "planned_users", "lift", "power", "alpha",
    "baseline_rate", "design_effect", "impressions_per_user", "num_comparisons",
)  # fmt: skip


def main() -> None:
    run_entry_point("ab_report", ab_report)


def ab_report(config: dict[str, Any]) -> None:
    """Print the report of an experiment, or a sample size, as tables or as JSON."""
    from mim_lightning.online.event_log import EventLog
    from mim_lightning.online.experiment_report import choose_experiment, make_report, to_json
    from mim_lightning.online.experiment_tables import print_report, print_size
    from mim_lightning.online.power import Plan, sample_size
    from mim_lightning.online.recorded_queries import write_clicks

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
        counts = log.counts(choose_experiment(config["experiment_name"], log.experiments(), log.name))
    report = make_report(counts, plan, config["control"], config["traffic_fractions"] or None)
    if config["json"]:
        print(json.dumps(to_json(report), indent=2))
    else:
        print_report(report)


if __name__ == "__main__":
    main()
