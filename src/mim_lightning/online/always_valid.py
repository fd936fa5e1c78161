"""An interval and a p-value that hold however often one looks, and whenever one stops.

The estimate of a log ratio as it stands comes in, an interval and a p-value go out; `summary` puts them beside the
fixed ones, which hold at a size planned beforehand and nowhere else.
"""

from __future__ import annotations

import numpy as np

from mim_lightning.online.counts import Number
from mim_lightning.online.lift import Estimate, Interval


def always_valid_interval(estimate: Estimate, scale: float, alpha: float) -> Interval:
    """Return the confidence sequence of a normal mixture at this look.

    With variance V of the estimate and scale t, the square of half its width is
    V (V + t^2) / t^2 * log((V + t^2) / (V alpha^2)).
    The chance that the truth lies outside at any look, of any number of them, is alpha at most, once there are clicks
    enough for the estimate to be about normal at the first look (asymptotic, as the fixed interval is).

    Args:
        estimate: of a log ratio, or arrays of them.
        scale: in the units of the estimate; any positive number chosen before the data is valid, and the width is
            near its least at the size where an effect of this size is found with a power of 0.8.
        alpha: one minus the level.

    Source: Johari et al. 2022, "Always valid inference", equation of the mSPRT interval; Waudby-Smith et al. 2024,
    "Time-uniform central limit theory and asymptotic confidence sequences"; Howard et al. 2021 on the mixture.
    """
    _check_scale(scale)
    variance = np.square(np.asarray(estimate.error, dtype=float))
    total = variance + scale**2
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.sqrt(variance * total / scale**2 * np.log(total / (variance * alpha**2)))
    half = float(half) if np.ndim(half) == 0 else half
    return Interval(estimate.value - half, estimate.value + half)


def always_valid_p_value(estimate: Estimate, scale: float) -> Number:
    """Return a p-value of no difference that may be looked at continually: one over the mixture's likelihood ratio.

    It is below alpha exactly where the interval excludes 0. The smallest of all looks so far is valid too.

    Source: as `always_valid_interval`.
    """
    _check_scale(scale)
    variance = np.square(np.asarray(estimate.error, dtype=float))
    total = variance + scale**2
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        log_likelihood = scale**2 * np.square(estimate.value) / (2 * variance * total) + np.log(variance / total) / 2
    p = np.minimum(1.0, np.exp(-log_likelihood))
    return float(p) if np.ndim(p) == 0 else p


def _check_scale(scale: float) -> None:
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale={scale}: must be above 0")
