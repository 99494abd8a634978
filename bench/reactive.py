"""The rules that others scale by, each over a whole grid of settings at once; not a measurement itself.

    hpa     Kubernetes' HorizontalPodAutoscaler (autoscaling/v2): every 15 s replicas x utilisation / target, nothing
            within 10 % of the target, never below what it wanted within the stabilisation window (300 s, settable)
    keda    the same rule on requests in flight per replica, as KEDA feeds it: sees more than 100 %
    kpa     Knative's pod autoscaler: every 2 s the concurrency of a stable window, of a tenth of it in a panic (twice
            what is ready), no scaling down in a panic or within the scale-down delay, at most to half a step
    ray     Ray Serve: ongoing requests of the last 30 s over the target, when that has lasted as long as the delays say

Each is given what it is tuned by in hindsight, trace by trace: the best setting that misses at most 1 %. None has an
upper bound; the lower bound is one replica. Sources: kubernetes.io "Horizontal Pod Autoscaling", knative.dev
"Autoscaling concepts" and pkg/autoscaler, docs.ray.io "Advanced autoscaling" (2025).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import product

import numpy as np
from replay import MISSES, STEP_S, Array, Demand, Fleet, Result, drive

TARGETS = tuple(float(value) for value in np.round(np.geomspace(0.08, 0.95, 40), 3))
WINDOWS_S = (0, 60, 120, 300, 600, 900, 1200, 1800, 2700, 3600)
DELAYS_S = (0, 60, 300, 600, 1200, 1800)
QUICK_TARGETS, QUICK_WINDOWS_S = TARGETS[::4], (60, 300, 900, 1800)


@dataclass(frozen=True)
class Tuned:
    """The cheapest setting of a rule that misses at most 1 % (else the one that misses least), found in hindsight."""

    rule: str
    setting: str
    result: Result
    tried: int


def tuned(rule: str, demand: Demand, start_s: float, *, quick: bool = False) -> Tuned:
    settings, results = RULES[rule](demand, start_s, quick)
    good = [index for index, result in enumerate(results) if result.missed <= MISSES]
    best = (
        min(good, key=lambda index: results[index].hours)
        if good
        else min(range(len(results)), key=lambda index: results[index].missed)
    )
    return Tuned(rule, settings[best], results[best], len(results))


def in_flight(fleet: Fleet, served: Array, queue: Array) -> Array:
    """Work in flight after each step, in replicas: a second of it is being worked on, the rest waits."""
    second = int(1 / STEP_S)
    lately = np.cumsum(np.concatenate([np.zeros((len(served), second)), served], axis=1), axis=1)
    working = lately[:, second:] - lately[:, :-second]
    return (working + queue) / (fleet.demand.capacity * second)


def hpa(demand: Demand, start_s: float, quick: bool, *, loaded: bool = False) -> tuple[list[str], list[Result]]:
    every = int(15 / STEP_S)
    grid = list(product(QUICK_TARGETS if quick else TARGETS, QUICK_WINDOWS_S if quick else WINDOWS_S))
    target = np.array([item[0] for item in grid])
    windows = _windows([item[1] for item in grid], 15)
    kept: deque[Array] = deque(maxlen=1 + max(windows))

    def decide(fleet: Fleet, served: Array, queue: Array) -> Array:
        able = fleet.demand.capacity * served.shape[1]
        used = in_flight(fleet, served, queue).mean(axis=1) if loaded else served.sum(axis=1) / able
        ratio = used / (fleet.wanted * target)  # replicas that start count as unused, as HPA has it
        asked = np.where(np.abs(ratio - 1) <= 0.1, fleet.wanted, np.ceil(used / target - 1e-9))
        kept.append(np.maximum(1.0, asked))
        return _stabilised(kept, windows, fleet.wanted)

    labels = [f"target {item[0]:g}, window {item[1]} s" for item in grid]
    return labels, drive(demand, start_s, every, len(grid), decide)


def keda(demand: Demand, start_s: float, quick: bool) -> tuple[list[str], list[Result]]:
    return hpa(demand, start_s, quick, loaded=True)


def kpa(demand: Demand, start_s: float, quick: bool) -> tuple[list[str], list[Result]]:
    every = int(2 / STEP_S)
    stables = (60,) if quick else (30, 60, 120, 300)
    grid = list(product(TARGETS[:: 4 if quick else 2], stables, DELAYS_S[:: 2 if quick else 1]))
    target = np.array([item[0] for item in grid])
    stable = _windows([item[1] for item in grid], 2)
    panic = _windows([max(6, item[1] // 10) for item in grid], 2)
    delay = _windows([item[2] for item in grid], 2)
    loads = Sums(len(grid), max(stable) + 1)
    held = Maxima(delay, len(grid))
    calm = np.zeros(len(grid))  # ticks of panic that are left
    length = np.zeros(len(grid), dtype=np.int64)
    for window, rows in stable.items():
        length[rows] = window
    high = np.zeros(len(grid))

    def decide(fleet: Fleet, served: Array, queue: Array) -> Array:
        loads.add(in_flight(fleet, served, queue).mean(axis=1))
        wanted = np.maximum(1.0, np.ceil(loads.mean(stable) / target - 1e-9))
        urgent = np.ceil(loads.mean(panic) / target - 1e-9)
        calm[:] = np.where(urgent >= 2 * fleet.ready, length, np.maximum(0, calm - 1))
        high[:] = np.where(calm > 0, np.maximum(high, np.maximum(urgent, fleet.wanted)), 0)
        wanted = np.where(calm > 0, np.maximum(wanted, high), np.maximum(wanted, np.floor(fleet.wanted / 2)))
        return held.of(wanted)

    labels = [f"target {item[0]:g}, stable {item[1]} s, delay {item[2]} s" for item in grid]
    return labels, drive(demand, start_s, every, len(grid), decide)


def ray(demand: Demand, start_s: float, quick: bool) -> tuple[list[str], list[Result]]:
    every = int(5 / STEP_S)
    ups = (0,) if quick else (0, 30)
    grid = list(product(TARGETS[:: 3 if quick else 1], ups, DELAYS_S[:: 2 if quick else 1]))
    target = np.array([item[0] for item in grid])
    up, down = np.array([item[1] / 5 for item in grid]), np.array([item[2] / 5 for item in grid])
    look = {6: np.arange(len(grid))}
    loads = Sums(len(grid), 7)
    lasted = np.zeros(len(grid))  # decisions for more (positive) or fewer in a row

    def decide(fleet: Fleet, served: Array, queue: Array) -> Array:
        loads.add(in_flight(fleet, served, queue).mean(axis=1))
        asked = np.maximum(1.0, np.ceil(loads.mean(look) / target - 1e-9))
        more, fewer = asked > fleet.wanted, asked < fleet.wanted
        lasted[:] = np.where(more, np.maximum(lasted, 0) + 1, np.where(fewer, np.minimum(lasted, 0) - 1, 0))
        acts = (more & (lasted > up)) | (fewer & (-lasted > down))
        lasted[:] = np.where(acts, 0, lasted)
        return np.where(acts, asked, fleet.wanted)

    labels = [f"target {item[0]:g}, up {item[1]} s, down {item[2]} s" for item in grid]
    return labels, drive(demand, start_s, every, len(grid), decide)


RULES = {"hpa": hpa, "keda": keda, "kpa": kpa, "ray": ray}


class Sums:
    """Means over the last ticks, for windows that differ from rule to rule."""

    def __init__(self, rules: int, longest: int) -> None:
        self._sums: deque[Array] = deque([np.zeros(rules)], maxlen=longest + 1)

    def add(self, values: Array) -> None:
        self._sums.append(self._sums[-1] + values)

    def mean(self, windows: dict[int, Array]) -> Array:
        found = np.empty_like(self._sums[-1])
        for window, rows in windows.items():
            count = min(window, len(self._sums) - 1)
            found[rows] = (self._sums[-1][rows] - self._sums[-1 - count][rows]) / count
        return found


class Maxima:
    """The largest of the last ticks, for windows that differ from rule to rule; remembers by halving: O(log) a tick."""

    def __init__(self, windows: dict[int, Array], rules: int) -> None:
        self._windows = windows
        self._queues: dict[int, deque[tuple[int, Array]]] = {window: deque() for window in windows}
        self._tick, self._found = 0, np.zeros(rules)

    def of(self, values: Array) -> Array:
        """The maximum over each rule's window, this tick's `values` included."""
        self._tick += 1
        for window, rows in self._windows.items():
            queue = self._queues[window]
            # Blocks of an eighth of the window, each with its own maximum: at most an eighth too long.
            size = max(1, window // 8)
            if queue and self._tick // size == queue[-1][0]:
                queue[-1] = (queue[-1][0], np.maximum(queue[-1][1], values[rows]))
            else:
                queue.append((self._tick // size, values[rows]))
            while queue[0][0] < (self._tick - window) // size:
                queue.popleft()
            self._found[rows] = np.max([item[1] for item in queue], axis=0)
        return self._found.copy()


def _windows(seconds: list[int], tick_s: int) -> dict[int, Array]:
    """Window in ticks -> the rules that have it."""
    ticks = np.array([max(1, value // tick_s) for value in seconds])
    return {int(value): np.flatnonzero(ticks == value) for value in np.unique(ticks)}


def _stabilised(kept: deque[Array], windows: dict[int, Array], wanted: Array) -> Array:
    """Up at once, down only to the largest that was asked for within the window."""
    found = kept[-1].copy()
    past = np.array(kept)
    for window, rows in windows.items():
        highest = past[-window:, rows].max(axis=0)
        found[rows] = np.where(found[rows] >= wanted[rows], found[rows], np.minimum(wanted[rows], highest))
    return found
