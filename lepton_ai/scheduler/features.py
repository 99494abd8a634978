"""What the network sees of a window: 34 figures that do not depend on the unit or the level of the series.

Owns the normal form and nothing that is learned. Every amount is taken from the naive median, in units of the window's
mean distance from that median, and squashed by asinh, so that a host at 3 % and a service at 3,000 requests/s look
alike when they behave alike. Figures that summarise (quantiles and means over the last 1 to 48 samples, how they
jump, how they resemble themselves some samples ago) rather than the samples themselves: on other machines' days these
carried over, the 48 raw samples did not (the larger network on them fitted its training days and lost elsewhere).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_ai.scheduler.naive import HISTORY, among, naive

COUNT = 34
ENOUGH = 36
"""Known samples among the last 48 that the network needs; below that the naive rule stands alone."""
LAGS = (1, 2, 5, 12)
TINY = 1e-3

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Features:
    """`values`: (series, COUNT). `median`, `upper`: the naive rule. `spread`: the unit of residuals, 0 where there is
    nothing to learn from (flat, or too little known). All but `values` in the unit of the history, (series,)."""

    values: NDArray[np.float32]
    median: Array
    upper: Array
    spread: Array


def features(window: Array, quantile: float = 0.9) -> Features:
    """The features of windows (series, samples) as `clean` gives them."""
    peak = np.nanmax(np.where(np.isnan(window), 0.0, window), axis=1, keepdims=True, initial=0.0)
    unit = np.where(peak > 0.0, peak, 1.0)
    scaled = window / unit  # in [0, 1]: no sum or square overflows from here on
    median, upper = naive(scaled, quantile)
    values = np.zeros((len(window), COUNT), dtype=np.float32)
    spread = np.zeros(len(window))
    if window.shape[1] == HISTORY and len(window):
        rows = np.flatnonzero(np.isfinite(scaled).sum(axis=1) >= ENOUGH)
        values[rows], spread[rows] = _values(_filled(scaled[rows]), median[rows])
    return Features(values, median * unit[:, 0], upper * unit[:, 0], spread * unit[:, 0])


def _filled(window: Array) -> Array:
    """Missing samples take the last value known before them, those at the start the first one known."""
    known = np.isfinite(window)
    if known.all():
        return window
    place = np.where(known, np.arange(window.shape[1]), 0)
    place = np.maximum.accumulate(place, axis=1)
    place = np.maximum(place, known.argmax(axis=1)[:, None])
    return np.take_along_axis(window, place, axis=1)


def _values(window: Array, median: Array) -> tuple[NDArray[np.float32], Array]:
    """The figures of whole windows, and the spread."""
    middle = median[:, None]
    away = np.abs(window - middle)
    spread = away.mean(axis=1)
    spread[spread < 1e-12] = 0.0  # rounding, not a spread
    unit = np.where(spread > 0.0, spread, 1.0)
    ordered = {count: np.sort(window[:, -count:], axis=1) for count in (3, 6, 12, 24, HISTORY)}
    whole = ordered[HISTORY]
    level = np.stack(
        [
            window[:, -1],
            window[:, -2],
            window[:, -3],
            *(_among(ordered[count], 0.5) for count in (3, 6, 24, HISTORY)),
            whole[:, 0],
            *(_among(whole, share) for share in (0.1, 0.25, 0.75, 0.9)),
            whole[:, -2],
            whole[:, -1],
            *(window[:, -count:].mean(axis=1) for count in (6, 12, 24, HISTORY)),
            *(_among(ordered[count], 0.9) for count in (12, 24)),
            ordered[12][:, 0],
            ordered[12][:, -1],
            ordered[6][:, -1],
            ordered[6][:, 0],
            2.0 * median,  # as a distance from the median: how far it is from nothing
        ],
        axis=1,
    )
    jumps = np.abs(np.diff(window, axis=1))
    rough = np.stack([away[:, -12:].mean(axis=1), jumps.mean(axis=1), jumps[:, -12:].mean(axis=1)], axis=1)
    shape = np.stack([(window == whole[:, :1]).mean(axis=1), (jumps == 0.0).mean(axis=1)], axis=1)
    found = (
        np.arcsinh((level - middle) / unit[:, None]),
        np.log(rough / unit[:, None] + TINY),
        shape,
        _likeness(window),
    )
    return np.concatenate(found, axis=1).astype(np.float32), spread


def _among(ordered: Array, quantile: float) -> Array:
    return among(ordered, np.full(len(ordered), ordered.shape[1]), quantile)


def _likeness(window: Array) -> Array:
    """The correlation of a window with itself, LAGS samples ago."""
    off = window - window.mean(axis=1, keepdims=True)
    power = np.einsum("ij,ij->i", off, off)
    sums = [np.einsum("ij,ij->i", off[:, lag:], off[:, :-lag]) for lag in LAGS]
    found: Array = np.stack(sums, axis=1) / (power + 1e-12)[:, None]
    return found
