"""Whose waiting work is offered room next: dominant resource fairness between workspaces.

A workspace's dominant share is the largest of its shares of the cell's resources (Ghodsi et al., "Dominant Resource
Fairness", NSDI 2011, algorithm 1): the next to be offered room is the one whose dominant share, divided by its
weight, is the smallest. Within a workspace the larger priority goes first, then who waits longer. Whether there is
room is `place`'s to say, and who may be ended for it `preempt`'s.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """What waits for room. `amounts` is all that it asks for, in `snapshot.UNITS`; `since_ms` when it came."""

    uid: str
    workspace: str
    amounts: tuple[int, int, int]
    priority: int = 0
    since_ms: int = 0


def fair(
    total: Sequence[int],
    used: Mapping[str, Sequence[int]],
    claims: Iterable[Claim],
    weights: Mapping[str, float] | None = None,
) -> tuple[Claim, ...]:
    """`claims` in the order in which they are offered room, as if each before it had got what it asks for.

    Args:
        total: what the cell has, in `snapshot.UNITS`.
        used: what each workspace holds now, in the same units; a workspace that is not named holds nothing.
        weights: of each workspace, 1 where none is named; one that is no positive number counts as 1.
    """
    queues: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        queues[claim.workspace].append(claim)
    held: dict[str, list[int]] = {}
    heap: list[tuple[float, str]] = []
    for name, queue in queues.items():
        queue.sort(key=lambda claim: (-claim.priority, claim.since_ms, claim.uid), reverse=True)  # the next one is last
        held[name] = [max(0, int(amount)) for amount in used.get(name, (0, 0, 0))]
        heap.append((share(total, held[name]) / weight(weights, name), name))
    heapq.heapify(heap)
    order: list[Claim] = []
    while heap:
        _, name = heap[0]
        claim = queues[name].pop()
        order.append(claim)
        if not queues[name]:
            heapq.heappop(heap)
            continue
        held[name] = [have + more for have, more in zip(held[name], claim.amounts, strict=True)]
        heapq.heapreplace(heap, (share(total, held[name]) / weight(weights, name), name))
    return tuple(order)


def share(total: Sequence[int], held: Sequence[int]) -> float:
    """The dominant share of who holds `held` of `total`: 0..1, more where more is promised than there is.

    What the cell has nothing of is nobody's share: who asks for it waits for ever, and holds nobody up.
    """
    return max(
        (have / amount for amount, have in zip(total, held, strict=True) if amount > 0 and have > 0), default=0.0
    )


def weight(weights: Mapping[str, float] | None, name: str) -> float:
    """How much of the cell the workspace is meant to have beside others that have 1."""
    found = 1.0 if weights is None else weights.get(name, 1.0)
    return found if math.isfinite(found) and found > 0 else 1.0


def lenders(
    total: Sequence[int],
    used: Mapping[str, Sequence[int]],
    claim: Claim,
    weights: Mapping[str, float] | None = None,
) -> frozenset[str]:
    """The workspaces whose work may be ended to make room for `claim`: always its own.

    Of others those that hold more than their fair share (weight ÷ all weights of those that hold or ask for
    something), and only while `claim` leaves its own workspace within its fair share.
    """
    names: Collection[str] = {claim.workspace, *(name for name, held in used.items() if any(held))}
    whole = sum(weight(weights, name) for name in names)
    own = [have + more for have, more in zip(used.get(claim.workspace, (0, 0, 0)), claim.amounts, strict=True)]
    found = {claim.workspace}
    if share(total, own) <= weight(weights, claim.workspace) / whole:
        found |= {name for name in names if share(total, used.get(name, (0, 0, 0))) > weight(weights, name) / whole}
    return frozenset(found)
