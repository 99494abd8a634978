"""Robust-naive: the rule every forecast starts from and has to beat.

Owns what counts as a sample, and the rule: what comes is the median of the last 12 samples, and at most the quantile
of the last 48. It needs no training, no season and no clean data, and is hard to beat on the loads of machines.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lepton_ai.errors import Invalid

HISTORY = 48
"""Samples a window holds at least for a full forecast; a shorter one is forecast from what there is."""
RECENT = 12
"""The median is taken over so many samples."""


def clean(history: ArrayLike) -> NDArray[np.float64]:
    """The last HISTORY samples, NaN for what is no amount: NaN, negative, infinite.

    Raises Invalid when `history` is not (series, samples).
    """
    found = np.asarray(history, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] < 1:
        raise Invalid(f"history is {found.shape}, not (series, samples)", hint="give at least one sample a series")
    found = found[:, -HISTORY:]
    return np.where(np.isfinite(found) & (found >= 0.0), found, np.nan)


def naive(window: NDArray[np.float64], quantile: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The median of the last 12 samples and the quantile of the window, each (series,); the latter is never below.

    Samples that are missing do not count. Where none of the last 12 is known, the median is that of the whole window;
    where nothing is known, both are 0.
    """
    whole = np.sort(window, axis=1)  # NaN last
    known = np.isfinite(whole).sum(axis=1)
    recent = np.sort(window[:, -RECENT:], axis=1)
    lately = np.isfinite(recent).sum(axis=1)
    median = np.where(lately > 0, among(recent, lately, 0.5), among(whole, known, 0.5))
    return median, np.maximum(median, among(whole, known, quantile))


def among(ordered: NDArray[np.float64], known: NDArray[np.int64], quantile: float) -> NDArray[np.float64]:
    """The quantile of each row's first `known` values, which are in order; between neighbours as numpy; 0 of none."""
    last = np.maximum(known - 1, 0)
    place = last * quantile
    below = np.floor(place).astype(np.int64)
    rows = np.arange(len(ordered))
    low, high = ordered[rows, below], ordered[rows, np.minimum(below + 1, last)]
    found: NDArray[np.float64] = np.where(known > 0, low + (high - low) * (place - below), 0.0)
    return found
