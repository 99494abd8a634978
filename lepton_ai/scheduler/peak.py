"""The demand to plan for: a high quantile of the largest demand within the time a new replica needs to start.

Owns D of R = f(D, H) for one deployment: how much is in flight, how it jumps, and how much more of it there may be by
the time a replica that is ordered now can help. It learns that from the deployment's own past and needs no model. How
many replicas carry the plan is `scale`'s.

Everything is counted in replicas: 2.5 is what two and a half of them carry. Every 5 s it is given what was in flight
in each second, and how many requests came in each. What is in flight beyond what the replicas carry waits; what waited
a second ago is not new. From what is new it makes what would have been *needed*: the smallest number of replicas at
which no request waits longer than a second. From the past it keeps a *level*,

    level = size^0.4 x lately^0.3 x highest^0.3

`lately`: the mean, half of it from the last 2 minutes. `highest`: the largest need, falling by half in 10 minutes.
`size`: the need that a unit of work met on average over the last day: demand that comes in lumps stays likely while it
is quiet. Lumps add up like shot noise, whose spread grows with the root of its mean: hence powers below 1.

The plan is factor x level. The factor is that quantile of need / (lowest level within the start-up time before it),
weighted by requests, which left at most `share` of the requests unserved in time; so it is exactly what would have
been right so far, whatever the form of the demand. It starts from a prior that lumpiness sets, and what it leaves
unserved is fed back. The idea of learning a quantile from outcomes is that of adaptive conformal inference (Gibbs and
Candes, NeurIPS 2021); powers and prior were fitted on BurstGPT and Azure's traces (see bench/autoscale.py).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TICK_S = 5.0
WAIT_S = 1.0
"""A request may wait so long for a replica that is free."""
SHARE = 0.01
"""Of the requests that may find too few replicas in their second; about three quarters of them wait too long."""

_SLOPES = 30  # seconds over which the need is looked for
_DAY = 17_280  # ticks; what was learnt counts half after a day, of a young deployment after its age
_YOUNG = 120
_SILENT = 48  # ticks before what comes counts as experience
_LATELY = 1 - 0.5 ** (1 / 24)
_HIGHEST = 0.5 ** (1 / 120)
_POWERS = (0.4, 0.3, 0.3)
_PRIOR_TICKS, _PRIOR, _PRIOR_POWER, _PRIOR_TAIL = 960.0, 1.1, 0.8, 8.0
_MOST = 1.6  # never so many times what was ever needed
_SLOW_S = 10.0
_LEAST = 0.1
_LARGEST = 1e9  # no figure of a gateway is larger
_RECENT = 8  # what was needed within 40 s is planned for whatever was learnt
_LASTS = 4  # what is in flight on the average of so many ticks counts whole, whatever part of it may only wait
_KEPT = 240  # levels, for start-up times of up to 20 minutes
_CALM_TICKS = 60  # between two changes of direction
_CALM_MARGIN = 0.985
_SHARP_UP, _SHARP_DOWN, _SHARP = 1.2, 0.75, 2
_OVER = 1.04  # a need so little above what runs is noise; what it leaves waiting soon makes it more
_EDGES = np.geomspace(0.05, 100.0, 640)  # 1.2 % apart: what lies between two is planned for in vain

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """`replicas`: how many to run. `peak`: the demand planned for, before rounding. `now`: the most that was needed
    within the last 40 s. `factor` x `level` made the peak, unless `now` is more."""

    replicas: int = 0
    peak: float = 0.0
    now: float = 0.0
    factor: float = 1.0
    level: float = 0.0


class Peak:
    """What one deployment may need by the time a replica has started. No clock: `tick` is called every 5 s.

    `share`: of the requests that may find too few replicas.
    """

    def __init__(self, share: float = SHARE) -> None:
        self.share = share
        self.plan = Plan()
        self._ticks = 0
        self._seconds: deque[float] = deque(maxlen=_SLOPES)
        self._levels: deque[float] = deque(maxlen=_KEPT)
        self._planned: deque[int] = deque(maxlen=_KEPT)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._held: deque[float] = deque(maxlen=_LASTS)
        self._waiting = 0.0
        self._lately = self._highest = self._record = 0.0
        self._direction, self._turned = 0, -_CALM_TICKS
        # Sums that fade: of ticks, demand, demand x its peak, requests; experience, and what of it was unserved.
        self._sums = np.zeros(4)
        self._ratios = np.zeros(len(_EDGES) + 1)
        self._unserved = 0.0

    def tick(
        self,
        loads: Sequence[float],
        requests: Sequence[float],
        start_s: float,
        *,
        ready: float = math.inf,
        at_least: float = 0.0,
        ahead: float | None = None,
    ) -> Plan:
        """Five seconds have passed.

        Args:
            loads: what was in flight in each of them, in replicas; NaN and negative ones were not measured.
            requests: how many came in each.
            start_s: how long a new replica needs until it serves.
            ready: how many replicas served meanwhile.
            at_least: what is needed now by another measure.
            ahead: somebody else's forecast of the load within that time, which then stands in for `lately` and
                `highest` (bench/autoscale.py asks what the network would bring).

        Returns:
            the plan, also in `plan`; when nothing was measured the last one holds.
        """
        seen = [
            (float(load), min(max(0.0, float(count)), _LARGEST) if math.isfinite(count) else 0.0)
            for load, count in zip(loads, requests, strict=True)
            if math.isfinite(load) and 0 <= load <= _LARGEST
        ]
        if not seen:
            return self.plan
        fresh = [self._fresh(load, ready) for load, _ in seen]
        needs, counts = np.array([self._need(load) for load in fresh]), np.array([count for _, count in seen])
        mean, held = float(np.mean(fresh)), float(np.mean([load for load, _ in seen]))
        self._ticks += 1
        fade = 0.5 ** (1 / min(_DAY, max(_YOUNG, self._ticks)))
        self._sums *= fade
        self._ratios *= fade
        self._unserved *= fade
        window = max(1, math.ceil(start_s / TICK_S)) + 1
        self._learn(needs, counts, window)
        peak = float(needs.max())
        self._sums += (1.0, mean, mean * peak, counts.sum())
        self._lately += max(_LATELY, 1 / self._ticks) * (mean - self._lately)
        self._highest = max(peak, self._highest * _HIGHEST)
        self._record = max(peak, self._record * 0.5 ** (1 / _DAY))
        self._held.append(held)
        self._recent.append(max(peak, float(np.mean(self._held))))
        self.plan = self._decide(start_s, at_least, ahead)
        return self.plan

    @property
    def untouched(self) -> bool:
        """Whether nothing was ever asked of it."""
        return self._record <= 0

    # -- within a tick

    def _fresh(self, load: float, ready: float) -> float:
        """What came in this second: what is in flight but did not wait before."""
        fresh = max(0.0, load - self._waiting)
        self._waiting = max(0.0, load - max(1.0, ready))
        return fresh

    def _need(self, load: float) -> float:
        """Replicas with which no request of this second waits longer than WAIT_S: work that came within k seconds is
        done within k + WAIT_S, for every k. (The arrivals' envelope, as in network calculus.)"""
        self._seconds.append(load)
        done = np.cumsum(np.fromiter(reversed(self._seconds), float))
        return float((done / (np.arange(1, len(done) + 1) + WAIT_S)).max())

    def _learn(self, needs: Array, counts: Array, window: int) -> None:
        """How these seconds compare with what was ready: the lowest level while a replica would have started."""
        if self._ticks <= _SILENT or not self._levels or self._sums[3] + counts.sum() <= 0:
            return
        last = list(self._levels)[-window:]
        ratios = np.where(needs <= 1.0, _EDGES[0], needs / min(last))  # one replica is always there
        np.add.at(self._ratios, np.searchsorted(_EDGES, ratios), counts)
        ready = min(list(self._planned)[-window:])
        self._unserved += float(counts[needs > ready].sum())

    def _decide(self, start_s: float = 0.0, at_least: float = 0.0, ahead: float | None = None) -> Plan:
        ticks, demand, squares, requests = (float(value) for value in self._sums)
        size = squares / demand if demand > 0 else 0.0
        lately, highest = (self._lately, self._highest) if ahead is None else (ahead, ahead)
        parts = zip((size, lately, highest), _POWERS, strict=True)
        level = max(_LEAST, math.prod(max(part, 0.0) ** power for part, power in parts))
        factor = self._factor(max(1.0, size * ticks / demand) if demand > 0 else 1.0, requests / ticks)
        now = max(*self._recent, at_least)
        # Who has seen little foresees nothing; a replica that starts in a moment needs hardly any forecast.
        trust = min(1.0, start_s / _SLOW_S) if self._ticks > _SILENT else 0.0
        planned = now + trust * max(0.0, min(factor * level, _MOST * self._record) - now)
        self._levels.append(level)
        replicas = self._calm(planned, now)
        self._planned.append(replicas)
        return Plan(replicas, planned, now, factor, level)

    def _calm(self, planned: float, now: float) -> int:
        """How many to run: what is planned, but noise around an even load turns it round once in 5 minutes at most.

        What was needed within the last 40 s is always run, and a sharp change is followed at once.
        """
        held, wanted = self.plan.replicas, _whole(planned)
        if wanted < held and _whole(planned / _CALM_MARGIN) >= held:
            wanted = held
        direction = (wanted > held) - (wanted < held)
        if not direction or not held:
            return wanted
        if direction > 0:
            sharp = now > _OVER * held or planned >= max(_SHARP_UP * held, held + _SHARP)
        else:
            sharp = planned <= min(_SHARP_DOWN * held, held - _SHARP)
        turns = self._direction not in (0, direction)
        if turns and not sharp and self._ticks - self._turned < _CALM_TICKS:
            return held
        self._turned = self._ticks if turns else self._turned
        self._direction = direction
        return wanted

    def _factor(self, lumps: float, rate: float) -> float:
        """The smallest factor that left at most `share` of the requests unserved, with the prior counted in.

        `lumps`: how many times the mean the need was that work met: 1 is even. `rate`: requests a tick.
        """
        weight = max(1e-9, _PRIOR_TICKS * rate)
        usual = min(_PRIOR * lumps**_PRIOR_POWER, float(_EDGES[-1]))
        prior = np.minimum(1.0, self.share * (_EDGES / usual) ** -_PRIOR_TAIL)
        beyond = np.cumsum(self._ratios[::-1])[::-1][1:] + weight * prior  # more than each edge
        total = float(self._ratios.sum()) + weight
        missed = (self._unserved + weight * self.share) / total
        share = min(self.share, max(0.2 * self.share, 2 * self.share - missed))
        over = int((beyond > share * total).sum())
        return float(_EDGES[min(over, len(_EDGES) - 1)])

    # -- over restarts

    def state(self) -> dict[str, Any]:
        """What was learnt, JSON-able and small."""
        bins = {str(index): _short(value) for index, value in enumerate(self._ratios) if value > 0}
        return {
            "ticks": self._ticks,
            "sums": [_short(value) for value in self._sums],
            "ratios": bins,
            "unserved": _short(self._unserved),
            "levels": [_short(value) for value in (self._lately, self._highest, self._record)],
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any], share: float = SHARE) -> Peak:
        """From what `state` gave; what is not of that form is as if nothing was known."""
        peak = cls(share)
        try:
            ticks, sums = int(state["ticks"]), np.array([float(value) for value in state["sums"]])
            levels = [float(value) for value in state["levels"]]
            unserved = float(state["unserved"])
            ratios = np.zeros_like(peak._ratios)
            for index, value in state["ratios"].items():
                ratios[int(index)] = float(value)
            known = np.concatenate([sums, levels, ratios, [unserved, ticks]])
            if sums.shape != (4,) or len(levels) != 3 or not np.all(np.isfinite(known) & (known >= 0)):
                return peak
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
            return peak
        peak._ticks, peak._sums, peak._ratios, peak._unserved = ticks, sums, ratios, unserved
        peak._lately, peak._highest, peak._record = levels
        if sums[0] > 0:
            peak._recent.append(0.0)
            peak.plan = peak._decide(_SLOW_S)
        return peak


def _whole(replicas: float) -> int:
    """Rounded up; one always runs. (To nothing is for `scale` to decide.)"""
    return max(1, math.ceil(replicas - 1e-9))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
