"""Why each node can or cannot take a replica, in words: what `details["nodes"]` of an Unplaceable error holds.

The rules are those of `feasible`; a property test holds the two together.
"""

from __future__ import annotations

from lepton_ai.scheduler.feasible import devices_for, kinds_of
from lepton_ai.scheduler.snapshot import DEVICE_MILLI, UNITS, Request, Snapshot, amounts

_WORDS = {
    "cpu_milli": ("cpu", "thousandths of a core"),
    "memory_mib": ("memory", "MiB"),
    "accelerator_milli": ("accelerator", "thousandths"),
}
ACCELERATOR = UNITS.index("accelerator_milli")


def verdict(snapshot: Snapshot, request: Request) -> dict[str, str]:
    """Node name -> "fits", or the first rule that forbids it with the figures on both sides."""
    rules = (_standing, _room, _company)
    found = {}
    for index, name in enumerate(snapshot.names):
        found[name] = next((why for rule in rules if (why := rule(snapshot, request, index))), "fits")
    return found


def _standing(snapshot: Snapshot, request: Request, index: int) -> str:
    """What forbids it whatever else stands there, or ""."""
    if request.nodes and snapshot.names[index] not in request.nodes:
        return "not among the nodes it allows"
    if snapshot.blocked[index]:
        return snapshot.blocked[index]
    kinds, have = kinds_of(request.resources), snapshot.accelerators[index]
    if kinds and have not in kinds:
        return f"has no accelerator of type {' or '.join(sorted(kinds))} ({have or 'none'})"
    labels = snapshot.labels[index] if snapshot.labels else {}
    for key, value in sorted(request.labels.items()):
        if labels.get(key) != value:
            return f"lacks a label: {key}={value} wanted, " + (
                f"{labels[key]} there" if key in labels else "none there"
            )
    taints = snapshot.taints[index] if snapshot.taints else frozenset()
    if not taints <= request.tolerates:
        return f"tainted: {', '.join(sorted(taints - request.tolerates))} is not tolerated"
    reserved = snapshot.reservations[index] if snapshot.reservations else ""
    if not request.burst and reserved != request.reservation:
        if not reserved:
            return f"not reserved: only nodes of reservation {request.reservation} are asked for"
        return f"reserved: for {reserved}"
    return ""


def _room(snapshot: Snapshot, request: Request, index: int) -> str:
    idle = [max(0, DEVICE_MILLI - used) for used in snapshot.devices[index].tolist()]
    for column, wanted in enumerate(amounts(request.resources)):
        capacity = int(snapshot.capacity[index, column])
        free = sum(idle) if column == ACCELERATOR else capacity - int(snapshot.used[index, column])
        if wanted == 0 or wanted <= free:
            continue
        word, unit = _WORDS[UNITS[column]]
        if wanted > capacity:
            return f"too small: {word} {wanted} wanted, {capacity} in all ({unit})"
        return f"full: {word} {wanted} wanted, {max(0, free)} of {capacity} free ({unit})"
    whole, share = devices_for(request.resources)
    if whole > idle.count(DEVICE_MILLI):
        return f"in pieces: {whole} whole accelerators wanted, {idle.count(DEVICE_MILLI)} idle"
    if share > max(idle, default=0):
        return f"in pieces: {share} of one accelerator wanted, at most {max(idle, default=0)} free on one (thousandths)"
    return ""


def _company(snapshot: Snapshot, request: Request, index: int) -> str:
    name = snapshot.names[index]
    count = snapshot.groups.get(request.group, {}).get(name, 0)
    if request.per_node is not None and count >= request.per_node:
        return f"spread: holds {count} already, at most {request.per_node} a node"
    for group in sorted(request.avoid):
        if snapshot.groups.get(group, {}).get(name, 0):
            return f"kept apart: {group} stands there"
    held = snapshot.holder(index, request.ports)
    if held is not None:
        return f"port taken: port {held[0]} of {snapshot.addresses[index]} is taken by {held[1]}"
    return ""
