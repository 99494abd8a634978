"""What a decision sees: the nodes, what is reserved on them, and who stands where.

Owns the values that go into every function of this package. It takes no decision, reads no clock and does no I/O:
`control` builds a snapshot from records and reports, and the same snapshot always gives the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lepton_ai.spec.workload import Resources

UNITS = ("cpu_milli", "memory_mib", "accelerator_milli")
"""The columns of every resource array of this package: thousandths of a core, MiB, thousandths of an accelerator."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node as the scheduler sees it.

    `used` is what is reserved by everything that may still run there, in :data:`UNITS`. `blocked` says why nothing
    new may be placed there ("unreachable", "drained by its owner"); empty means it takes work.
    """

    name: str
    capacity: Resources
    used: tuple[int, int, int] = (0, 0, 0)
    blocked: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One replica to place. `group` names those that must be spread; at most `per_node` of a group share a node."""

    uid: str
    resources: Resources
    group: str = ""
    per_node: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Nodes in name order, as arrays (one row a node), and how many of each group stand on each node."""

    names: tuple[str, ...]
    capacity: NDArray[np.int64]
    used: NDArray[np.int64]
    accelerators: tuple[str | None, ...]
    blocked: tuple[str, ...]
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Iterable[Node], groups: Mapping[str, Mapping[str, int]] | None = None) -> Snapshot:
        """A snapshot of `nodes`; the order in which they are given does not matter."""
        ordered = sorted(nodes, key=lambda node: node.name)
        return cls(
            names=tuple(node.name for node in ordered),
            capacity=np.array([amounts(node.capacity) for node in ordered], dtype=np.int64).reshape(-1, 3),
            used=np.array([node.used for node in ordered], dtype=np.int64).reshape(-1, 3),
            accelerators=tuple(node.capacity.accelerator_type for node in ordered),
            blocked=tuple(node.blocked for node in ordered),
            groups=groups or {},
        )

    @property
    def usable(self) -> int:
        """How many nodes take new work."""
        return sum(not reason for reason in self.blocked)


def amounts(resources: Resources) -> tuple[int, int, int]:
    """`resources` in the order of :data:`UNITS`."""
    return resources.cpu_milli, resources.memory_mib, resources.accelerator_milli
