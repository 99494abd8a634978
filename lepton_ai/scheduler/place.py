"""Which node takes which replica: feasible -> score -> the best, one request after the other.

Owns the order and the reservations between requests of one call. Deterministic: equal snapshots and requests give
equal plans; among equals the first node name wins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lepton_ai.scheduler.feasible import feasible
from lepton_ai.scheduler.score import score
from lepton_ai.scheduler.snapshot import Request, Snapshot, amounts
from lepton_ai.scheduler.verdict import verdict


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


def place(snapshot: Snapshot, requests: Sequence[Request], *, together: bool = False) -> tuple[Placement, ...]:
    """A placement for each request, in the order given; each sees what those before it have reserved.

    Args:
        together: all or none (the workers of a job): when one finds no node, none gets one.
    """
    state = replace(snapshot, used=snapshot.used.copy(), groups={k: dict(v) for k, v in snapshot.groups.items()})
    plan: list[Placement] = []
    for request in requests:
        placement = _best(state, request)
        plan.append(placement)
        if placement.node is not None:
            state = _reserve(state, request, placement.node)
        elif together:
            why = f"worker {len(plan)} of {len(requests)} finds no node: {placement.reason}"
            return tuple(Placement(item, None, why, placement.nodes) for item in requests)
    return tuple(plan)


def _best(state: Snapshot, request: Request) -> Placement:
    fits = feasible(state, request)
    if not fits.any():
        nodes = verdict(state, request)
        return Placement(request, None, _summary(nodes), nodes)
    if request.prefer in state.names and fits[state.names.index(request.prefer)]:
        return Placement(request, request.prefer, "where it ran before")
    scores = np.where(fits, score(state, request), -np.inf)
    index = int(np.argmax(scores))
    fitting = int(fits.sum())
    why = f"fullest of {fitting} that fit" if fitting > 1 else "the only node that fits"
    if request.per_node is not None:
        why += f", at most {request.per_node} of the release a node"
    return Placement(request, state.names[index], why)


def _summary(nodes: dict[str, str]) -> str:
    if not nodes:
        return "the cell has no node"
    counts = Counter(text.split(":")[0] for text in nodes.values())
    parts = [f"{count} {word}" for word, count in counts.most_common()]
    text = f"no node of {len(nodes)} can take it ({', '.join(parts)})"
    if len(nodes) <= 4:
        text += "; " + "; ".join(f"{name}: {why}" for name, why in nodes.items())
    return text


def _reserve(state: Snapshot, request: Request, node: str) -> Snapshot:
    state.used[state.names.index(node)] += np.array(amounts(request.resources), dtype=np.int64)
    groups = {name: dict(counts) for name, counts in state.groups.items()}
    beside = groups.setdefault(request.group, {})
    beside[node] = beside.get(node, 0) + 1
    address = state.addresses[state.names.index(node)] if state.addresses else ""
    taken = state.taken
    if address and request.ports:
        taken = {**taken, address: {**taken.get(address, {}), **dict.fromkeys(request.ports, "another one like it")}}
    return replace(state, groups=groups, taken=taken)
