"""Patterns of the synthetic shop, the same for every category: white and black ink over the product's color."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.floating[Any]]  # (side, side)
Inks = tuple[Plane, Plane]  # coverage by white and by black ink, 0 to 1

SUPERSAMPLING = 3
TURN = 2 * math.pi


def unpatterned(x: Plane, y: Plane) -> Inks:
    return 0 * x, 0 * x


def zebra(x: Plane, y: Plane) -> Inks:
    """Wavy black stripes of uneven width, with a thin white edge on one side."""
    waves = 0.5 * np.sin(TURN * (1.3 * x + 0.3 * y)) + 0.2 * np.sin(TURN * (2.9 * x - 1.1 * y + 0.2))
    height = np.sin(TURN * (5.2 * y + waves))
    threshold = 0.22 + 0.4 * np.sin(TURN * (1.7 * x + 2.3 * y))
    black = height > threshold
    return 1.0 * ((height < threshold - 0.95) & ~black), 1.0 * black


def striped(x: Plane, y: Plane) -> Inks:
    return 1.0 * ((6.5 * y) % 1 < 0.42), 0 * x


def dotted(x: Plane, y: Plane) -> Inks:
    radius, _ = _nearest_spot(x, y, 6.0)
    return 1.0 * (radius < 0.29), 0 * x


def checked(x: Plane, y: Plane) -> Inks:
    """Gingham: white, half and full color."""
    across, down = (5 * x + 0.25) % 1 < 0.5, (5 * y + 0.25) % 1 < 0.5
    return 1.0 - 0.5 * across - 0.5 * down, 0 * x


def zigzag(x: Plane, y: Plane) -> Inks:
    peaks = np.abs((5 * x) % 1 - 0.5)
    return 1.0 * ((5 * y + 1.3 * peaks) % 1 < 0.42), 0 * x


def starred(x: Plane, y: Plane) -> Inks:
    radius, angle = _nearest_spot(x, y, 4.6)
    fold = TURN / 10
    angle = np.abs((angle + TURN / 4 + fold) % (2 * fold) - fold)  # 0 at a tip, fold at the notch beside it
    tip, notch = 0.46, 0.2
    edge = (
        tip
        * notch
        * math.sin(fold)
        / (notch * math.sin(fold) * np.cos(angle) + (tip - notch * math.cos(fold)) * np.sin(angle))
    )
    return 1.0 * (radius < edge), 0 * x


def floral(x: Plane, y: Plane) -> Inks:
    radius, angle = _nearest_spot(x, y, 4.2)
    center = radius < 0.12
    petals = radius < 0.3 + 0.15 * np.cos(5 * angle)
    return 1.0 * (petals & ~center), 1.0 * center


PATTERNS: dict[str, Callable[[Plane, Plane], Inks]] = {
    "plain": unpatterned,
    "zebra": zebra,
    "striped": striped,
    "dotted": dotted,
    "checked": checked,
    "zigzag": zigzag,
    "starred": starred,
    "floral": floral,
}


def _nearest_spot(x: Plane, y: Plane, rows: float) -> tuple[Plane, Plane]:
    """Return radius and angle around the nearest point of a staggered grid, in distances between its rows."""
    row = np.floor(rows * y)
    column = (rows * x + 0.5 * (row % 2)) % 1 - 0.5
    down = rows * y - row - 0.5
    return np.hypot(column, down), np.arctan2(down, column)


@lru_cache(maxsize=32)
def draw_inks(pattern: str, side: int) -> tuple[Image.Image, Image.Image]:
    """Draw the masks of white and of black ink, two (side, side) gray images."""
    y, x = np.mgrid[0 : side * SUPERSAMPLING, 0 : side * SUPERSAMPLING] / (side * SUPERSAMPLING)
    white, black = (
        Image.fromarray((255 * ink).astype(np.uint8)).reduce(SUPERSAMPLING) for ink in PATTERNS[pattern](x, y)
    )
    return white, black
