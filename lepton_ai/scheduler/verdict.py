"""Why each node can or cannot take a replica, in words: what `details["nodes"]` of an Unplaceable error holds.

The rules are those of `feasible`; a property test holds the two together.
"""

from __future__ import annotations

from lepton_ai.scheduler.snapshot import UNITS, Request, Snapshot, amounts

_WORDS = {
    "cpu_milli": ("cpu", "thousandths of a core"),
    "memory_mib": ("memory", "MiB"),
    "accelerator_milli": ("accelerator", "thousandths"),
}


def verdict(snapshot: Snapshot, request: Request) -> dict[str, str]:
    """Node name -> "fits", or the first rule that forbids it with the figures on both sides."""
    return {name: _one(snapshot, request, index) for index, name in enumerate(snapshot.names)}


def _one(snapshot: Snapshot, request: Request, index: int) -> str:
    if request.nodes and snapshot.names[index] not in request.nodes:
        return "not among the nodes it allows"
    if snapshot.blocked[index]:
        return snapshot.blocked[index]
    kind = request.resources.accelerator_type
    if request.resources.accelerator_milli and kind is not None and snapshot.accelerators[index] != kind:
        return f"has no accelerator of type {kind} ({snapshot.accelerators[index] or 'none'})"
    for column, wanted in enumerate(amounts(request.resources)):
        capacity = int(snapshot.capacity[index, column])
        free = capacity - int(snapshot.used[index, column])
        if wanted == 0 or wanted <= free:
            continue
        word, unit = _WORDS[UNITS[column]]
        if wanted > capacity:
            return f"too small: {word} {wanted} wanted, {capacity} in all ({unit})"
        return f"full: {word} {wanted} wanted, {max(0, free)} of {capacity} free ({unit})"
    if request.per_node is not None:
        beside = snapshot.groups.get(request.group, {}).get(snapshot.names[index], 0)
        if beside >= request.per_node:
            return f"spread: holds {beside} already, at most {request.per_node} a node"
    held = snapshot.holder(index, request.ports)
    if held is not None:
        return f"port taken: port {held[0]} of {snapshot.addresses[index]} is taken by {held[1]}"
    return "fits"
