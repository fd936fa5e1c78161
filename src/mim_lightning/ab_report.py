"""python -m mim_lightning.ab_report events=<database> experiment_name=<name>: what an online experiment found.

Click-through by arm, lift with intervals and p-values, and what casts doubt on them; with `base=<rate>` in place of
`events`, the sample size that a new experiment needs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from mim_lightning.door import run_door

NUMBERS = (
    "planned_users", "lift", "power", "alpha", "base", "design_effect", "impressions_per_user", "num_comparisons",
)  # fmt: skip


def main() -> None:
    run_door("ab_report", report)


def report(config: dict[str, Any]) -> None:
    """Print a report, or a sample size, as tables or as JSON; an event log is read, never written."""
    from mim_lightning.online.event_log import EventLog
    from mim_lightning.online.plan import Plan
    from mim_lightning.online.summary import as_plain, summarise
    from mim_lightning.online.terminal import print_report

    if find_spec("statsmodels") is None:
        raise ValueError("report: install the extra: pip install 'mim-lightning[online]'")
    _check_numbers(config)
    plan = Plan(config["lift"], config["power"], config["alpha"], config["planned_users"])
    if config["events"] is None:
        _report_size(config, plan)
        return
    with EventLog(str(config["events"]), create=False) as log:
        experiment = _choose(config["experiment_name"], log.experiments(), log.name)
        counts = log.counts(experiment)
    made = summarise(counts, plan, config["control"], config["shares"] or None)
    if config["json"]:
        print(json.dumps(as_plain(made), indent=2))
    else:
        print_report(made)


def _check_numbers(config: dict[str, Any]) -> None:
    values = {key: config[key] for key in NUMBERS} | {f"shares.{arm}": s for arm, s in (config["shares"] or {}).items()}
    for key, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key}={value}: must be a number")


def _report_size(config: dict[str, Any], plan: Any) -> None:
    from mim_lightning.online.sample_size import sample_size
    from mim_lightning.online.terminal import print_size

    if config["base"] is None:
        raise ValueError("events: needs a value; give events=<database>, or base=<rate> for a sample size")
    size = sample_size(**{key: config[key] for key in NUMBERS if key != "planned_users"})
    if config["json"]:
        print(json.dumps(asdict(size), indent=2))
    else:
        print_size(size, plan, f"at a base rate of {config['base']:g}")


def _choose(experiment: str | None, known: dict[str, int], name: str) -> str:
    """Return the experiment asked for, or the only one there is."""
    if not known:
        raise ValueError(f"events={name}: holds no impressions yet; there is nothing to report")
    if experiment is None and len(known) == 1:
        return next(iter(known))
    if experiment is None:
        raise ValueError(f"experiment_name: needs a value; there are {', '.join(known)}")
    if experiment not in known:
        raise ValueError(f"experiment_name={experiment}: was shown to nobody; there are {', '.join(known)}")
    return experiment


if __name__ == "__main__":
    main()
