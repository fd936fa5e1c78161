"""Sweeps of two jobs: what uninterrupted ones leave."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.processes import EntryPoint
from tests.campaign.training import OPTIONS
from tests.shop import small, write_shop

SEARCH = ["hydra/sweeper=optuna", "optim.lr=choice(1e-4, 1e-2)", "hydra.sweeper.n_trials=2"]
# both values, in any order: a search that is started again draws by other random numbers
SEARCH += ["hydra.sweeper.sampler={_target_: optuna.samplers.BruteForceSampler, seed: 1}"]
KINDS = {"sweep, grid": ["seed=1,2"], "sweep, Optuna": SEARCH}


@dataclass(frozen=True)
class WholeSweep:
    """Uninterrupted sweeps of each kind: their folder, and what they did."""

    shop: Path
    events: dict[str, list[str]]
    cpu: dict[str, float]

    def command(self, kind: str, runs: Path) -> list[str]:
        return ["-m", *small(self.shop, *OPTIONS, "trainer.max_epochs=1"), f"paths.runs={runs}", *KINDS[kind]]

    def runs(self, kind: str) -> Path:
        return self.shop / kind.replace(", ", "-")


def sweep_whole(shop: Path) -> WholeSweep:
    write_shop(shop / "shop", num_products=7)
    found = WholeSweep(shop, {}, {})
    for kind in KINDS:
        started = EntryPoint("train", found.command(kind, found.runs(kind)), shop / "scratch", [found.runs(kind)])
        assert started.wait() == 0, started.stderr
        found.events[kind], found.cpu[kind] = started.events(), started.cpu("main")
    return found


def jobs_of(runs: Path) -> list[dict[str, str]]:
    """Return the rows of the job log, by run id."""
    (path,) = (runs / "sweeps").glob("*/ledger.csv")
    with path.open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda job: job["run_id"])
