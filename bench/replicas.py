"""A simulated deployment: replicas with antagonists behind one or more gateways, driven request by request.

Not a measurement itself; `routing` compares pickers on it. A replica works on `slots` requests at a time, first come
first served. Its speed is 1 until an antagonist (a neighbour on its machine) takes a part of it for a while. Arrivals,
work and speeds are drawn before, so that every picker meets exactly the same day.

Between two changes of speed a replica finishes work at a steady pace, so a request's end is known when it is placed.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

STEP_S = 5.0
"""A sample of a machine's use lasts so long here: five minutes of a trace pass in five seconds."""


@dataclass(frozen=True)
class Day:
    """What happens. `work_s` is a mean request's time on a free replica; `load` a share of the mean capacity."""

    replicas: int = 40
    span_s: float = 60.0
    warm_s: float = 10.0
    work_s: float = 0.02
    load: float = 0.7
    quiet_s: float = 40.0
    busy_s: float = 20.0
    left: tuple[float, float] = (0.15, 0.7)
    slots: int = 1
    seed: int = 0


class Speeds:
    """The speed of every replica over time, and how much work it had time for by then."""

    def __init__(self, day: Day, rng: np.random.Generator, use: Any = None) -> None:
        self.times: list[list[float]] = []
        self.speed: list[list[float]] = []
        self.work: list[list[float]] = []
        for _ in range(day.replicas):
            if use is not None:
                self._replay(day, rng, use)
                continue
            busy = bool(rng.random() < day.busy_s / (day.busy_s + day.quiet_s))
            times, speed, work = [0.0], [], [0.0]
            while times[-1] < day.span_s + 60.0:
                lasts = float(rng.exponential(day.busy_s if busy else day.quiet_s))
                speed.append(float(rng.uniform(*day.left)) if busy else 1.0)
                work.append(work[-1] + speed[-1] * lasts)
                times.append(times[-1] + lasts)
                busy = not busy
            self.times.append(times)
            self.speed.append(speed)
            self.work.append(work)

    def _replay(self, day: Day, rng: np.random.Generator, use: Any) -> None:
        """The machine's own use leaves the replica the rest: one sample every STEP_S, from a random one on."""
        series, at = use[rng.integers(len(use))], int(rng.integers(use.shape[1]))
        count = math.ceil((day.span_s + 60.0) / STEP_S)
        speed = [1.0 - float(series[(at + index) % len(series)]) for index in range(count)]
        self.times.append([index * STEP_S for index in range(count + 1)])
        self.speed.append(speed)
        self.work.append([0.0, *np.cumsum(np.array(speed) * STEP_S).tolist()])

    def now(self, replica: int, at_s: float) -> float:
        return self.speed[replica][bisect_right(self.times[replica], at_s) - 1]

    def done(self, replica: int, at_s: float) -> float:
        """Work that the replica had time for until `at_s`."""
        part = bisect_right(self.times[replica], at_s) - 1
        return self.work[replica][part] + self.speed[replica][part] * (at_s - self.times[replica][part])

    def when(self, replica: int, work: float) -> float:
        """When it has had time for `work`."""
        part = max(0, bisect_left(self.work[replica], work) - 1)
        part = min(part, len(self.speed[replica]) - 1)
        return self.times[replica][part] + (work - self.work[replica][part]) / self.speed[replica][part]


class Scene:
    """One day, drawn from its seed. `use`: (machines, samples) of machines' use as shares, the antagonists."""

    def __init__(self, day: Day, use: Any = None) -> None:
        self.day = day
        rng = np.random.default_rng(day.seed)
        self.speeds = Speeds(day, rng, use)
        mean = sum(self.speeds.done(index, day.span_s) for index in range(day.replicas)) / day.span_s
        self.rate_per_s = day.load * mean / day.work_s
        arrivals = np.cumsum(rng.exponential(1 / self.rate_per_s, int(self.rate_per_s * day.span_s * 1.1)))
        self.arrivals: list[float] = arrivals[arrivals < day.span_s].tolist()
        self.works: list[float] = rng.exponential(day.work_s, len(self.arrivals)).tolist()


class Gateway:
    """What one gateway counts of every replica, as Envoy does: in flight now, and answered so far."""

    def __init__(self, replicas: int) -> None:
        self.active = [0] * replicas
        self.answered = [0] * replicas


class Picker(Protocol):
    """Chooses for one gateway. `ended` tells what its gateway saw; a probe may look at `true` (all in flight)."""

    def pick(self, at_s: float) -> int: ...

    def ended(self, replica: int, at_s: float, took_s: float, met: int) -> None: ...


class Control(Protocol):
    """Looks once a second at what all gateways counted."""

    def tick(self, at_s: float) -> None: ...


def run(scene: Scene, gateways: Sequence[Gateway], pickers: Sequence[Picker], control: Control | None) -> Any:
    """Latencies (seconds) of every request that came after the warm-up, as an array."""
    day, speeds = scene.day, scene.speeds
    rng = random.Random(day.seed + 1)
    free = [[0.0] * day.slots for _ in range(day.replicas)]  # the work after which each slot is free
    running = [0] * day.replicas
    ends: list[tuple[float, int, int, float, int]] = []
    found: list[float] = []
    tick_s = 1.0
    for at_s, work in zip(scene.arrivals, scene.works, strict=True):
        while True:
            if ends and ends[0][0] <= min(at_s, tick_s):
                end_s, gate, replica, begun_s, met = heapq.heappop(ends)
                gateways[gate].active[replica] -= 1
                gateways[gate].answered[replica] += 1
                running[replica] -= 1
                pickers[gate].ended(replica, end_s, end_s - begun_s, met)
            elif tick_s <= at_s:
                if control is not None:
                    control.tick(tick_s)
                tick_s += 1.0
            else:
                break
        gate = rng.randrange(len(gateways)) if len(gateways) > 1 else 0
        replica = pickers[gate].pick(at_s)
        slots = free[replica]
        after = max(slots[0], speeds.done(replica, at_s)) + work * day.slots
        heapq.heapreplace(slots, after)
        end_s = speeds.when(replica, after)
        heapq.heappush(ends, (end_s, gate, replica, at_s, running[replica]))
        gateways[gate].active[replica] += 1
        running[replica] += 1
        if at_s >= day.warm_s:
            found.append(end_s - at_s)
    return np.array(found)
