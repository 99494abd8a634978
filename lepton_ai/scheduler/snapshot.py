"""What a decision sees: the nodes, what is reserved on them, and who stands where.

Owns the values that go into every function of this package. It takes no decision, reads no clock and does no I/O:
`control` builds a snapshot from records and reports, and the same snapshot always gives the same plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lepton_ai.scheduler.mix import DEVICE_MILLI as DEVICE_MILLI
from lepton_ai.scheduler.mix import Mix
from lepton_ai.spec.container import Port
from lepton_ai.spec.workload import Resources, Template

UNITS = ("cpu_milli", "memory_mib", "accelerator_milli")
"""The columns of every resource array of this package: thousandths of a core, MiB, thousandths of an accelerator."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node as the scheduler sees it.

    `used` is what is reserved by everything that may still run there, in :data:`UNITS`. `blocked` says why nothing
    new may be placed there ("unreachable", "drained by its owner"); empty means it takes work. `address` is where a
    workload's port is taken for everyone who shares that address; empty when each replica has ports of its own.

    `devices` are the used thousandths of each accelerator; empty: they follow from `used`, as tightly as can be.
    `taints` ("key=value") keep off whoever does not tolerate them; with a `reservation` the node takes only requests
    that name it. `planned` is s_i, the share of its most loaded resource to plan for, and `limit` how much of it may
    be planned for in all (see `load`).
    """

    name: str
    capacity: Resources
    used: tuple[int, int, int] = (0, 0, 0)
    blocked: str = ""
    address: str = ""
    devices: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: frozenset[str] = frozenset()
    reservation: str = ""
    planned: float = 0.0
    limit: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One replica to place. `group` names those that must be spread; at most `per_node` of a group share a node.

    `nodes` are the only ones it may go to (empty: any), `prefer` the one it goes to if it may; `ports` are the fixed
    ports that it listens on.

    `labels` are those that the node must carry, `tolerates` the taints that do not keep it off. With a `reservation`
    it goes to nodes reserved under that name, and with `burst` to unreserved ones too. `avoid` are groups that it
    must not share a node with, `near` groups that it likes to stand beside. `priority` and `workspace` decide nothing
    here: they are for who orders the requests.
    """

    uid: str
    resources: Resources
    group: str = ""
    per_node: int | None = None
    nodes: frozenset[str] = frozenset()
    ports: frozenset[int] = frozenset()
    prefer: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    tolerates: frozenset[str] = frozenset()
    reservation: str = ""
    burst: bool = False
    avoid: frozenset[str] = frozenset()
    near: frozenset[str] = frozenset()
    priority: int = 0
    workspace: str = ""

    @classmethod
    def of(
        cls, uid: str, template: Template, group: str = "", per_node: int | None = None, prefer: str = ""
    ) -> Request:
        """The request for one replica of `template`."""
        return cls(
            uid,
            template.resources,
            group,
            per_node,
            nodes=frozenset(template.nodes),
            ports=frozenset(ports_of(template.port, template.ports)),
            prefer=prefer,
            labels=template.node_labels,
            tolerates=frozenset(template.tolerations),
            reservation=template.reservation,
            burst=template.burst,
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Nodes in name order, as arrays (one row a node), and how many of each group stand on each node.

    `addresses` has one entry a node (see :class:`Node`); `taken`, by address, who has which port there. `devices` has
    one row a node: the used thousandths of each of its accelerators, and 1000 where it has no such accelerator. `mix`:
    what kind of requests there were so far, where that is known.
    """

    names: tuple[str, ...]
    capacity: NDArray[np.int64]
    used: NDArray[np.int64]
    accelerators: tuple[str | None, ...]
    blocked: tuple[str, ...]
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    taken: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    devices: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    labels: tuple[Mapping[str, str], ...] = ()
    taints: tuple[frozenset[str], ...] = ()
    reservations: tuple[str, ...] = ()
    planned: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    limits: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    mix: Mix | None = None

    @classmethod
    def of(
        cls,
        nodes: Iterable[Node],
        groups: Mapping[str, Mapping[str, int]] | None = None,
        taken: Mapping[str, Mapping[int, str]] | None = None,
        mix: Mix | None = None,
    ) -> Snapshot:
        """A snapshot of `nodes`; the order in which they are given does not matter."""
        ordered = sorted(nodes, key=lambda node: node.name)
        return cls(
            names=tuple(node.name for node in ordered),
            capacity=np.array([amounts(node.capacity) for node in ordered], dtype=np.int64).reshape(-1, 3),
            used=np.array([node.used for node in ordered], dtype=np.int64).reshape(-1, 3),
            accelerators=tuple(node.capacity.accelerator_type for node in ordered),
            blocked=tuple(node.blocked for node in ordered),
            groups=groups or {},
            addresses=tuple(node.address for node in ordered),
            taken=taken or {},
            devices=_devices(ordered),
            labels=tuple(node.labels for node in ordered),
            taints=tuple(node.taints for node in ordered),
            reservations=tuple(node.reservation for node in ordered),
            planned=np.array([max(0.0, node.planned) if np.isfinite(node.planned) else 0.0 for node in ordered]),
            limits=np.array([node.limit if np.isfinite(node.limit) else 1.0 for node in ordered]),
            mix=mix,
        )

    def emptied(self) -> Snapshot:
        """The same nodes with nothing on them."""
        whole = [Node(name, _resources(row)) for name, row in zip(self.names, self.capacity, strict=True)]
        idle = np.zeros_like(self.planned)
        return replace(self, used=np.zeros_like(self.used), devices=_devices(whole), planned=idle, groups={}, taken={})

    def holding(self, more: Mapping[str, Sequence[int]]) -> Snapshot:
        """The same with these amounts (in :data:`UNITS`) held on nodes besides, of whichever accelerators."""
        used, devices = self.used.copy(), self.devices.copy()
        for row, name in enumerate(self.names):
            if name in more:
                used[row] += np.array(more[name], dtype=np.int64)
                devices[row] = taking(devices[row].tolist(), int(more[name][2]))
        return replace(self, used=used, devices=devices)

    @property
    def usable(self) -> int:
        """How many nodes take new work."""
        return self.usable_of(())

    def usable_of(self, names: Collection[str]) -> int:
        """How many of the nodes `names` (empty: of all) take new work."""
        return sum(not why and (not names or name in names) for name, why in zip(self.names, self.blocked, strict=True))

    def holder(self, index: int, ports: Iterable[int]) -> tuple[int, str] | None:
        """The first of `ports` that is taken at the address of that node, and by whom; None: they are free there."""
        taken = self.taken.get(self.addresses[index], {}) if self.addresses and self.addresses[index] else {}
        return next(((port, taken[port]) for port in sorted(ports) if port in taken), None) if taken else None


def devices_of(resources: Resources, used_milli: int = 0) -> tuple[int, ...]:
    """The used thousandths of each accelerator of a node that has `resources`, `used_milli` of them in use.

    As tightly as can be: whole accelerators first. One that is there in part only is used by what is missing of it.
    """
    have = resources.accelerator_milli
    found = [0] * -(-have // DEVICE_MILLI)
    if have % DEVICE_MILLI:
        found[-1] = DEVICE_MILLI - have % DEVICE_MILLI
    for index, taken in enumerate(found):
        part = min(max(0, used_milli), DEVICE_MILLI - taken)
        found[index], used_milli = taken + part, used_milli - part
    return tuple(found)


def taking(used: Sequence[int], milli: int) -> tuple[int, ...]:
    """`used` of each accelerator after somebody has taken `milli` thousandths, nobody knows of which ones.

    A share goes where it fits most tightly, whole ones where nothing is; what fits nowhere is spread over what is free.
    """
    found = list(used)
    while milli > 0:
        part = min(milli, DEVICE_MILLI)
        fitting = [number for number, taken in enumerate(found) if taken + part <= DEVICE_MILLI]
        if not fitting:
            break
        found[max(fitting, key=lambda number: (found[number], -number))] += part
        milli -= part
    for number, taken in enumerate(found):
        part = min(max(0, milli), max(0, DEVICE_MILLI - taken))
        found[number], milli = taken + part, milli - part
    return tuple(found)


def _devices(nodes: Sequence[Node]) -> NDArray[np.int64]:
    each = [node.devices or devices_of(node.capacity, node.used[2]) for node in nodes]
    found = np.full((len(each), max(map(len, each), default=0)), DEVICE_MILLI, dtype=np.int64)
    for row, used in enumerate(each):
        found[row, : len(used)] = used
    return found


def _resources(row: NDArray[np.int64]) -> Resources:
    cpu, memory, accelerator = (int(amount) for amount in row)
    return Resources(cpu_milli=max(1, cpu), memory_mib=max(1, memory), accelerator_milli=accelerator)


def ports_of(served: int | None, others: Iterable[Port]) -> list[int]:
    """The fixed ports that a replica takes at its node's address: the served one, and those that are exposed."""
    return [*([] if served is None else [served]), *(port.number for port in others if port.exposed)]


def amounts(resources: Resources) -> tuple[int, int, int]:
    """`resources` in the order of :data:`UNITS`."""
    return resources.cpu_milli, resources.memory_mib, resources.accelerator_milli
