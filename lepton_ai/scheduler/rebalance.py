"""Which work moves from overloaded nodes to others: source, victim and destination in one decision.

Owns the decision and its written reasons; carrying a move out is `control`'s. Every node has a load to plan for from
below: what its work uses by habit (see `habit`), what is measured beside it, and the deviation of both. Its *risk* is
the chance that it uses more than it has, plus the expected excess as a share of it, plus a little for what is planned
beyond its limit: the first counts overloaded moments, the others point downhill where the chance is one, or none.

A node gives work away when it is marked overloaded (s = w * u over its limit, see `load`) and is over its limit from
below as well: a spike fulfils only the first, and what has already left only the first too. The move is taken that
lowers the risk of the cell most for its cost; the destination stays under its limit with everything on its way there,
and among those where the risk hardly rises the fullest is taken. (Sandpiper, NSDI 2007, also sheds what is largest
for its cost first; the risk instead of a threshold is ours.)

Nothing oscillates: a destination ends below its limit and a source begins above it, a move must gain `least`, nothing
moves twice within `pause_s`, one of an owner's at a time, and the budget is a bucket of moves per day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from lepton_ai.scheduler.feasible import feasible
from lepton_ai.scheduler.load import Load
from lepton_ai.scheduler.snapshot import Request, Snapshot, amounts

COLUMNS = ("cpu", "memory")
"""What is weighed: the first columns of `snapshot.UNITS` under the names that `load` has for them."""
DAY_S = 86_400.0
Z = 1.2815515655446004
"""The upper quantile of `load`, 90 %, in deviations."""
SMALLEST = 1e-3
"""A deviation is at least this share of the node, so that a chance is always defined."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How much a move must gain and how many there may be. The defaults are what ships.

    `least`: risk that a move must take off the cell. `slope`: risk for each share of a node that is planned for beyond
    its limit, so that it is brought below also where the chance of too much is small. `tolerance`: a rise of the
    destination's risk that counts as none. `per_call`: moves, and `victims`: pieces of work of one source that are
    looked at, the largest first.
    `burst` moves per piece of work may come at once and `per_day` more of them a day, so in no 24 hours more than
    both together; a small cell has `burst_least` and `per_day_least`.
    """

    least: float = 0.01
    tolerance: float = 0.0003
    slope: float = 0.5
    pause_s: float = 1800.0
    per_call: int = 4
    victims: int = 64
    burst: float = 0.10
    per_day: float = 0.24
    burst_least: int = 4
    per_day_least: int = 24


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work where it runs. `request` is what would be placed again; its uid names it.

    `mean`, `spread` and `now` are what it uses by habit, the deviation of it, and what it uses at the moment, in
    thousandths of a core and MiB. `owner`: of one owner's one moves at a time ("": no matter). `to`: where it is on
    its way to; it counts there. `moved_s`: seconds since it last moved. `held` says why it may not move at all.
    """

    request: Request
    node: str
    mean: tuple[float, float]
    spread: tuple[float, float] = (0.0, 0.0)
    now: tuple[float, float] = (0.0, 0.0)
    owner: str = ""
    cost: float = 1.0
    to: str = ""
    moved_s: float | None = None
    held: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """`uid` goes from `source` to `destination`; `gain` is the risk that it takes off the cell."""

    uid: str
    source: str
    destination: str
    gain: float
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The moves in the order decided, and for every overloaded node that gives (no more) work away: why."""

    moves: tuple[Move, ...] = ()
    refusals: Mapping[str, str] | None = None


def allowance(works: int, moved_ago_s: Sequence[float], rules: Rules = Rules()) -> int:
    """How many moves may be begun now, if those of the last day were begun so many seconds ago.

    A bucket that holds the burst and fills evenly. It was full a day ago, so times are all it takes to know it.
    """
    size = max(rules.burst * works, float(rules.burst_least))
    rate = max(rules.per_day * works, float(rules.per_day_least)) / DAY_S
    left, before_s = size, DAY_S
    for ago_s in sorted((ago_s for ago_s in moved_ago_s if ago_s < DAY_S), reverse=True):
        ago_s = max(0.0, ago_s)  # a clock that was set back
        left = min(size, left + (before_s - ago_s) * rate) - 1.0
        before_s = ago_s
    return max(0, int(min(size, left + before_s * rate) + 1e-9))


def rebalance(
    snapshot: Snapshot, loads: Sequence[Load], works: Sequence[Work], *, budget: int, rules: Rules = Rules()
) -> Plan:
    """The moves to begin now.

    Args:
        snapshot: everything reserved, moves under way included at both their ends.
        loads: what is known of the nodes; one that is missing here, or stale, is neither source nor destination.
        works: everything that runs, also what may not move: it is part of its node's load.
        budget: how many moves there may be (see `allowance`).

    The same arguments give the same plan. The work is bounded: at most `per_call` moves, each weighing `victims` by
    nodes, and each overloaded node that finds none is looked at once.
    """
    state = _State(snapshot, loads, works, rules)
    moves: list[Move] = []
    refusals: dict[str, str] = {}
    limit = min(budget, rules.per_call)
    while len(sources := state.sources()) and len(moves) < limit:
        source = int(sources[0])
        found = state.best(source)
        if isinstance(found, str):
            refusals[state.names[source]] = found
            state.leave(source)
        else:
            moves.append(state.take(*found))
    why = "the budget of moves is spent" if budget <= len(moves) else f"{len(moves)} moves at once are enough"
    refusals |= {state.names[source]: why for source in sources.tolist()}
    return Plan(tuple(moves), refusals)


class _State:
    """The loads as they will be after the moves decided so far. Rows are nodes of the snapshot, columns COLUMNS."""

    def __init__(self, snapshot: Snapshot, loads: Sequence[Load], works: Sequence[Work], rules: Rules) -> None:
        self.snapshot, self.rules, self.names = snapshot, rules, snapshot.names
        self._index = {name: row for row, name in enumerate(snapshot.names)}
        self._works = sorted((work for work in works if work.node in self._index), key=lambda work: work.request.uid)
        self._loads: list[Load | None] = [None] * len(self.names)
        for load in loads:
            if load.name in self._index:
                self._loads[self._index[load.name]] = load
        self._capacity = np.maximum(snapshot.capacity[:, :2].astype(np.float64), 1.0)
        self._limit = np.array([1.0 if load is None else load.limit for load in self._loads])
        known = [load is not None and not load.stale for load in self._loads]
        self._takes: NDArray[np.bool_] = np.array(known, dtype=bool)
        hot = [load is not None and load.mark == "overloaded" for load in self._loads]
        kept = [not why for why in snapshot.blocked]  # a drained node empties by itself, an unreachable one cannot
        self._gives: NDArray[np.bool_] = self._takes & np.array(hot, dtype=bool) & np.array(kept, dtype=bool)
        self._takes = self._takes & ~np.array(hot, dtype=bool)
        self._read_works()
        self._read_loads()
        self._sources: NDArray[np.int64] | None = None
        self._feasible: dict[object, NDArray[np.bool_]] = {}
        self._crowded: set[int] = set()  # devices are dealt out by who places it: one such move to a node

    def _read_works(self) -> None:
        works, count = self._works, len(self._works)
        mean = np.array([work.mean for work in works], dtype=np.float64).reshape(count, 2)
        spread = np.array([work.spread for work in works], dtype=np.float64).reshape(count, 2)
        now = np.array([work.now for work in works], dtype=np.float64).reshape(count, 2)
        reserved = np.array([amounts(work.request.resources)[:2] for work in works], dtype=np.float64).reshape(count, 2)
        sound = np.isfinite(mean) & (mean >= 0.0)
        self._unknown: NDArray[np.bool_] = ~np.asarray(sound.all(axis=1))
        self._mean = np.where(sound, mean, reserved)
        self._variance = np.where(np.isfinite(spread) & sound, spread, 0.0) ** 2
        self._now = np.where(np.isfinite(now) & (now >= 0.0), now, self._mean)
        self._home = np.array([self._index[work.node] for work in works], dtype=np.int64)
        self._at = np.array([self._index.get(work.to, self._index[work.node]) for work in works], dtype=np.int64)
        moving = {work.owner for work in works if work.owner and work.to}
        self._held = [self._why_held(row, moving) for row in range(count)]
        self._free = np.array([not why for why in self._held], dtype=bool)

    def _why_held(self, row: int, moving: set[str]) -> str:
        work = self._works[row]
        if work.to:
            return "on their way"
        if work.held:
            return work.held
        if self._unknown[row]:
            return "not measured"
        if work.moved_s is not None and work.moved_s < self.rules.pause_s:
            return f"moved less than {self.rules.pause_s / 60:g} min ago"
        return "another of their owner's moves" if work.owner in moving else ""

    def _read_loads(self) -> None:
        """Habit of the work plus what is measured beside it (a node's own processes, a stranger's)."""
        shape = (len(self.names), 2)
        measured, now = np.zeros(shape), np.zeros(shape)
        for row, load in enumerate(self._loads):
            for part in load.parts if load is not None and not load.stale else ():
                if part.resource in COLUMNS:
                    column = COLUMNS.index(part.resource)
                    measured[row, column] = part.u * self._capacity[row, column]
        np.add.at(now, self._home, self._now)
        self._means = np.maximum(measured - now, 0.0)
        self._variances = np.zeros(shape)
        np.add.at(self._means, self._at, self._mean)
        np.add.at(self._variances, self._at, self._variance)

    # -- deciding

    def sources(self) -> NDArray[np.int64]:
        """The nodes that may give work away and are over their limit, the one that is furthest over first."""
        if self._sources is None:
            over = self._upper() / self._limit
            rows = np.flatnonzero(self._gives & (over > 1.0))
            self._sources = rows[np.argsort(-over[rows], kind="stable")]
        return self._sources

    def leave(self, source: int) -> None:
        """The first of `sources` gives no more away."""
        assert self._sources is not None
        self._gives[source], self._sources = False, self._sources[1:]

    def best(self, source: int) -> tuple[int, int, float] | str:
        """(work, node, gain) of the best move from `source`, or why there is none."""
        here = np.flatnonzero(self._at == source)
        free = here[self._free[here]]
        if not len(free):
            why = Counter(self._held[row] for row in here.tolist())
            told = "; ".join(f"{text}: {count}" for text, count in sorted(why.items()))
            return "nothing on it may move" + (f" ({told})" if told else "")
        share = (self._mean[free] / self._capacity[source]).max(axis=1)
        free = free[np.argsort(-share, kind="stable")[: self.rules.victims]]
        may = np.stack([self._may(int(row)) for row in free])
        if not may.any():
            return "no other node may take any of its work"
        rise, upper = self._rise(free, may)
        fits = may & (upper <= self._limit)
        if not fits.any():
            return "every node that may take its work would be over its limit"
        node = _choose(np.where(fits, rise, np.inf), upper, self.rules.tolerance)
        rows = np.arange(len(free))
        left = self._risk(
            self._means[source] - self._mean[free], self._variances[source] - self._variance[free], source
        )
        cost = np.array([max(self._works[row].cost, 1e-3) for row in free.tolist()])
        fall = float(self._risk(self._means[source], self._variances[source], source)) - left
        gain = np.where(fits[rows, node], fall - rise[rows, node], -np.inf)
        first = int(np.argmax(gain / cost))
        if gain[first] < self.rules.least * cost[first]:
            return f"no move would gain enough (less than {self.rules.least:g} of risk)"
        return int(free[first]), int(node[first]), float(gain[first])

    def take(self, row: int, node: int, gain: float) -> Move:
        """Reserve the move, and say why it is made."""
        work, source = self._works[row], int(self._at[row])
        before, there = self._upper(), f"{self.names[source]} plans"
        for place, sign in ((source, -1.0), (node, 1.0)):
            self._means[place] = np.maximum(self._means[place] + sign * self._mean[row], 0.0)
            self._variances[place] = np.maximum(self._variances[place] + sign * self._variance[row], 0.0)
        self._at[row], self._free[row], self._held[row] = node, False, "on their way"
        for other, item in enumerate(self._works):
            if work.owner and item.owner == work.owner and self._free[other]:
                self._free[other], self._held[other] = False, "another of their owner's moves"
        self._reserve(work.request, node)
        self._sources = None
        after, load = self._upper(), self._loads[source]
        assert load is not None
        reason = (
            f"{there} {before[source]:.2f} of its {load.resource} (u {load.u:.2f} x w {load.w:.2f}), over its limit of "
            f"{load.limit:g}; without it {after[source]:.2f}; {self.names[node]} goes from {before[node]:.2f} to "
            f"{after[node]:.2f}"
        )
        return Move(work.request.uid, self.names[source], self.names[node], gain, reason)

    # -- within

    def _upper(self) -> NDArray[np.float64]:
        """The share to plan for of each node's most loaded resource: s, from below."""
        upper: NDArray[np.float64] = ((self._means + Z * np.sqrt(self._variances)) / self._capacity).max(axis=1)
        return upper

    def _may(self, row: int) -> NDArray[np.bool_]:
        """Where the hard rules and what is known of the nodes let the work go."""
        request = self._works[row].request
        key = _kind(request)
        if key not in self._feasible:
            self._feasible[key] = feasible(self.snapshot, request)
        may: NDArray[np.bool_] = self._feasible[key] & self._takes
        may[self._at[row]] = False
        if request.resources.accelerator_milli and self._crowded:
            may[list(self._crowded)] = False
        return may

    def _rise(self, rows: NDArray[np.int64], may: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(rise of the risk, share planned) of every node that may take each of `rows`; elsewhere infinite."""
        shape = (len(rows), len(self.names))
        rise, upper = np.full(shape, np.inf), np.full(shape, np.inf)
        which, node = np.nonzero(may)
        mean = self._means[node] + self._mean[rows[which]]
        variance = self._variances[node] + self._variance[rows[which]]
        before = self._risk(self._means, self._variances)
        rise[which, node] = self._risk(mean, variance, node) - before[node]
        upper[which, node] = ((mean + Z * np.sqrt(variance)) / self._capacity[node]).max(axis=1)
        return rise, upper

    def _risk(
        self,
        mean: NDArray[np.float64],
        variance: NDArray[np.float64],
        node: int | NDArray[np.int64] | slice = slice(None),
    ) -> NDArray[np.float64]:
        """The chance that a node uses more than it has plus the expected excess, summed over the resources."""
        capacity = self._capacity[node]
        spread = np.maximum(np.sqrt(np.maximum(variance, 0.0)) / capacity, SMALLEST)
        over = (mean / capacity - 1.0) / spread
        chance = _normal(over)
        excess = spread * (np.exp(-0.5 * over * over) * 0.3989422804014327 + over * chance)
        beyond = mean / capacity + Z * spread - self._limit[node][..., None]
        risk: NDArray[np.float64] = (chance + np.maximum(excess, 0.0) + self.rules.slope * np.maximum(beyond, 0.0)).sum(
            axis=-1
        )
        return risk

    def _reserve(self, request: Request, node: int) -> None:
        state, name = self.snapshot, self.names[node]
        self._feasible.clear()
        used = state.used.copy()
        used[node] += np.array(amounts(request.resources), dtype=np.int64)
        beside = dict(state.groups.get(request.group, {}))
        beside[name] = beside.get(name, 0) + 1
        taken, address = state.taken, state.addresses[node] if state.addresses else ""
        if address and request.ports:
            taken = {**taken, address: {**taken.get(address, {}), **dict.fromkeys(request.ports, "a move")}}
        if request.resources.accelerator_milli:
            self._crowded.add(node)
        self.snapshot = replace(state, used=used, groups={**state.groups, request.group: beside}, taken=taken)


def _kind(request: Request) -> tuple[object, ...]:
    """Equal for requests that are feasible on the same nodes."""
    values = (getattr(request, item.name) for item in fields(request) if item.name not in ("uid", "prefer"))
    return tuple(tuple(sorted(value.items())) if isinstance(value, Mapping) else value for value in values)


def _choose(rise: NDArray[np.float64], upper: NDArray[np.float64], tolerance: float) -> NDArray[np.int64]:
    """For each row the fullest node among those whose rise is at most `tolerance` above the least."""
    least = rise.min(axis=1, keepdims=True)
    near = rise <= np.where(np.isfinite(least), least, 0.0) + tolerance
    best: NDArray[np.int64] = np.argmax(np.where(near, upper, -np.inf), axis=1)
    return best


def _normal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The normal distribution function, to 2e-4 (Page 1977)."""
    found: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))
    return found
