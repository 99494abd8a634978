"""Where a replica may go at all: room, accelerator type, blocked nodes, the nodes it allows, the hard spread, ports.

Owns the hard rules and nothing else; which of the feasible nodes is best is `score`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_ai.scheduler.snapshot import Request, Snapshot, amounts


def feasible(snapshot: Snapshot, request: Request) -> NDArray[np.bool_]:
    """One truth value a node, in the snapshot's order: whether `request` may be placed there.

    A node of which more is used than it has (its capacity shrank) is full, never an error.
    """
    wanted = np.array(amounts(request.resources), dtype=np.int64)
    free = snapshot.capacity - snapshot.used
    fits: NDArray[np.bool_] = ((free >= wanted) | (wanted == 0)).all(axis=1)
    fits &= np.array([not reason for reason in snapshot.blocked], dtype=bool)
    kind = request.resources.accelerator_type
    if request.resources.accelerator_milli and kind is not None:
        fits &= np.array([have == kind for have in snapshot.accelerators], dtype=bool)
    if request.per_node is not None:
        beside = snapshot.groups.get(request.group, {})
        fits &= np.array([beside.get(name, 0) < request.per_node for name in snapshot.names], dtype=bool)
    if request.nodes:
        fits &= np.array([name in request.nodes for name in snapshot.names], dtype=bool)
    if request.ports and snapshot.taken:
        free_there = [snapshot.holder(index, request.ports) is None for index in range(len(snapshot.names))]
        fits &= np.array(free_there, dtype=bool)
    return fits
