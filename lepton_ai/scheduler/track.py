"""How well each series' forecasts came true: where the naive rule is the better one, and how far the upper quantile
has to move to hold.

Owns what a forecaster remembers, as arrays with one row a series. Two rules, both per series:

- the naive rule takes over, for the median or for the upper quantile, while the network's losses lately (half of the
  sum within 69 steps) are the larger ones by more than SURE standard deviations of such a sum: not for a few bad steps
- the upper quantile moves by STEP spreads after each outcome, up by `quantile` of it after one above and down by the
  rest after one below, so that in the long run it covers what it says whatever the series does (Gibbs and Candès,
  Adaptive conformal inference under distribution shift, 2021; here on the quantile itself, in units of the spread)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

DECAY = 0.99
SURE = 2.0
STEP = 0.003
MOVE_MOST = 3.0
"""Spreads that the upper quantile moves at most, either way."""
SERIES_MOST = 32_768
"""More series are not remembered: those longest unseen give way."""
LOSS_MOST = 1e120
"""An amount counts at most so much when losses are reckoned, so that their squares are numbers."""

Array = NDArray[np.float64]
NAIVE, NETWORK, SHIPPED = 0, 1, 2


class Track:
    """The memory of a forecaster. One call of `outcome` is one step for every series."""

    def __init__(self, horizons: Sequence[int], quantile: float) -> None:
        self.horizons = tuple(horizons)
        self.quantile = quantile
        self._slots: dict[str, int] = {}
        self._now = 0
        self._ring = max(self.horizons) + 1
        self._allocate(64)

    def __len__(self) -> int:
        return len(self._slots)

    def outcome(self, values: Array, keys: Sequence[str]) -> None:
        """One step has passed; `values` is what was measured, NaN where nothing was."""
        self._now += 1
        known = [(at, slot) for at, key in enumerate(keys) if (slot := self._slots.get(key)) is not None]
        if not known:
            return
        which, slots = np.array(known, dtype=np.int64).T
        came = np.minimum(values[which], LOSS_MOST)
        self._seen[slots] = self._now
        gain, power = np.zeros((len(slots), 2)), np.zeros((len(slots), 2))
        for column, step in enumerate(self.horizons):
            made = self._now - step
            place = made % self._ring
            due = (self._made[slots, place] == made) & (made >= 0) & np.isfinite(came)
            ahead = self._ahead[slots, place, :, :, column]  # (series, median or upper, which forecast)
            off = came[:, None, None] - ahead
            lost = np.stack(
                [np.abs(off[:, 0]), np.maximum(self.quantile * off[:, 1], (self.quantile - 1) * off[:, 1])], 1
            )
            better = np.where(due[:, None], lost[:, :, NAIVE] - lost[:, :, NETWORK], 0.0)
            gain += better
            power += better * better
            over = np.where(off[:, 1, SHIPPED] > 0.0, self.quantile, self.quantile - 1.0)
            moved = self._move[slots, column] + STEP * np.where(due, over, 0.0)
            self._move[slots, column] = np.clip(moved, -MOVE_MOST, MOVE_MOST)
        self._gain[slots] = DECAY * self._gain[slots] + gain
        self._power[slots] = DECAY * self._power[slots] + power

    def rules(self, keys: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_], Array]:
        """Each series' slot; whether its median and its upper quantile may use the network (series, 2); and how many
        spreads the upper quantile moves (series, horizons)."""
        slots = self._of(keys)
        return slots, self._gain[slots] >= -SURE * np.sqrt(self._power[slots]), self._move[slots]

    def note(self, slots: NDArray[np.int64], ahead: Array) -> None:
        """Remember what was forecast at this step: (series, median or upper, naive or network or shipped, horizons)."""
        place = self._now % self._ring
        self._made[slots, place] = self._now
        self._ahead[slots, place] = np.minimum(ahead, LOSS_MOST)

    def state(self) -> dict[str, object]:
        """JSON-able: what was learned of each series. Forecasts that wait for their outcome are not part of it."""
        series = {}
        for key, slot in self._slots.items():
            learned = np.concatenate([self._gain[slot], self._power[slot], self._move[slot]])
            if learned.any():
                series[key] = [float(f"{value:.6g}") for value in learned]
        return {"version": 1, "horizons": list(self.horizons), "quantile": self.quantile, "series": series}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take up a state of the same horizons and quantile; rows that are damaged are learned anew."""
        series = state.get("series")
        same = state.get("horizons") == list(self.horizons) and state.get("quantile") == self.quantile
        if state.get("version") != 1 or not same or not isinstance(series, Mapping):
            return
        for key, row in series.items():
            try:
                learned = np.array(row, dtype=np.float64)
            except (TypeError, ValueError):
                continue
            if learned.shape != (4 + len(self.horizons),) or not np.isfinite(learned).all():
                continue
            (slot,) = self._of([str(key)])
            self._gain[slot] = np.clip(learned[:2], -LOSS_MOST, LOSS_MOST)
            self._power[slot] = np.maximum(learned[2:4], 0.0)
            self._move[slot] = np.clip(learned[4:], -MOVE_MOST, MOVE_MOST)

    def _of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The slots of `keys`; a new key gets a clean one."""
        new = [key for key in keys if key not in self._slots]
        if new:
            self._room(len(set(new)), frozenset(keys))
            free = iter(sorted(set(range(len(self._seen))) - set(self._slots.values())))
            for key in new:
                if key not in self._slots:
                    slot = self._slots[key] = next(free)
                    self._gain[slot] = self._power[slot] = self._move[slot] = 0.0
                    self._made[slot] = -1
                    self._seen[slot] = self._now
        return np.fromiter((self._slots[key] for key in keys), np.int64, len(keys))

    def _room(self, count: int, keep: frozenset[str]) -> None:
        """Make room for `count` more: drop what was not seen for longest, else grow."""
        over = len(self._slots) + count - SERIES_MOST
        if over > 0:
            idle = sorted((self._seen[slot], key) for key, slot in self._slots.items() if key not in keep)
            for _, key in idle[:over]:
                del self._slots[key]
        if len(self._slots) + count > len(self._seen):
            self._grow(max(2 * len(self._seen), len(self._slots) + count))

    def _grow(self, count: int) -> None:
        old, had = self._arrays, len(self._seen)
        self._allocate(count)
        for name, array in old.items():
            self._arrays[name][:had] = array

    def _allocate(self, count: int) -> None:
        width = len(self.horizons)
        self._gain, self._power = np.zeros((count, 2)), np.zeros((count, 2))  # of the median and of the upper quantile
        self._move = np.zeros((count, width))
        self._ahead = np.zeros((count, self._ring, 2, 3, width))
        self._made = np.full((count, self._ring), -1, dtype=np.int64)
        self._seen = np.zeros(count, dtype=np.int64)
        self._arrays: dict[str, NDArray[np.float64] | NDArray[np.int64]] = {
            "gain": self._gain,
            "power": self._power,
            "move": self._move,
            "ahead": self._ahead,
            "made": self._made,
            "seen": self._seen,
        }
