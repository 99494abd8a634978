"""The engine of placing: one decision after the other on a cell that it keeps in mind.

Owns the state between decisions and what is remembered of the costs; the cost itself is `score`, the rules that
nothing changes are `feasible.standing`. For each kind of request that was asked for it keeps the cost on every node.
What is placed changes one node, so only that node's costs are worked out again, for all kinds at once. What is asked
for changes the statistics (`Mix`): they are taken anew whenever twice as much has been seen, and all costs with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lepton_ai.scheduler.feasible import devices_for, standing
from lepton_ai.scheduler.mix import Mix
from lepton_ai.scheduler.score import LENT, REST, SPREAD, Kinds, Rooms, Weights, score, stranded
from lepton_ai.scheduler.snapshot import DEVICE_MILLI, Request, Snapshot, amounts
from lepton_ai.scheduler.worth import worth
from lepton_ai.spec.workload import Resources

KINDS_MOST = 512
"""More kinds than this are not kept in mind at once."""
_TIGHT = 1e-9

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one request goes. `node` None: nowhere, `reason` says why in a line, `nodes` says it for every node.

    `devices` are the numbers of the accelerators that it takes there: one of which it uses a share, or whole idle ones.
    """

    request: Request
    node: str | None
    reason: str
    nodes: dict[str, str] = field(default_factory=dict)
    devices: tuple[int, ...] = ()


class Placer:
    """A cell to place on. `mix` are the statistics so far; every request that is placed adds to them.

    `place` reserves at once, `note` and `release` tell it what others did; `groups` (who stands where) and `taken` (the
    ports at an address) may be set by whoever knows better. Deterministic: equal snapshots, statistics and requests
    give equal placements; among equals the first node name wins.
    """

    def __init__(self, snapshot: Snapshot, mix: Mix | None = None) -> None:
        known = snapshot.mix if mix is None else mix
        self.mix = Mix() if known is None else known.copy()
        self.groups: dict[str, dict[str, int]] = {name: dict(counts) for name, counts in snapshot.groups.items()}
        self._snapshot = snapshot
        self._index = {name: number for number, name in enumerate(snapshot.names)}
        self.taken = {address: dict(ports) for address, ports in snapshot.taken.items()}
        self._used = snapshot.used.copy()
        free = (snapshot.capacity - snapshot.used).astype(np.float64)
        self._cpu, self._memory = free[:, 0].copy(), free[:, 1].copy()
        self._levels = DEVICE_MILLI - snapshot.devices  # below 0 where more is used than there is
        self._rests = np.maximum(self._levels, 0)
        self._slots = slots = self._rests.shape[1]
        self._total = self._rests.sum(axis=1).astype(np.float64)
        self._all = np.maximum(snapshot.capacity, 1).astype(np.float64)
        self._planned, self._limits = snapshot.planned.copy(), snapshot.limits
        self._limited = bool((self._planned > 0).any() or (self._limits < 1).any())
        # By the number of idle accelerators: 0, 1, ... whole ones cost nothing or cannot be, more than there are never.
        counts = np.append(np.arange(slots + 1), slots + 1)
        self._whole = np.where(counts <= np.arange(slots + 1)[:, None], 0.0, np.inf)
        self._sizes: dict[int, int] = {}
        self._forget_kinds()
        self._dirty: set[int] = set()
        self._learn()

    def place(self, request: Request) -> Placement:
        """Where `request` goes; its room is reserved. No node: the reason says only that (see `place.explained`)."""
        self._note(request.resources)
        kind = self._kind(request)
        if self._dirty:
            self._settle()
        costs = self._costs[kind]
        if request.per_node is not None or request.avoid or request.near or request.burst or request.ports:
            costs = self._among(request, costs)
        prefer = self._index.get(request.prefer, -1) if request.prefer else -1
        if prefer >= 0 and costs[prefer] < np.inf:
            node, why = prefer, "where it ran before"
        elif len(costs) and costs[node := int(costs.argmin())] < np.inf:
            why = self._why(request, costs)
        else:
            return Placement(request, None, "no node can take it")
        devices = self._devices(node, request.resources)
        self._move(node, request.resources, devices, 1)
        name = self._snapshot.names[node]
        if request.group:
            counts = self.groups.setdefault(request.group, {})
            counts[name] = counts.get(name, 0) + 1
        if request.ports:
            self._hold(node, request.ports, "another one like it")
        return Placement(request, name, why, {}, devices)

    def undo(self, placement: Placement) -> None:
        """Give back what `placement` reserved."""
        if placement.node is None:
            return
        request, node = placement.request, self._index[placement.node]
        self._move(node, request.resources, placement.devices, -1)
        if request.group:
            counts = self.groups[request.group]
            counts[placement.node] -= 1
            if not counts[placement.node]:
                del counts[placement.node]
        address = self._address(node)
        if request.ports and address:
            for port in request.ports:
                self.taken.get(address, {}).pop(port, None)

    def note(self, node: str, used: Sequence[int], devices: Sequence[int]) -> None:
        """Note what others made of the node: what is used of it now, and of each of its accelerators (see `Node`)."""
        number = self._index.get(node)
        if number is None:
            return
        more = np.array(used, dtype=np.int64) - self._used[number]
        self._used[number] = used
        self._cpu[number] -= more[0]
        self._memory[number] -= more[1]
        self._levels[number, : len(devices)] = DEVICE_MILLI - np.array(devices, dtype=np.int64)
        self._rests[number] = np.maximum(self._levels[number], 0)
        self._total[number] = self._rests[number].sum()
        if self._limited:
            shares = more[0] / self._all[number, 0], more[1] / self._all[number, 1]
            self._planned[number] += max(shares, key=abs)  # what is given back as it was taken
        self._dirty.add(number)

    def release(self, node: str, resources: Resources, devices: Sequence[int] = ()) -> None:
        """Note that this room on the node is free again."""
        self._move(self._index[node], resources, devices, -1)

    def snapshot(self) -> Snapshot:
        """The cell as it is now."""
        return replace(
            self._snapshot,
            used=self._used.copy(),
            devices=DEVICE_MILLI - self._levels,
            groups={name: dict(counts) for name, counts in self.groups.items()},
            taken={address: dict(ports) for address, ports in self.taken.items()},
            planned=self._planned.copy(),
        )

    # -- deciding

    def _among(self, request: Request, costs: Array) -> Array:
        """`costs` with what depends on who stands where now."""
        costs = costs.copy()
        if request.per_node is not None:
            if request.per_node <= 0:
                costs[:] = np.inf
            for name, count in self.groups.get(request.group, {}).items():
                if count and (node := self._index.get(name)) is not None:
                    costs[node] += SPREAD * count if count < request.per_node else np.inf
        for node in self._holding(request.avoid):
            costs[node] = np.inf
        if request.ports and self.taken:
            for node, address in enumerate(self._snapshot.addresses):
                if address and not request.ports.isdisjoint(self.taken.get(address, ())):
                    costs[node] = np.inf
        if request.burst:
            named = request.reservation
            costs += [0.0 if have == named else LENT if not have else 2 * LENT for have in self._snapshot.reservations]
        for node in self._holding(request.near):
            costs[node] -= REST
        return costs

    def _holding(self, groups: frozenset[str]) -> set[int]:
        """The nodes where any of `groups` stands."""
        names = {name for group in groups for name, count in self.groups.get(group, {}).items() if count}
        return {self._index[name] for name in names if name in self._index}

    def _why(self, request: Request, costs: Array) -> str:
        fitting = int(np.count_nonzero(costs < np.inf))
        if request.per_node is None:
            return f"fullest of {fitting} that fit" if fitting > 1 else "the only node that fits"
        kept = f"at most {request.per_node} of the release a node"
        return f"fullest of {fitting} that fit, {kept}" if fitting > 1 else f"the only node that fits, {kept}"

    def _devices(self, node: int, resources: Resources) -> tuple[int, ...]:
        """Which accelerators: for a share the one whose rest loses least worth, else the first idle ones."""
        if not resources.accelerator_milli:
            return ()
        whole, share = devices_for(resources)
        levels = self._rests[node].tolist()
        if share:
            lost = self._lost[self._size(share)]
            best = min(range(len(levels)), key=lambda number: (lost[levels[number]], number), default=None)
            return () if best is None else (best,)
        return tuple([number for number, level in enumerate(levels) if level == DEVICE_MILLI][:whole])

    # -- what is free

    def _move(self, node: int, resources: Resources, devices: Sequence[int], sign: int) -> None:
        """Reserve (`sign` 1) or give back (-1) room on a node."""
        cpu, memory, milli = amounts(resources)
        self._used[node] += (sign * cpu, sign * memory, sign * milli)
        self._cpu[node] -= sign * cpu
        self._memory[node] -= sign * memory
        if devices:
            each = milli if milli < DEVICE_MILLI else DEVICE_MILLI
            for device in devices:
                level = self._levels[node, device] = self._levels[node, device] - sign * each
                rest = max(0, level)
                self._total[node] += rest - self._rests[node, device]
                self._rests[node, device] = rest
        if self._limited:
            self._planned[node] += sign * max(cpu / self._all[node, 0], memory / self._all[node, 1])
        self._dirty.add(node)

    def _hold(self, node: int, ports: Iterable[int], name: str) -> None:
        address = self._address(node)
        if address:
            held = dict.fromkeys(ports, name)
            if held:
                self.taken.setdefault(address, {}).update(held)

    def _address(self, node: int) -> str:
        return self._snapshot.addresses[node] if self._snapshot.addresses else ""

    # -- what is kept in mind

    def _note(self, resources: Resources) -> None:
        self.mix.add(resources)
        if self.mix.seen >= self._due:
            self._learn()

    def _learn(self) -> None:
        """Take the statistics anew; all costs are worked out again when they are needed."""
        mix = self.mix
        self._due = max(1.0, 2 * mix.seen)
        self._worth = worth(mix.shares) * DEVICE_MILLI
        largest = [max(1.0, float(most)) for most in self._all.max(axis=0, initial=1.0)]
        present = 2 + bool(self._slots)
        feed = mix.accelerator_milli
        self._weights = Weights(
            feed_cpu=feed / mix.cpu_milli if mix.cpu_milli else 1e9,
            feed_memory=feed / mix.memory_mib if mix.memory_mib else 1e9,
            rest_cpu=REST / present / largest[0],
            rest_memory=REST / present / largest[1],
            rest_accelerators=REST / present / largest[2],
        )
        self._lost = np.full((len(self._sizes), DEVICE_MILLI + 1), np.inf)
        for milli, number in self._sizes.items():
            self._lost[number] = self._lost_by(milli)
        self._stranded = stranded(self._cpu, self._memory, self._total, self._weights)
        self._cuts = self._cut(slice(None))
        self._dirty.clear()
        self._valid[:] = False

    def _lost_by(self, milli: int) -> Array:
        """Worth lost by taking `milli` from a rest of 0..1000; the smaller of equally good rests first."""
        found = np.full(DEVICE_MILLI + 1, np.inf)
        rests = np.arange(milli, DEVICE_MILLI + 1)
        found[rests] = self._worth[rests] - self._worth[rests - milli] + _TIGHT * rests
        return found

    def _cut(self, rows: slice | list[int]) -> Array:
        """The columns of `Rooms.cuts`: nothing, 1.. whole accelerators, more than there are, and each share."""
        rests = self._rests[rows]
        whole: Array = self._whole[(rests == DEVICE_MILLI).sum(axis=1)]
        if not self._sizes:
            return whole
        if not self._slots:
            return np.concatenate((whole, np.full((len(whole), len(self._sizes)), np.inf)), axis=1)
        return np.concatenate((whole, self._lost[:, rests].min(axis=2).T), axis=1)

    def _size(self, milli: int) -> int:
        """The number of a share, which is met for the first time perhaps."""
        if milli not in self._sizes:
            self._sizes[milli] = len(self._sizes)
            self._lost = np.vstack([self._lost, self._lost_by(milli)])
            self._cuts = self._cut(slice(None))
        return self._sizes[milli]

    def _kind(self, request: Request) -> int:
        """The number of the kind of `request`, with its costs in mind."""
        own = request.resources
        key = (
            own.cpu_milli, own.memory_mib, own.accelerator_milli, own.accelerator_type, request.nodes,
            request.reservation, request.burst, request.tolerates,
            tuple(sorted(request.labels.items())) if request.labels else (),
        )  # fmt: skip
        kind = self._keys.get(key)
        if kind is None:
            kind = self._new_kind(request, key)
        if not self._valid[kind]:
            if self._dirty:
                self._settle()
            one = slice(kind, kind + 1)
            found = score(self._rooms(slice(None)), self._kinds(one), self._weights, limited=self._limited)
            self._costs[kind] = np.where(self._stands[kind], found[:, 0], np.inf)
            self._valid[kind] = True
        return kind

    def _new_kind(self, request: Request, key: tuple[object, ...]) -> int:
        if len(self._keys) >= KINDS_MOST:
            self._forget_kinds()
        kind = len(self._keys)
        if kind >= len(self._costs):
            self._grow(max(16, 2 * kind))
        cpu, memory, milli = amounts(request.resources)
        whole, share = devices_for(request.resources)
        cut = self._slots + 2 + self._size(share) if share else whole if whole <= self._slots else self._slots + 1
        self._wanted[:, kind] = cpu, memory, whole * DEVICE_MILLI or milli
        self._cut_of[kind] = cut
        self._stands[kind] = standing(self._snapshot, request)
        self._valid[kind] = False
        self._keys[key] = kind
        return kind

    def _forget_kinds(self) -> None:
        self._keys: dict[tuple[object, ...], int] = {}
        self._wanted, self._cut_of = np.zeros((3, 0)), np.zeros(0, dtype=np.int64)
        self._costs = np.zeros((0, len(self._index)))
        self._stands, self._valid = np.zeros(self._costs.shape, dtype=bool), np.zeros(0, dtype=bool)

    def _grow(self, most: int) -> None:
        more = most - len(self._costs)
        self._wanted = np.pad(self._wanted, ((0, 0), (0, more)))
        self._cut_of, self._valid = np.pad(self._cut_of, (0, more)), np.pad(self._valid, (0, more))
        self._costs = np.pad(self._costs, ((0, more), (0, 0)))
        self._stands = np.pad(self._stands, ((0, more), (0, 0)))

    def _settle(self) -> None:
        """Work out again what has changed on the nodes that were touched."""
        nodes = sorted(self._dirty)
        self._dirty.clear()
        rows: slice | list[int] = slice(nodes[0], nodes[0] + 1) if len(nodes) == 1 else nodes
        self._cuts[rows] = self._cut(rows)
        self._stranded[rows] = stranded(self._cpu[rows], self._memory[rows], self._total[rows], self._weights)
        count = len(self._keys)
        if not count:
            return
        found = score(self._rooms(rows), self._kinds(slice(0, count)), self._weights, limited=self._limited)
        stands = self._stands[:count, rows]
        self._costs[:count, rows] = np.where(stands, found.T, np.inf)

    def _rooms(self, rows: slice | list[int]) -> Rooms:
        return Rooms(
            self._cpu[rows],
            self._memory[rows],
            self._total[rows],
            self._stranded[rows],
            self._cuts[rows],
            self._all[rows, 0],
            self._all[rows, 1],
            self._planned[rows],
            self._limits[rows],
        )

    def _kinds(self, kinds: slice) -> Kinds:
        return Kinds(self._wanted[0, kinds], self._wanted[1, kinds], self._wanted[2, kinds], self._cut_of[kinds])
