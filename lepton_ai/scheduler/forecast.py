"""What comes next: the median and an upper quantile of every series, some steps ahead.

Owns the forecast; measuring is `telemetry`'s, what follows from it is `load`'s and `scale`'s. Three parts, each of
which may be missing: the naive rule (`naive`), what the residual network adds to it (`features`, `network`), and what
each series' own outcomes correct (`track`).

Bad samples never reach a figure: NaN, negative and infinite ones count as missing. Of a series of which nothing is
known the forecast is 0; no forecast is ever NaN, negative or infinite, and `upper` is never below `median`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lepton_ai.errors import Invalid
from lepton_ai.scheduler import naive
from lepton_ai.scheduler.features import Features, features
from lepton_ai.scheduler.network import Network, shipped
from lepton_ai.scheduler.track import Track

HISTORY = naive.HISTORY
"""Samples a window holds at least for a full forecast; of a shorter one the naive rule makes what it can."""
MOST = float(np.finfo(np.float64).max)


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
        network: use the residual network; False: the naive rule, corrected by outcomes all the same.
        horizons: how many steps ahead, each at least 1. The network knows 1, 5 and 15: between them its residuals are
            interpolated over the logarithm of the steps, beyond them the last one holds.
        quantile: of the upper figure. The network learned that of 0.9; what it adds is added to any other.
        model: bytes of another network of the same form; None is the one that ships.

    A live cell calls once a step `observe(newest, keys)`, then `forecast(history, keys)`. Keys name the series (a node
    and a resource, a deployment); without keys nothing is remembered and nothing corrected.
    """

    def __init__(
        self,
        *,
        network: bool = True,
        horizons: Sequence[int] = (1, 5, 15),
        quantile: float = 0.9,
        model: bytes | None = None,
    ) -> None:
        """Raises Invalid for horizons or a quantile that are none, Corrupt for a model that is none."""
        if not horizons or any(int(step) != step or step < 1 for step in horizons):
            raise Invalid(f"horizons {tuple(horizons)} are not steps ahead", hint="give whole numbers from 1 on")
        if not 0.5 <= quantile < 1.0:
            raise Invalid(f"quantile {quantile:g} is no upper quantile", hint="give 0.5 or more, below 1")
        self.horizons = tuple(int(step) for step in horizons)
        self.quantile = float(quantile)
        self._network: Network | None = None
        if network:
            self._network = Network(shipped() if model is None else model)
            self._between = _between(self.horizons, self._network.horizons)
        self._track = Track(self.horizons, self.quantile)

    def forecast(self, history: ArrayLike, keys: Sequence[str] | None = None) -> Forecast:
        """The forecast of every series.

        Args:
            history: (series, samples), newest last, in any non-negative unit; NaN: missing. The last HISTORY count.
            keys: one name a series; outcomes that `observe` was told of then correct the forecast.

        Raises Invalid for an array of another form, or keys of another number.
        """
        window = naive.clean(history)
        if keys is not None and len(keys) != len(window):
            raise Invalid(f"{len(keys)} keys for {len(window)} series", hint="give one key a series")
        seen = features(window, self.quantile)
        nothing = np.zeros((len(window), 2, len(self.horizons)))
        plain = learned = _both(seen, nothing)
        if self._network is not None:
            learned = _both(seen, self._network(seen.values) @ self._between)
        able = (seen.spread > 0.0) if self._network is not None else np.zeros(len(window), dtype=bool)
        trusted: NDArray[np.bool_] = np.repeat(able[:, None], 2, axis=1)
        moves = nothing[:, 1]
        if keys is not None:
            slots, good, moves = self._track.rules(keys)
            trusted &= good
        chosen = np.where(trusted[:, :, None], learned, plain)
        median = chosen[:, 0]
        with np.errstate(over="ignore"):
            upper = _bounded(chosen[:, 1] + moves * seen.spread[:, None], median)
        if keys is not None:
            self._track.note(slots, np.stack([plain, learned, np.stack([median, upper], axis=1)], axis=2))
        return Forecast(self.horizons, median, upper, trusted[:, 0] | trusted[:, 1])

    def observe(self, newest: ArrayLike, keys: Sequence[str]) -> None:
        """One step has passed, and this is what was measured of each series at its end; NaN: nothing was.

        Call it once a step, with all series that were measured. Raises Invalid for samples of another number.
        """
        values = np.asarray(newest, dtype=np.float64)
        if values.shape != (len(keys),):
            raise Invalid(f"{values.shape} samples for {len(keys)} keys", hint="give one sample a key")
        self._track.outcome(np.where(np.isfinite(values) & (values >= 0.0), values, np.nan), keys)

    def state(self) -> dict[str, object]:
        """What was learned, JSON-able, so that a restart does not forget."""
        return self._track.state()

    def restore(self, state: Mapping[str, object]) -> None:
        """Take up what `state` gave; what does not fit (other horizons, damaged rows) is dropped and learned anew."""
        self._track.restore(state)


def _both(seen: Features, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """(series, median and upper, horizons): the naive figures and, in units of the spread, what is added to them."""
    with np.errstate(over="ignore"):
        median = _bounded(seen.median[:, None] + residuals[:, 0] * seen.spread[:, None], np.float64(0.0))
        upper = _bounded(seen.upper[:, None] + residuals[:, 1] * seen.spread[:, None], median)
    return np.stack([median, upper], axis=1)


def _bounded(values: NDArray[np.float64], low: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """At least `low`, and a number."""
    return np.minimum(np.maximum(values, low), MOST)


def _between(wanted: Sequence[int], known: Sequence[int]) -> NDArray[np.float64]:
    """(known, wanted): the share that each known horizon has in each wanted one."""
    places = np.interp(np.log(wanted), np.log(known), np.arange(len(known)))
    below = np.minimum(np.floor(places).astype(np.int64), max(len(known) - 2, 0))
    shares = np.zeros((len(known), len(wanted)))
    for column, (low, place) in enumerate(zip(below, places, strict=True)):
        shares[low, column] = 1.0 - (place - low)
        if low + 1 < len(known):
            shares[low + 1, column] = place - low
    return shares
