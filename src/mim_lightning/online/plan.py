"""What was settled before an experiment: the lift looked for, how sure one wants to be, and how many users that takes.

Values of the report's config come in; comparison, doubts and summary read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log1p


@dataclass(frozen=True)
class Plan:
    """Settled before the first user: what the data suggests afterwards is no plan."""

    lift: float = 0.0495  # relative, that the experiment shall find; default: what the MIM paper measured
    power: float = 0.8
    alpha: float = 0.05
    num_users: int | None = None  # of each arm; None: no size was planned

    def __post_init__(self) -> None:
        if self.lift == 0 or not -1 < self.lift <= 1:
            raise ValueError(f"lift={self.lift}: must lie between -1 and 1 and not be 0; 0.05 is +5 %")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha={self.alpha}: must lie above 0 and below 1")
        if not self.alpha < self.power < 1:
            raise ValueError(f"power={self.power}: must lie above alpha and below 1")
        if self.num_users is not None and self.num_users < 1:
            raise ValueError(f"planned_users={self.num_users}: must be 1 or more, or null")

    @property
    def mixture_scale(self) -> float:
        """Scale of the always-valid interval: the lift looked for, as a log ratio."""
        return abs(log1p(self.lift))
