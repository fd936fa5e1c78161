"""Plant a lift, or none, in many simulated experiments; write table.md with the results, and report.txt of one.

python experiments/planted_lift/simulate.py experiments/planted_lift
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from mim_lightning.online.aggregates import UserSums
from mim_lightning.online.assignment import Arm
from mim_lightning.online.estimates import (
    Estimate,
    Interval,
    always_valid_interval,
    click_rate,
    design_effect,
    log_ratio,
)
from mim_lightning.online.event_log import EventLog
from mim_lightning.online.power import Plan, SampleSize, sample_size
from mim_lightning.online.simulation import (
    RELEVANCE,
    ClickModel,
    Relevance,
    simulate_events,
    simulate_lift,
    simulate_looks,
    simulate_sums,
)

MODEL, PLAN = ClickModel(), Plan()
LIFTED = simulate_lift(MODEL, RELEVANCE, PLAN.lift)
PLANTED = {PLAN.lift: LIFTED, 0.0: RELEVANCE}
UNASKED = {True: "-", False: f"at most {PLAN.alpha:g}"}  # by whether a lift was planted
NUM_LOOKS = 20  # until the planned size
AT_ONCE = 100  # simulated experiments: their users' rows are in memory together
SALT = "of users who are made up"


@dataclass(frozen=True)
class Row:
    """How often a statement holds in simulated experiments, and how often it should."""

    looks: str
    planted: float
    what: str
    asked: str
    found: np.ndarray  # bool, one for each experiment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="folder of the record")
    parser.add_argument(
        "--repeats", type=int, default=16_000, help="simulated experiments, an eighth of them where many looks are made"
    )
    arguments = parser.parse_args()
    size = plan_size()
    print(f"CTR {MODEL.click_rate(RELEVANCE):.4f}; {size}", flush=True)
    rng = np.random.default_rng(1)
    rows = [*looked_at_once(size, arguments.repeats, rng), *looked_at_often(size, arguments.repeats // 8, rng)]
    text = "\n".join(table(rows)) + "\n"
    (arguments.experiment / "table.md").write_text(text)
    print(text, flush=True)
    (arguments.experiment / "report.txt").write_text(report_of_one(size))


def plan_size() -> SampleSize:
    """Return the calculator's answer, from the rate and design effect of a pilot of 200,000 users."""
    pilot = simulate_sums(MODEL, RELEVANCE, 1, 200_000, np.random.default_rng(0))
    per_user = float(pilot.impressions[0] / pilot.num_users[0])
    base, effect = float(click_rate(pilot).value[0]), float(design_effect(pilot)[0])
    return sample_size(base, PLAN.lift, PLAN.power, PLAN.alpha, effect, per_user)


def looked_at_once(size: SampleSize, num_repeats: int, rng: np.random.Generator) -> Iterator[Row]:
    for planted, relevance in PLANTED.items():
        control, arm = (draw_once(r, num_repeats, size.num_users, rng) for r in (RELEVANCE, relevance))
        rates = click_rate(control), click_rate(arm)
        fixed, valid = log_ratio(*rates).interval(PLAN.alpha), always_valid(log_ratio(*rates))
        naive = log_ratio(independent(control, rates[0]), independent(arm, rates[1])).interval(PLAN.alpha)
        asked = f"{PLAN.power if planted else PLAN.alpha:g}"
        yield Row("1", planted, "fixed interval finds it", asked, finds(fixed, planted))
        yield Row("1", planted, "fixed interval holds the truth", f"{1 - PLAN.alpha:g}", ~excludes(fixed, planted))
        yield Row("1", planted, "always-valid interval finds it", UNASKED[planted > 0], finds(valid, planted))
        if not planted:
            yield Row("1", planted, "impressions taken for independent: finds it", asked, finds(naive, planted))


def looked_at_often(size: SampleSize, num_repeats: int, rng: np.random.Generator) -> Iterator[Row]:
    for times, returning in ((1, False), (1, True), (2, False)):
        looks = f"{times * NUM_LOOKS}, {'the same users come again' if returning else 'new users at each'}"
        looks += ", up to twice the size" if times == 2 else ""
        for planted, relevance in PLANTED.items():
            shape = times * NUM_LOOKS, times * size.num_users
            sides = [draw_looks(r, num_repeats, *shape, rng, returning) for r in (RELEVANCE, relevance)]
            ratio = log_ratio(*map(click_rate, sides))
            fixed, valid = ratio.interval(PLAN.alpha), always_valid(ratio)
            for name, interval in (("fixed", fixed), ("always-valid", valid)):
                asked = "-" if name == "fixed" else UNASKED[planted > 0]
                yield Row(
                    looks, planted, f"{name} interval finds it at some look", asked, ever(finds(interval, planted))
                )
            missed = ever(excludes(valid, planted))
            if planted:
                yield Row(looks, planted, "always-valid interval misses the truth at some look", UNASKED[False], missed)


def draw_once(relevance: Relevance, num_repeats: int, num_users: int, rng: np.random.Generator) -> UserSums:
    return joined([simulate_sums(MODEL, relevance, AT_ONCE, num_users, rng) for _ in range(num_repeats // AT_ONCE)])


def draw_looks(
    relevance: Relevance, num_repeats: int, num_looks: int, num_users: int, rng: np.random.Generator, returning: bool
) -> UserSums:
    rounds = range(num_repeats // AT_ONCE)
    return joined([simulate_looks(MODEL, relevance, AT_ONCE, num_looks, num_users, rng, returning) for _ in rounds])


def joined(parts: list[UserSums]) -> UserSums:
    return UserSums(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def independent(sums: UserSums, rate: Estimate) -> Estimate:
    return Estimate(rate.value, np.sqrt(rate.value * (1 - rate.value) / sums.impressions))


def always_valid(ratio: Estimate) -> Interval:
    return always_valid_interval(ratio, PLAN.mixture_scale, PLAN.alpha)


def excludes(interval: Interval, lift: float) -> np.ndarray:
    """Whether an interval of the log ratio leaves a lift out."""
    return (np.asarray(interval.low) > np.log1p(lift)) | (np.asarray(interval.high) < np.log1p(lift))


def finds(interval: Interval, planted: float) -> np.ndarray:
    """Whether a lift is found; where none was planted, whether a difference is, in either direction."""
    return np.asarray(interval.low) > 0 if planted else excludes(interval, 0)


def ever(at_look: np.ndarray) -> np.ndarray:
    return at_look.any(axis=1)


def table(rows: list[Row]) -> list[str]:
    lines = [
        "| looks | planted lift | | asked | found | 95 % | experiments |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        low, high = proportion_confint(row.found.sum(), len(row.found), method="wilson")
        lines.append(
            f"| {row.looks} | {100 * row.planted:+.2f} % | {row.what} | {row.asked} | {row.found.mean():.3f} "
            f"| [{low:.3f}, {high:.3f}] | {len(row.found)} |"
        )
    return lines


def report_of_one(size: SampleSize) -> str:
    """Return the report of one experiment of the planned size, end to end: users, event log, ab_report."""
    with tempfile.TemporaryDirectory() as folder:
        with EventLog(f"{folder}/events.db") as log:
            arms = {name: Arm(name) for name in ("control", "lifted")}
            relevance = {"control": RELEVANCE, "lifted": LIFTED}
            # by chance one arm gets fewer than half: a twentieth more, and both have the planned size
            simulate_events(log, MODEL, relevance, arms, "planted_lift", int(2.1 * size.num_users), SALT)
        command = [sys.executable, "-m", "mim_lightning.ab_report", f"event_log={folder}/events.db"]
        command.append(f"planned_users={size.num_users}")
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return "\n".join(line.rstrip() for line in report.strip().splitlines()) + "\n"


if __name__ == "__main__":
    main()
