"""The search space of a sweep: Hydra's overrides as Optuna's distributions, and a trial's parameters as overrides.

optim.lr: tag(log, interval(1e-4, 1e-2))     a number between the two, on a logarithmic scale
embed_dim: int(interval(32, 256))            an integer
data.batch_size: choice(64, 128)             one of these; 64,128 for short
model.pairs.query_product.weight: range(0, 1.1, 0.25)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def read_space(overrides: Mapping[str, Override]) -> dict[str, BaseDistribution]:
    """Return the distribution of each key that varies.

    Raises:
        ValueError: nothing varies, or a range is empty; names the key.
    """
    space = {}
    for key, override in overrides.items():
        if override.is_sweep_override():
            try:
                space[key] = _distribution(override)
            except ValueError as error:
                raise ValueError(f"{key}={override.get_value_string()}: {error}") from error
    if not space:
        raise ValueError("nothing to search; give ranges such as 'optim.lr=tag(log, interval(1e-4, 1e-2))'")
    return space


def write_overrides(params: Mapping[str, Any]) -> list[str]:
    """Return a trial's parameters as overrides of its job."""
    # six digits, always the same text: a resumed trial must be the same run
    return [f"{key}={f'{value:.6g}' if isinstance(value, float) else value}" for key, value in params.items()]


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if override.is_choice_sweep():
        # as text: a choice may be a number, an option of a group, a list
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    unknown = value.tags - {"log"}
    if unknown:
        raise ValueError(f"no tag '{unknown.pop()}'; there is log")
    is_log = "log" in value.tags
    low: Any
    high: Any
    step: Any
    if isinstance(value, IntervalSweep):
        low, high, step = value.start, value.end, None
    else:
        assert isinstance(value, RangeSweep)
        steps = sorted(value.range())
        if not steps:
            raise ValueError("is empty")
        low, high, step = steps[0], steps[-1], abs(value.step)
    if all(isinstance(number, int) for number in (low, high, step or 1)):
        return IntDistribution(low, high, log=is_log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=is_log, step=None if step is None else float(step))
