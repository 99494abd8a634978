"""What a decision sees: the nodes, what is reserved on them, and who stands where.

Owns the values that go into every function of this package. It takes no decision, reads no clock and does no I/O:
`control` builds a snapshot from records and reports, and the same snapshot always gives the same plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
    """

    name: str
    capacity: Resources
    used: tuple[int, int, int] = (0, 0, 0)
    blocked: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One replica to place. `group` names those that must be spread; at most `per_node` of a group share a node.

    `nodes` are the only ones it may go to (empty: any), `prefer` the one it goes to if it may; `ports` are the fixed
    ports that it listens on.
    """

    uid: str
    resources: Resources
    group: str = ""
    per_node: int | None = None
    nodes: frozenset[str] = frozenset()
    ports: frozenset[int] = frozenset()
    prefer: str = ""

    @classmethod
    def of(
        cls, uid: str, template: Template, group: str = "", per_node: int | None = None, prefer: str = ""
    ) -> Request:
        """The request for one replica of `template`."""
        ports = frozenset(ports_of(template.port, template.ports))
        return cls(uid, template.resources, group, per_node, frozenset(template.nodes), ports, prefer)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Nodes in name order, as arrays (one row a node), and how many of each group stand on each node.

    `addresses` has one entry a node (see :class:`Node`); `taken`, by address, who has which port there.
    """

    names: tuple[str, ...]
    capacity: NDArray[np.int64]
    used: NDArray[np.int64]
    accelerators: tuple[str | None, ...]
    blocked: tuple[str, ...]
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    taken: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        nodes: Iterable[Node],
        groups: Mapping[str, Mapping[str, int]] | None = None,
        taken: Mapping[str, Mapping[int, str]] | None = None,
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
        )

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


def ports_of(served: int | None, others: Iterable[Port]) -> list[int]:
    """The fixed ports that a replica takes at its node's address: the served one, and those that are exposed."""
    return [*([] if served is None else [served]), *(port.number for port in others if port.exposed)]


def amounts(resources: Resources) -> tuple[int, int, int]:
    """`resources` in the order of :data:`UNITS`."""
    return resources.cpu_milli, resources.memory_mib, resources.accelerator_milli
