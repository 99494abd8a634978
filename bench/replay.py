"""Replaying demand against numbers of replicas, at 0.5 s: what was missed and what it cost; not a measurement itself.

A replica works off `capacity` tokens a second; what cannot be worked off waits in one queue, first come first served,
as a fluid. A request is missed when it waits longer than a second. A replica that is ordered is paid for at once and
works after `start_s`; one that is not wanted any more is let go at once, the youngest first (so one that is still
starting before one that works). With that order, what works at a moment is the smallest number that was wanted within
the last `start_s`: no other state is needed, and hundreds of rules are replayed side by side.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import traces
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]
Decide = Callable[["Fleet", NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

STEP_S = 0.5
WAIT_STEPS = 2  # a second
MISSES = 0.01
STATIC = 40
"""A service is sized so that a fixed number of this many replicas would just do."""
LEARN = 0.25
"""The share of a trace that every rule sees before it is judged."""
PER_REPLICA_S = 10.0
"""Requests that one replica answers a second, where a trace has only tokens a second."""


@dataclass(frozen=True)
class Demand:
    """`work`: tokens that arrive in each step; `requests`: how many requests bring them. `capacity`: tokens a replica
    works off in a step."""

    name: str
    work: Array
    requests: Array
    capacity: float = 1.0

    @property
    def judged(self) -> int:
        """The step from which on it counts."""
        return int(len(self.work) * LEARN)

    @property
    def lumpiness(self) -> float:
        """Replicas that a fixed number needs, per replica that is busy on average."""
        return STATIC * self.capacity / float(self.work[self.judged :].mean())


def demands(path: Path, seed: int = 0, *, jumps: bool = False) -> Demand:
    """A trace of requests or of minutes as demand, sized to STATIC replicas.

    Requests count at the times of the trace. A minute's tokens/s are interpolated between the middles of minutes (with
    `jumps` they hold until the minute is over) and arrive as Poisson requests of equal size.
    """
    if traces.kind(path) == "minutes":
        found = minutes(traces.minutes(path), seed, jumps=jumps)
    else:
        read = traces.requests(path)
        place = np.floor(read.times_s / STEP_S).astype(np.int64)
        count = int(place.max()) + 1
        work = np.bincount(place, weights=read.context + read.generated, minlength=count)
        found = work, np.bincount(place, minlength=count).astype(float)
    return sized(path.name.split(".")[0], *found)


def minutes(rates: Array, seed: int, *, jumps: bool = False) -> tuple[Array, Array]:
    steps = int(60 / STEP_S)
    moments = (np.arange(len(rates) * steps) + 0.5) / steps
    rate = np.repeat(rates, steps) if jumps else np.interp(moments, np.arange(len(rates)) + 0.5, rates)
    # So many requests that a replica of the size to come answers about PER_REPLICA_S of them a second.
    tokens = float(np.quantile(rates, 0.99)) / STATIC / PER_REPLICA_S
    requests = np.random.default_rng(seed).poisson(rate * STEP_S / tokens).astype(float)
    return requests * tokens, requests


def sized(name: str, work: Array, requests: Array, replicas: int = STATIC) -> Demand:
    """The demand with replicas of such a capacity that `replicas` of them are the fewest that would do."""
    low, high = 1.0, float(work.max() / work.mean()) + 1.0
    judged = int(len(work) * LEARN)
    for _ in range(14):
        middle = math.sqrt(low * high)
        enough = missed(work, requests, np.full(len(work), work.mean() * middle), judged) <= MISSES
        low, high = (low, middle) if enough else (middle, high)
    return Demand(name, work, requests, float(work.mean()) * high / replicas)


def missed(work: Array, requests: Array, capacity: Array, judged: int) -> float:
    """The share of requests, from step `judged` on, that waited longer than WAIT_STEPS. All arrays: (steps,)."""
    arrived, net = np.cumsum(work), np.cumsum(work - capacity)
    served = arrived - (net - np.minimum(np.minimum.accumulate(net), 0.0))
    late = np.concatenate([served[WAIT_STEPS:], np.full(WAIT_STEPS, np.inf)])
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(work > 0, np.clip((arrived - late) / work, 0.0, 1.0), 0.0)
    return float((share * requests)[judged:].sum() / max(1.0, requests[judged:].sum()))


@dataclass
class Fleet:
    """Replicas of `rules` rules beside each other, all fed the same demand, in blocks of `every` steps."""

    demand: Demand
    rules: int
    every: int
    start_s: float
    first: float = STATIC
    wanted: Array = field(init=False)
    ready: Array = field(init=False)
    queue: Array = field(init=False)

    def __post_init__(self) -> None:
        self.wanted = np.full(self.rules, float(self.first))
        self.ready = self.wanted.copy()
        self.queue = np.zeros(self.rules)
        blocks = math.ceil(self.start_s / STEP_S / self.every)
        self._orders: deque[Array] = deque([self.wanted] * (blocks + 1), maxlen=blocks + 1)
        self._late = np.zeros(self.rules)
        self._paid = np.zeros(self.rules)
        self._turns, self._direction = np.zeros(self.rules), np.zeros(self.rules)
        self._asked = 0.0
        self._tail = (np.zeros(WAIT_STEPS), np.zeros((self.rules, WAIT_STEPS)), np.zeros(WAIT_STEPS))
        self._arrived, self._step, self._began = 0.0, 0, 0

    def order(self, wanted: Array) -> None:
        """So many are wanted from now on, for each rule."""
        move = np.sign(wanted - self.wanted)
        if self._step >= self.demand.judged:
            self._turns += (move != 0) & (self._direction != 0) & (move != self._direction)
        self._direction = np.where(move != 0, move, self._direction)
        self.wanted = wanted

    def run(self) -> tuple[Array, Array]:
        """One block passes. Returns what was served in each of its steps, (rules, steps), and the queue after each."""
        demand, begin = self.demand, self._step
        work = demand.work[begin : begin + self.every]
        self._orders.append(self.wanted)
        self.ready = np.min(self._orders, axis=0)
        able = self.ready * demand.capacity
        net = self.queue[:, None] + np.cumsum(work)[None] - able[:, None] * np.arange(1, len(work) + 1)[None]
        queue = net - np.minimum(np.minimum.accumulate(net, axis=1), 0.0)
        served = work[None] + np.concatenate([self.queue[:, None], queue[:, :-1]], axis=1) - queue
        self._score(work, demand.requests[begin : begin + self.every], queue)
        self.queue, self._step = queue[:, -1], begin + len(work)
        return served, queue

    def _score(self, work: Array, requests: Array, queue: Array) -> None:
        """Judges the steps for which it is known by now what was served a second later."""
        arrived = self._arrived + np.cumsum(work)
        self._arrived = float(arrived[-1])
        before, served_before, asked_before = self._tail
        arrivals = np.concatenate([before, arrived])
        served = np.concatenate([served_before, arrived[None] - queue], axis=1)
        asked = np.concatenate([asked_before, requests])
        count = len(work)
        if self._step - WAIT_STEPS >= self.demand.judged:
            at = np.arange(self._step - WAIT_STEPS, self._step - WAIT_STEPS + count)
            own = np.maximum(self.demand.work[at], 1e-9)
            late = np.clip((arrivals[None, :count] - served[:, WAIT_STEPS:]) / own[None], 0.0, 1.0)
            self._late += (late * asked[None, :count]).sum(axis=1)
            self._asked += float(asked[:count].sum())
            self._paid += self.wanted * count
            self._began = self._began or self._step
        self._tail = arrivals[-WAIT_STEPS:], served[:, -WAIT_STEPS:], asked[-WAIT_STEPS:]

    @property
    def over(self) -> bool:
        return self._step + self.every > len(self.demand.work)

    def results(self) -> list[Result]:
        """What each rule missed and cost, from the step on from which it is judged.

        Rules decide in blocks of different lengths, so their spans differ by some seconds: hours are those of the mean
        over the whole span that counts, which is the same for all.
        """
        steps = max(1, self._step - self._began)
        span_h = (len(self.demand.work) - self.demand.judged) * STEP_S / 3600
        return [
            Result(
                float(late / max(1.0, self._asked)),
                float(paid / steps * span_h),
                float(paid / steps),
                float(turns / max(1e-9, steps * STEP_S / 3600)),
            )
            for late, paid, turns in zip(self._late, self._paid, self._turns, strict=True)
        ]


@dataclass(frozen=True)
class Result:
    """`missed`: share of requests. `hours`: replica-hours. `mean`: replicas. `turns`: changes of direction an hour."""

    missed: float
    hours: float
    mean: float
    turns: float = 0.0


def plan(demand: Demand, wanted: Array) -> Result:
    """What a plan that is known for every step misses and costs (it was wanted a start-up time before)."""
    judged = demand.judged
    share = missed(demand.work, demand.requests, wanted * demand.capacity, judged)
    return Result(share, float(wanted[judged:].sum() * STEP_S / 3600), float(wanted[judged:].mean()))


def oracle(demand: Demand, start_s: float) -> Result:
    """Who knows the future: every replica runs only when it is needed, or a start-up time before it is (which is paid
    for), and the peaks above the lowest level that misses at most MISSES are left out. Near the least possible, not
    proven to be it."""
    load = (demand.work / demand.capacity).tolist()
    best: Result | None = None
    low, high = 1, math.ceil(max(load))
    while low <= high:
        level = (low + high) // 2
        result = _foreseen(demand, _needed(load, level), int(start_s / STEP_S))
        if result.missed <= MISSES:
            best, high = result, level - 1
        else:
            low = level + 1
    return best or static(demand)


def _needed(load: list[float], level: int) -> Array:
    """Replicas, at most `level`, with which all that waits by the end of each step is done a second later."""
    found, waiting = np.empty(len(load)), 0.0
    for step, now in enumerate(load):
        count = min(level, max(1, math.ceil((waiting + now) / (WAIT_STEPS + 1) - 1e-9)))
        found[step] = count
        waiting = max(0.0, waiting + now - count)
    return found


def _foreseen(demand: Demand, needed: Array, steps: int) -> Result:
    """Paid from `steps` before each replica is needed; what works is what was paid for all that time."""
    paid = sliding_window_view(np.concatenate([needed, np.ones(steps)]), steps + 1).max(axis=1)
    ready = sliding_window_view(np.concatenate([np.full(steps, paid[0]), paid]), steps + 1).min(axis=1)
    late = missed(demand.work, demand.requests, ready * demand.capacity, demand.judged)
    cost = plan(demand, paid)
    return Result(late, cost.hours, cost.mean)


def static(demand: Demand) -> Result:
    """The fewest replicas that, always running, miss at most MISSES."""
    count = 1
    while True:
        result = plan(demand, np.full(len(demand.work), float(count)))
        if result.missed <= MISSES:
            return result
        count += max(1, count // 40)


def drive(demand: Demand, start_s: float, every: int, rules: int, decide: Decide) -> list[Result]:
    """Replays `rules` rules. `decide(fleet, served, queue)`, of the block that has passed, says how many are wanted."""
    fleet = Fleet(demand, rules, every, start_s)
    while not fleet.over:
        served, queue = fleet.run()
        fleet.order(decide(fleet, served, queue))
    return fleet.results()
