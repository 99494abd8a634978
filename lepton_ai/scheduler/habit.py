"""What a piece of work uses by habit: the mean and the deviation of what was measured, the newest counting most.

Owns the figures by which moves are decided. A move pays for hours, so one sample says little: a spike of a single
sample shifts the mean by a tenth of its height. Exponentially weighted moments (Roberts 1959; West 1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lepton_ai.errors import Invalid

KEPT_MEAN = 0.90
"""A sample's weight falls to this share with every newer one: half of the mean is the last seven samples."""
KEPT_SPREAD = 0.95
SPREAD_SHARED = 0.2
"""This share of a variance is the average of all series: of one seen for a few samples little is known."""


LEAST = 3
"""Of fewer samples than these nothing is known."""


@dataclass(frozen=True, slots=True)
class Habit:
    """One row a series, in the unit of its samples. `known` False: too little was measured to decide by."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    known: NDArray[np.bool_]


def habit(history: ArrayLike, *, kept: float = KEPT_MEAN) -> Habit:
    """The habit of every series of `history`: (series, samples), newest last; no amount (NaN, negative) is a gap.

    `spread` is a standard deviation. `kept`: another share than :data:`KEPT_MEAN`, where samples come faster than a
    habit changes. Raises Invalid for an array of another form.
    """
    found = np.array(history, dtype=np.float64)
    if found.ndim != 2:
        raise Invalid(f"history is {found.shape}, not (series, samples)", hint="give one row a series")
    there = np.isfinite(found) & (found >= 0.0)
    found[~there] = 0.0
    age = np.arange(found.shape[1], dtype=np.float64)[::-1]
    known = there.sum(axis=1) >= LEAST
    mean = _weighted(found, there, np.power(kept, age))
    slow = _weighted(found, there, np.power(max(kept, KEPT_SPREAD), age))
    square = _weighted(found * found, there, np.power(max(kept, KEPT_SPREAD), age))
    variance = np.maximum(square - slow * slow, 0.0)
    shared = float(variance[known].mean()) if known.any() else 0.0
    mixed = np.where(known, (1 - SPREAD_SHARED) * variance + SPREAD_SHARED * shared, 0.0)
    return Habit(mean, np.sqrt(mixed), known)


def _weighted(
    values: NDArray[np.float64], there: NDArray[np.bool_], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weighted mean of each row's samples; 0 of none."""
    total = there @ weight
    mean: NDArray[np.float64] = np.divide(values @ weight, total, out=np.zeros(len(values)), where=total > 0.0)
    return mean
