"""Where a replica may go at all: room, accelerators, blocked nodes, labels, taints, reservations, spread, ports.

Owns the hard rules and nothing else; which of the feasible nodes is best is `score`. `standing` are the rules that
nothing which is placed meanwhile can change: `Placer` keeps their outcome.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_ai.scheduler.snapshot import DEVICE_MILLI, Request, Snapshot, amounts
from lepton_ai.spec.workload import Resources


def feasible(snapshot: Snapshot, request: Request) -> NDArray[np.bool_]:
    """One truth value a node, in the snapshot's order: whether `request` may be placed there.

    A node of which more is used than it has (its capacity shrank) is full, never an error.
    """
    fits = standing(snapshot, request) & _room(snapshot, request.resources)
    if request.per_node is not None:
        company = snapshot.groups.get(request.group, {})
        fits &= np.array([company.get(name, 0) < request.per_node for name in snapshot.names], dtype=bool)
    if request.avoid:
        there = {name for group in request.avoid for name, count in snapshot.groups.get(group, {}).items() if count}
        fits &= np.array([name not in there for name in snapshot.names], dtype=bool)
    if request.ports and snapshot.taken:
        free_there = [snapshot.holder(index, request.ports) is None for index in range(len(snapshot.names))]
        fits &= np.array(free_there, dtype=bool)
    return fits


def standing(snapshot: Snapshot, request: Request) -> NDArray[np.bool_]:
    """The same for the rules that hold whatever else is placed: what a node is, not what stands on it."""
    fits = np.array([not reason for reason in snapshot.blocked], dtype=bool)
    kinds = kinds_of(request.resources)
    if kinds:
        fits &= np.array([have in kinds for have in snapshot.accelerators], dtype=bool)
    if request.nodes:
        fits &= np.array([name in request.nodes for name in snapshot.names], dtype=bool)
    if request.labels:
        wanted = request.labels.items()
        fits &= np.array([wanted <= have.items() for have in snapshot.labels], dtype=bool)
    if any(snapshot.taints):
        fits &= np.array([taints <= request.tolerates for taints in snapshot.taints], dtype=bool)
    if not request.burst and (request.reservation or any(snapshot.reservations)):
        fits &= np.array([have == request.reservation for have in snapshot.reservations], dtype=bool)
    return fits


def kinds_of(resources: Resources) -> frozenset[str]:
    """The types of accelerator that will do ("A10|T4" names two); empty: any, or none is asked for."""
    named = resources.accelerator_type if resources.accelerator_milli else None
    return frozenset(filter(None, (kind.strip() for kind in (named or "").split("|"))))


def devices_for(resources: Resources) -> tuple[int, int]:
    """What it takes of accelerators: (whole idle ones, thousandths of a single one); one of the two is 0."""
    milli = resources.accelerator_milli
    return (0, milli) if milli < DEVICE_MILLI else (-(-milli // DEVICE_MILLI), 0)


def _room(snapshot: Snapshot, resources: Resources) -> NDArray[np.bool_]:
    """Processors and memory by their sums; of accelerators each one counts for itself."""
    wanted = np.array(amounts(resources)[:2], dtype=np.int64)
    free = snapshot.capacity[:, :2] - snapshot.used[:, :2]
    fits: NDArray[np.bool_] = ((free >= wanted) | (wanted == 0)).all(axis=1)
    whole, share = devices_for(resources)
    if whole:
        fits &= (snapshot.devices == 0).sum(axis=1) >= whole
    elif share:
        fits &= (snapshot.devices <= DEVICE_MILLI - share).any(axis=1)
    return fits
