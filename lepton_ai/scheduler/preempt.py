"""Whose room a request may take when there is none: victims and destination in one decision, the cheapest that do.

Only what is preemptible and of a strictly smaller priority may be ended (and what stands on nodes lent to it, by
whoever the nodes are reserved for). A gang is ended whole or not at all, and costs its whole. Nothing is ended when
that would not make all the requests fit, and no one is ended without whom they would fit too.

Per node the cheapest sufficient victims are found as kube-scheduler does it: take all of them away, then spare the
dearest first for as long as the request still fits. Of all nodes the one whose victims are the cheapest is taken:
lowest priority, then fewest replicas, then the youngest. `awaited` is the same question about work that ends by
itself: where a large request will stand once enough has ended, and what it waits for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ai.scheduler.feasible import feasible
from lepton_ai.scheduler.place import Placement, place
from lepton_ai.scheduler.snapshot import Request, Snapshot, amounts
from lepton_ai.scheduler.without import Held, alone, joined, without


@dataclass(frozen=True, slots=True)
class Preemption:
    """Where each request goes once `victims` are gone; `reason` says in a line who goes and why that is allowed."""

    placements: tuple[Placement, ...]
    victims: tuple[Held, ...]
    reason: str


def preempt(
    snapshot: Snapshot,
    requests: Sequence[Request],
    running: Iterable[Held],
    workspaces: Collection[str] | None = None,
) -> Preemption | None:
    """What to end so that all of `requests` find room together; None when nothing that may be ended gives it.

    Args:
        running: what holds room in `snapshot`.
        workspaces: only of these anything may be ended (None: of any); see `fair.lenders`.
    """
    listed = list(running)
    if not requests:
        return Preemption((), (), "nothing is asked for")
    rank, named = min(request.priority for request in requests), {request.reservation for request in requests}

    def may(held: Held) -> bool:
        if held.ending or (held.lent and named == {held.lent}):
            return True
        allowed = workspaces is None or held.workspace in workspaces
        return allowed and held.preemptible and held.priority < rank

    found = _clear(snapshot, requests, _units(listed, may), _spare(listed))
    if found is None:
        return None
    return replace(found, reason=_why(found, rank))


def awaited(snapshot: Snapshot, requests: Sequence[Request], running: Iterable[Held]) -> Preemption | None:
    """Where `requests` will fit together when as little as possible of `running` has ended by itself, and what of it.

    None: not even when all of it has.
    """
    single = [replace(held, gang=False, keep=0, priority=0, lent="", ending=False) for held in running]
    return _clear(snapshot, requests, _units(single, lambda _: True), _spare(single))


# -- who may go

CANDIDATES = 256
"""So many nodes are looked at closely for one request, those with the cheapest replicas first."""
_May = Callable[[Held], bool]
_Cost = tuple[int, int, int]


@dataclass(slots=True)
class _Unit:
    """What goes together."""

    members: list[Held]
    cost: tuple[int, int, int, str] = (0, 0, 0, "")

    def __post_init__(self) -> None:
        first = min(self.members, key=lambda held: held.uid)
        stay = [held for held in self.members if not held.ending]
        priority = max((-1 if held.lent else held.priority for held in stay), default=-2)
        youngest = max(held.since_ms for held in self.members)
        self.cost = (priority, len(stay), -youngest, first.uid)


def _units(listed: list[Held], may: _May) -> list[_Unit]:
    gangs: dict[str, list[Held]] = defaultdict(list)
    units = []
    for held in listed:
        if held.gang and not held.ending:
            gangs[held.owner].append(held)
        elif may(held):
            units.append(_Unit([held]))
    return units + [_Unit(members) for members in gangs.values() if all(map(may, members))]


def _spare(listed: list[Held]) -> Counter[str]:
    """How many single replicas of each owner may go."""
    found = Counter(held.owner for held in listed if not held.ending)
    for held in {held.owner: held for held in listed if held.keep > 0}.values():
        found[held.owner] -= held.keep
    return found


# -- making room


@dataclass(slots=True)
class _State:
    """The cell while requests are put into it one after the other.

    `bare` is it without all that may go; `low` the cheapest unit of each node; `known` what each would cost `asked`.
    """

    snapshot: Snapshot
    bare: Snapshot
    index: dict[str, int]
    here: dict[int, list[_Unit]]
    low: dict[int, tuple[int, int, int, str]]
    spare: Counter[str]
    chosen: list[_Unit] = field(default_factory=list)
    asked: Request | None = None
    known: dict[int, tuple[_Cost, list[_Unit]] | None] = field(default_factory=dict)


def _clear(
    snapshot: Snapshot, requests: Sequence[Request], units: list[_Unit], spare: Counter[str]
) -> Preemption | None:
    index = {name: number for number, name in enumerate(snapshot.names)}
    here: dict[int, list[_Unit]] = defaultdict(list)
    for unit in units:
        for number in {index[held.node] for held in unit.members if held.node in index}:
            here[number].append(unit)
    bare = without(snapshot, [held for unit in units for held in unit.members], index)
    low = {number: min(unit.cost for unit in there) for number, there in here.items()}
    state = _State(snapshot, bare, index, here, low, spare)
    nodes: list[str] = []
    for request in requests:
        row = _settle(state, request)
        if row is None:
            return None
        nodes.append(snapshot.names[row])
    bound = [replace(request, nodes=frozenset({node})) for request, node in zip(requests, nodes, strict=True)]
    victims = _spared(snapshot, bound, state)
    plan = place(without(snapshot, victims, index), bound, together=True)
    if any(item.node is None for item in plan):
        return None
    placements = tuple(replace(item, request=request) for item, request in zip(plan, requests, strict=True))
    return Preemption(placements, tuple(victims), "" if victims else "there is room without ending anything")


def _settle(state: _State, request: Request) -> int | None:
    """Find a node for `request`, with the victims that it needs there; both are booked in `state`."""
    units: list[_Unit] = []
    bound = request
    if not feasible(state.snapshot, request).any():
        best = _cheapest(state, request)
        if best is None:
            return None
        bound, units = replace(request, nodes=frozenset({state.snapshot.names[best[0]]})), best[1]
    for unit in units:
        state.chosen.append(unit)
        state.snapshot = without(state.snapshot, unit.members, state.index)
        for number in {state.index[held.node] for held in unit.members if held.node in state.index}:
            left = state.here[number] = [other for other in state.here[number] if other is not unit]
            if left:
                state.low[number] = min(other.cost for other in left)
            else:
                del state.low[number]
            state.known.pop(number, None)
        if not _whole(unit):
            state.spare[unit.members[0].owner] -= 1
            if unit.members[0].keep > 0:
                state.known.clear()
    placed = place(state.snapshot, [bound])[0]
    if placed.node is None:
        return None
    row = state.index[placed.node]
    state.known.pop(row, None)
    state.snapshot = joined(state.snapshot, request, row, placed.devices)
    state.bare = joined(state.bare, request, row, placed.devices)
    return row


def _cheapest(state: _State, request: Request) -> tuple[int, list[_Unit]] | None:
    same = state.asked is not None and replace(request, uid=state.asked.uid) == state.asked
    if not same or request.per_node is not None or request.avoid or request.ports:
        state.known.clear()
    state.asked = request
    mask = feasible(state.bare, request)
    hopeful = sorted((number for number in state.low if mask[number]), key=state.low.__getitem__)
    best: tuple[_Cost, int, list[_Unit]] | None = None
    looked = 0
    for index in hopeful:
        if index not in state.known:
            state.known[index] = _needed(state, request, index)
        found = state.known[index]
        looked += found is not None
        if found is not None and (best is None or (found[0], index) < best[:2]):
            best = (found[0], index, found[1])
        if looked >= CANDIDATES:
            break
    return None if best is None else best[1:]


def _needed(state: _State, request: Request, index: int) -> tuple[_Cost, list[_Unit]] | None:
    """The cheapest units without which `request` fits on the node.

    Of those of equal priority two orders are tried: the small ones spared first (few go), and the old ones.
    """
    row = alone(state.snapshot, index)
    free = _room(row, request)
    sizes = {id(u): np.array([h.amounts for h in _on(u, state, index)]).sum(axis=0) for u in state.here[index]}
    at = {row.names[0]: 0}

    def fits(gone: list[_Unit]) -> bool:
        if free is not None:
            return bool((free + sum((sizes[id(unit)] for unit in gone), np.zeros(3, dtype=np.int64)) >= 0).all())
        return _fits(row, request, [held for unit in gone for held in _on(unit, state, index)], at)

    best: tuple[_Cost, list[_Unit]] | None = None
    for large in (False, True):

        def key(unit: _Unit, large: bool = large) -> tuple[Any, ...]:
            return (*unit.cost[:2], -int(sizes[id(unit)].sum()) if large else 0, *unit.cost)

        order = _allowed(state, index, key)
        if not _fits(row, request, [held for unit in order for held in _on(unit, state, index)], at):
            continue
        gone = list(order)
        for unit in reversed(order):
            left = [other for other in gone if other is not unit]
            if fits(left):
                gone = left
        found = (_cost(gone), gone)
        if best is None or found[0] < best[0]:
            best = found
    return best


def _cost(gone: list[_Unit]) -> _Cost:
    """Of victims: the largest priority among them, how many replicas, and the age of the oldest (older costs more)."""
    oldest = max((unit.cost[2] for unit in gone), default=0)
    return max((unit.cost[0] for unit in gone), default=-3), sum(unit.cost[1] for unit in gone), oldest


def _allowed(state: _State, index: int, key: Callable[[_Unit], tuple[Any, ...]]) -> list[_Unit]:
    """The units on the node that may go, by `key`: of each owner the first, as many as it can spare now."""
    taken: Counter[str] = Counter()
    found = []
    for unit in sorted(state.here[index], key=key):
        owner = unit.members[0].owner
        if _whole(unit) or taken[owner] < state.spare[owner]:
            taken[owner] += not _whole(unit)
            found.append(unit)
    return found


def _whole(unit: _Unit) -> bool:
    """Whether it does not count as one of the single replicas that its owner can spare."""
    return unit.members[0].gang or unit.members[0].ending


def _room(row: Snapshot, request: Request) -> NDArray[np.int64] | None:
    """What is free beyond `request` where only amounts matter (negative: missing); None where more than these does."""
    if request.resources.accelerator_milli or request.ports:
        return None
    free: NDArray[np.int64] = row.capacity[0] - row.used[0] - np.array(amounts(request.resources), dtype=np.int64)
    free[2] = 0
    return free


def _on(unit: _Unit, state: _State, index: int) -> list[Held]:
    return [held for held in unit.members if state.index.get(held.node) == index]


def _fits(row: Snapshot, request: Request, gone: list[Held], at: Mapping[str, int]) -> bool:
    return bool(feasible(without(row, gone, at), request)[0])


def _spared(snapshot: Snapshot, bound: list[Request], state: _State) -> list[Held]:
    """The members of the chosen units without those that turned out not to be needed, the dearest spared first."""
    gone = list(state.chosen)
    asked: dict[int, list[Request]] = defaultdict(list)
    for request in bound:
        asked[state.index[next(iter(request.nodes))]].append(request)
    for unit in sorted(state.chosen, key=lambda unit: unit.cost, reverse=True):
        left = [other for other in gone if other is not unit]
        rows = {state.index[held.node] for held in unit.members if held.node in state.index}
        if all(_still(snapshot, asked[row], left, state, row) for row in rows):
            gone = left
    return sorted((held for unit in gone for held in unit.members), key=lambda held: (held.node, held.uid))


def _still(snapshot: Snapshot, asked: list[Request], gone: list[_Unit], state: _State, index: int) -> bool:
    """Whether the requests of that node fit there when of those that may go only `gone` have left it."""
    row = alone(snapshot, index)
    left = without(row, [held for unit in gone for held in _on(unit, state, index)], {row.names[0]: 0})
    return all(item.node is not None for item in place(left, asked, together=True))


def _why(found: Preemption, rank: int) -> str:
    if not found.victims:
        return found.reason
    victims = [held for held in found.victims if not held.ending]
    if not victims:
        return "there is room once what is ending has ended"
    by_node = Counter(held.node for held in victims)
    where = ", ".join(f"{count} on {node}" for node, count in sorted(by_node.items())[:4])
    where += f" and more on {len(by_node) - 4} nodes" if len(by_node) > 4 else ""
    count, top = len(victims), max(held.priority for held in victims)
    lent = all(held.lent for held in victims)
    right = "on nodes that are only lent to them" if lent else f"of priority {top} or less for one of {rank}"
    return f"ends {count} replica{'s' if count > 1 else ''} {right}: {where}"
