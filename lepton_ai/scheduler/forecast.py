"""What comes next: the median and an upper quantile of every series, some steps ahead.

Owns the forecast; measuring is `telemetry`'s, what follows from it is `load`'s and `scale`'s. The rule every forecast
starts from is robust-naive: the median of the last 12 samples, and the quantile of the last 48. It needs no training,
no season and no clean data, and is hard to beat on machines' loads.

Bad samples never reach a figure: NaN, negative and infinite ones count as missing. Of a series of which nothing is
known the forecast is 0; no forecast is ever NaN, negative or infinite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lepton_ai.errors import Invalid

HISTORY = 48
"""Samples a window holds at least for a full forecast; a shorter one is forecast from what there is."""
RECENT = 12
"""The median is taken over so many samples."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of each series, in the unit of its history.

    `horizons`: steps ahead. `median` and `upper`: (series, horizons), `upper` the asked quantile and never below the
    median. `network`: (series,), whether the network's residual was used or only the robust-naive rule.
    """

    horizons: tuple[int, ...]
    median: NDArray[np.float64]
    upper: NDArray[np.float64]
    network: NDArray[np.bool_]


class Forecaster:
    """Forecasts series that are sampled at one even step, and learns from what came true.

    Args:
        network: use the residual network; False is robust-naive alone.
        horizons: how many steps ahead, each at least 1.
        quantile: of the upper figure.
        model: bytes of another network of the same form; None is the one that ships.

    A live cell calls at every step `observe(newest, keys)`, then `forecast(history, keys)`. Keys name the series
    (a node and a resource, a deployment); without keys nothing is remembered and nothing corrected.
    """

    def __init__(
        self,
        *,
        network: bool = True,
        horizons: Sequence[int] = (1, 5, 15),
        quantile: float = 0.9,
        model: bytes | None = None,
    ) -> None:
        if not horizons or any(int(step) != step or step < 1 for step in horizons):
            raise Invalid(f"horizons {tuple(horizons)} are not steps ahead", hint="give whole numbers from 1 on")
        if not 0.5 <= quantile < 1.0:
            raise Invalid(
                f"quantile {quantile:g} is no upper quantile", hint="give one from 0.5 to below 1, such as 0.9"
            )
        self.horizons = tuple(int(step) for step in horizons)
        self.quantile = float(quantile)

    def forecast(self, history: ArrayLike, keys: Sequence[str] | None = None) -> Forecast:
        """The forecast of every series.

        Args:
            history: (series, samples), newest last, in any non-negative unit; NaN: missing.
            keys: one name a series.

        Raises Invalid for an array of another form, or keys of another number.
        """
        window = clean(history)
        if keys is not None and len(keys) != len(window):
            raise Invalid(f"{len(keys)} keys for {len(window)} series", hint="give one key a series")
        median, upper = naive(window, self.quantile)
        shape = (len(window), len(self.horizons))
        return Forecast(
            self.horizons,
            np.broadcast_to(median[:, None], shape).copy(),
            np.broadcast_to(upper[:, None], shape).copy(),
            np.zeros(len(window), dtype=bool),
        )

    def observe(self, newest: ArrayLike, keys: Sequence[str]) -> None:
        """The newest sample of every series came true: one step has passed for each of `keys`. NaN: not measured."""
        values = np.asarray(newest, dtype=np.float64)
        if values.shape != (len(keys),):
            raise Invalid(f"{values.shape} samples for {len(keys)} keys", hint="give one sample a key")

    def state(self) -> dict[str, object]:
        """What was learned, JSON-able, so that a restart does not forget."""
        return {}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take up what `state` gave; what does not fit is dropped and learned anew."""


def clean(history: ArrayLike) -> NDArray[np.float64]:
    """The last HISTORY samples, NaN for what is no amount: NaN, negative, infinite."""
    found = np.asarray(history, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] < 1:
        raise Invalid(f"history is {found.shape}, not (series, samples)", hint="give at least one sample a series")
    found = found[:, -HISTORY:]
    return np.where(np.isfinite(found) & (found >= 0.0), found, np.nan)


def naive(window: NDArray[np.float64], quantile: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Robust-naive: the median of the last 12 samples and the quantile of the window, each (series,).

    Where none of the last 12 is known, the median is that of the whole window; 0 where nothing is.
    """
    whole = np.sort(window, axis=1)  # NaN last
    known = np.isfinite(whole).sum(axis=1)
    recent = np.sort(window[:, -RECENT:], axis=1)
    lately = np.isfinite(recent).sum(axis=1)
    median = np.where(lately > 0, _quantile(recent, lately, 0.5), _quantile(whole, known, 0.5))
    return median, np.maximum(median, _quantile(whole, known, quantile))


def _quantile(ordered: NDArray[np.float64], known: NDArray[np.int64], quantile: float) -> NDArray[np.float64]:
    """Of each row's first `known` values, interpolated between neighbours as numpy does; 0 of none."""
    place = np.maximum(known - 1, 0) * quantile
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(known - 1, 0))
    rows = np.arange(len(ordered))
    low, high = ordered[rows, below], ordered[rows, above]
    found: NDArray[np.float64] = np.where(known > 0, low + (high - low) * (place - below), 0.0)
    return found
