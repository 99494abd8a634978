"""The policies that the measurement of rebalancing compares: the shipped one, threshold rules, oracles.

Not a measurement itself. `Shipped` only translates: `lepton_ai.scheduler` decides. The threshold rules are CloudSim's
(Beloglazov and Buyya 2012): a host is overloaded above a fixed threshold (THR) or above 1 - safety * spread of its
recent load by inter-quartile range (IQR) or median absolute deviation (MAD), or when a local regression (LR) says that
it will be; machines are taken away until it is below, by minimum migration time (MMT: the machine with the least use
that suffices, for the traces have no memory sizes), maximum correlation (MC) or the largest; they go to the fullest
host that stays below (PABFD: for equal hosts with a concave power curve that is the fullest) or to the least loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hostday import PAUSE, STEP_S, Array, View

from lepton_ai.scheduler.forecast import Forecaster
from lepton_ai.scheduler.habit import habit
from lepton_ai.scheduler.load import Mark, load
from lepton_ai.scheduler.rebalance import Rules, Work, allowance, rebalance
from lepton_ai.scheduler.snapshot import Node, Request, Snapshot
from lepton_ai.spec.workload import Resources

CAPACITY = 100_000
HISTORY = 96
AHEAD = 12
LIMIT = 0.85
RULES = Rules()


@dataclass
class Shipped:
    """`lepton_ai.scheduler` as it ships. `network`: the forecasts' residual network; `oracle`: it knows what comes."""

    network: bool = False
    oracle: bool = False
    rules: Rules = RULES
    limit: float = LIMIT
    marks: dict[str, Mark] = field(default_factory=dict)
    begun: list[int] = field(default_factory=list)
    forecaster: Forecaster | None = None

    def __call__(self, view: View) -> Sequence[tuple[int, int]]:
        hosts, machines = self._names(view)
        if self.forecaster is None:
            self.forecaster = Forecaster(network=self.network)
        self.forecaster.observe(view.load, hosts)
        ahead = self.forecaster.forecast(view.measured[:, -HISTORY:], hosts)
        upper = self._next(view).max(axis=1) if self.oracle else ahead.upper.max(axis=1)
        loads = load(
            hosts, view.load[:, None], upper[:, None], limit=self.limit, resources=("cpu",),
            network=ahead.network[:, None], before=self.marks,
        )  # fmt: skip
        self.marks = {item.name: item.mark for item in loads}
        if not any(item.mark == "overloaded" for item in loads):
            return []
        works = self._works(view, hosts, machines)
        budget = allowance(len(works), [(view.now - then) * STEP_S for then in self.begun], self.rules)
        plan = rebalance(self._snapshot(view, hosts), loads, works, budget=budget, rules=self.rules)
        self.begun += [view.now] * len(plan.moves)
        rows = {name: row for row, name in enumerate(machines)}
        return [(rows[move.uid], hosts.index(move.destination)) for move in plan.moves]

    def _names(self, view: View) -> tuple[list[str], list[str]]:
        hosts = [f"host-{number:04d}" for number in range(view.hosts)]
        return hosts, [f"vm-{number:05d}" for number in range(len(view.at))]

    def _next(self, view: View) -> Array:
        """(hosts, samples): what comes if nothing moves."""
        coming = view.day.use[:, view.now + 1 : view.now + 1 + AHEAD]
        if not coming.shape[1]:
            return view.measured[:, -1:]
        return np.stack([np.bincount(view.at, column, view.hosts) for column in coming.T], axis=1)

    def _snapshot(self, view: View, hosts: list[str]) -> Snapshot:
        """The traces say nothing of reservations: each machine reserves as good as nothing."""
        room = Resources(cpu_milli=CAPACITY, memory_mib=CAPACITY)
        counts = np.bincount(view.at, minlength=view.hosts)
        return Snapshot.of([Node(name, room, (int(n), int(n), 0)) for name, n in zip(hosts, counts, strict=True)])

    def _works(self, view: View, hosts: list[str], machines: list[str]) -> list[Work]:
        found = habit(view.seen[:, -HISTORY:])
        mean, spread, known = found.mean * CAPACITY, found.spread * CAPACITY, found.known
        coming = view.day.use[:, view.now + 1 : view.now + 1 + AHEAD] * CAPACITY
        if self.oracle and coming.shape[1]:
            mean, spread, known = coming.mean(axis=1), coming.std(axis=1), np.ones(len(machines), dtype=bool)
        now, tiny = view.seen[:, -1] * CAPACITY, Resources(cpu_milli=1, memory_mib=1)
        ago_s = (view.now - view.moved) * STEP_S
        return [
            Work(
                Request(name, tiny), hosts[view.at[row]], (float(mean[row]), 0.0), (float(spread[row]), 0.0),
                (float(now[row]), 0.0), moved_s=float(ago_s[row]) if view.moved[row] >= 0 else None,
                held="" if known[row] else "not measured for long enough",
            )
            for row, name in enumerate(machines)
        ]  # fmt: skip


@dataclass
class Threshold:
    """A rule of thresholds. `pause`: intervals between two moves of a machine; `most`: moves per machine and day."""

    detect: str = "THR"
    level: float = 0.8
    select: str = "MMT"
    target: str = "fullest"
    pause: int = PAUSE
    most: float | None = None
    made: int = 0

    @property
    def name(self) -> str:
        return f"{self.detect} {self.level:g} {self.select} {self.target}"

    def __call__(self, view: View) -> Sequence[tuple[int, int]]:
        loads, at, now = view.load.copy(), view.at.copy(), view.seen[:, -1]
        bound = self._bound(view)
        free = (view.now - view.moved >= self.pause) & (now > 0)
        moves: list[tuple[int, int]] = []
        left = np.inf if self.most is None else self.most * len(at) - self.made
        for host in np.argsort(-loads).tolist():
            while loads[host] > bound[host] and len(moves) < left:
                here = np.flatnonzero((at == host) & free)
                if not len(here):
                    break
                machine = self._victim(view, here, float(loads[host] - bound[host]))
                fits = loads + now[machine] <= np.minimum(bound, 1.0)
                fits[host] = False
                free[machine] = False
                if not fits.any():
                    continue
                order = loads if self.target == "fullest" else -loads
                to = int(np.argmax(np.where(fits, order, -np.inf)))
                loads[host] -= now[machine]
                loads[to] += now[machine]
                at[machine] = to
                moves.append((machine, to))
        self.made += len(moves)
        return moves

    def _bound(self, view: View) -> Array:
        """(hosts,): above it a host is overloaded."""
        recent = view.measured[:, -HOURS:]
        if self.detect == "THR" or recent.shape[1] < HOURS:
            return np.full(view.hosts, self.level if self.detect == "THR" else 1.0)
        if self.detect == "IQR":
            low, high = np.quantile(recent, (0.25, 0.75), axis=1)
            return np.clip(1.0 - self.level * (high - low), 0.2, 1.0)
        if self.detect == "MAD":
            middle = np.median(recent, axis=1, keepdims=True)
            return np.clip(1.0 - self.level * np.median(np.abs(recent - middle), axis=1), 0.2, 1.0)
        # LR: a line through the last samples, the newest counting most, reaches 1 / level in the next interval.
        x = np.arange(recent.shape[1], dtype=np.float64)
        weight = (1.0 - ((x[-1] - x) / (x[-1] + 1)) ** 3) ** 3
        mid = (weight @ x) / weight.sum()
        mean = recent @ weight / weight.sum()
        slope = ((recent - mean[:, None]) * weight) @ (x - mid) / (weight @ (x - mid) ** 2)
        ahead = self.level * (mean + slope * (x[-1] + 1 - mid))
        return np.where(ahead >= 1.0, np.minimum(1.0, recent[:, -1]) - 0.05, 1.0)

    def _victim(self, view: View, here: np.ndarray, excess: float) -> int:
        use = view.seen[here, -1]
        if self.select == "MC" and view.seen.shape[1] >= HOURS:
            recent = view.seen[here, -HOURS:]
            rest = recent.sum(axis=0, keepdims=True) - recent
            a, b = recent - recent.mean(axis=1, keepdims=True), rest - rest.mean(axis=1, keepdims=True)
            scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
            return int(here[np.argmax((a * b).sum(axis=1) / np.maximum(scale, 1e-12))])
        enough = use >= excess
        if self.select == "MMT" and enough.any():
            return int(here[np.argmin(np.where(enough, use, np.inf))])
        return int(here[np.argmax(use)])


HOURS = 12


@dataclass
class Foreseeing:
    """What could be had at any price: it knows the next intervals and moves as much as it likes."""

    ahead: int = 3

    def __call__(self, view: View) -> Sequence[tuple[int, int]]:
        coming = view.day.use[:, view.now + 1 : view.now + 1 + self.ahead]
        if not coming.shape[1]:
            return []
        at, moves = view.at.copy(), []
        free = view.now - view.moved >= PAUSE
        load = np.stack([np.bincount(at, column, view.hosts) for column in coming.T], axis=1)
        for host in np.argsort(-load.max(axis=1)).tolist():
            while load[host].max() > 1.0:
                here = np.flatnonzero((at == host) & free)
                if not len(here):
                    break
                rest = np.maximum(load[host] - coming[here], 0.0).max(axis=1)
                machine = int(here[np.argmin(rest)])
                peak = (load + coming[machine]).max(axis=1)
                peak[host] = np.inf
                to = int(np.argmin(peak))
                if peak[to] > 1.0:
                    break
                load[host] -= coming[machine]
                load[to] += coming[machine]
                at[machine], free[machine] = to, False
                moves.append((machine, to))
        return moves
