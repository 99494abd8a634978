"""A day of virtual machines on hosts, for the measurement of rebalancing; not a measurement itself.

Protocol of goal 14. A file is one day: machines x samples of CPU %, five minutes each. H equal hosts; their capacity
is such that the whole day's mean use is 0.65. A host is overloaded in an interval when its machines ask for more than
it has. At the end of each interval a policy sees what every machine used until then and may move machines; they are at
their destination in the next interval. Two first placements:

    even      machines dealt out in random order, the same number to each host: nothing is known of them
    measured  by the mean use of the first hour, the largest first to the least loaded host; that hour is not counted

`even` leaves a persistent imbalance that any rule can find; `measured` leaves only what changes during the day, which
is the harder of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

HOSTS = 80
MEAN_USE = 0.65
STEP_S = 300.0
DAY = 288
HOUR = 12
PAUSE = 6
PLACEMENTS = ("even", "measured")


@dataclass(frozen=True)
class Day:
    """One file: `use` (machines, samples) as shares of a host, and how many hosts there are."""

    name: str
    use: Array
    hosts: int

    @classmethod
    def of(cls, name: str, cpu: Array, hosts: int = HOSTS) -> Day:
        found = np.where(np.isfinite(cpu) & (cpu >= 0), cpu, 0.0)
        capacity = max(1e-9, found.sum(axis=0).mean() / (hosts * MEAN_USE))
        return cls(name, found / capacity, hosts)

    def place(self, how: str, seed: int) -> Index:
        """Which host each machine begins on."""
        rng = np.random.default_rng(seed)
        count = len(self.use)
        at = np.empty(count, dtype=np.int64)
        if how == "even":
            at[rng.permutation(count)] = np.arange(count) % self.hosts
            return at
        mean = self.use[:, :HOUR].mean(axis=1)
        load = np.zeros(self.hosts)
        for machine in np.lexsort((rng.random(count), -mean)):
            host = int(np.argmin(load))
            at[machine] = host
            load[host] += mean[machine]
        return at


@dataclass(frozen=True)
class View:
    """What a policy sees at the end of interval `now`: nothing of later ones, unless it is an oracle (`day`)."""

    now: int
    seen: Array
    at: Index
    moved: Index
    hosts: int
    measured: Array
    day: Day

    @property
    def load(self) -> Array:
        """(hosts,) what each host was asked for in this interval, as a share of what it has."""
        return self.measured[:, -1]


Policy = Callable[[View], Sequence[tuple[int, int]]]
"""The moves to make, as (machine, host). `View.moved` is the interval of each machine's last move, -PAUSE - 1: none."""


@dataclass(frozen=True)
class Outcome:
    """`overloaded`: host-intervals. `peak`: max/mean of the hosts' loads, (samples,). `soonest`: intervals between
    two moves of one machine at least."""

    counted: int
    overloaded: int
    moves: int
    moves_per_day: float
    peak: Array
    soonest: int
    reversals: int


def run(day: Day, how: str, seed: int, policy: Policy | None) -> Outcome:
    """A whole day; None moves nothing."""
    machines, samples = day.use.shape
    at = day.place(how, seed)
    moved = np.full(machines, -PAUSE - 1, dtype=np.int64)
    before = np.full(machines, -1, dtype=np.int64)
    measured = np.zeros((day.hosts, samples))
    overloaded = moves = reversals = 0
    soonest = samples
    first = HOUR if how == "measured" else 0
    for now in range(samples):
        measured[:, now] = np.bincount(at, day.use[:, now], day.hosts)
        if now >= first:
            overloaded += int((measured[:, now] > 1.0).sum())
        if policy is None or now < first - 1:
            continue
        view = View(now, day.use[:, : now + 1], at.copy(), moved.copy(), day.hosts, measured[:, : now + 1], day)
        for machine, host in policy(view):
            if moved[machine] >= 0:
                soonest = min(soonest, now - int(moved[machine]))
                reversals += int(before[machine] == host)
            before[machine], at[machine], moved[machine] = at[machine], host, now
            moves += 1
    mean = np.maximum(measured.mean(axis=0), 1e-9)
    return Outcome(
        day.hosts * (samples - first), overloaded, moves, moves / machines / max(1.0, samples / DAY),
        measured.max(axis=0) / mean, soonest, reversals,
    )  # fmt: skip


def synthetic(machines: int, samples: int, seed: int) -> Array:
    """CPU % in the manner of shared machines: skewed means, slow drift, level shifts, daily swing and spikes."""
    rng = np.random.default_rng(seed)
    level = np.minimum(rng.gamma(0.6, 14.0, machines), 90.0)[:, None]
    phase, swing = rng.uniform(0, 2 * np.pi, (machines, 1)), rng.uniform(0, 0.5, (machines, 1))
    daily = 1.0 + swing * np.sin(2 * np.pi * np.arange(samples)[None] / DAY + phase)
    shifts = rng.random((machines, samples)) < 4.0 / DAY
    factor = np.where(shifts, rng.lognormal(0.0, 0.8, (machines, samples)), 1.0)
    drift = np.exp(np.clip(np.cumsum(np.log(factor), axis=1), -2.0, 2.0))
    noise = np.zeros((machines, samples))
    steps = rng.normal(0, 0.25, (machines, samples))
    for now in range(1, samples):
        noise[:, now] = 0.8 * noise[:, now - 1] + steps[:, now]
    spikes = np.where(rng.random((machines, samples)) < 0.02, rng.uniform(20, 80, (machines, samples)), 0.0)
    return np.clip(np.rint(level * daily * drift * np.exp(noise - 0.2) + spikes), 0.0, 100.0)
